"""How a run can end without being published."""

from pipeline.commit import ReconciliationError, RejectLimitError, ReportError
from pipeline.lock import LockLostError
from pipeline.mirror import OutputError
from pipeline.publishing import PublishError
from pipeline.reading_room import ReadingRoomError
from schemas.errors import InputError


class RunFailedError(Exception):
    """Something broke that the user cannot have caused; nothing was published."""


class RunStoppedError(Exception):
    """The run was asked to stop and did so in good order; nothing was published."""


EXPECTED = (
    InputError,
    LockLostError,
    OutputError,
    PublishError,
    ReadingRoomError,
    ReconciliationError,
    RejectLimitError,
    ReportError,
    RunStoppedError,
)
"""Errors that say themselves what to do."""
