"""A click command that turns the project's errors into messages and exit codes."""

import traceback
from collections.abc import Callable

import click

from schemas.errors import InputError

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_TOO_MANY_REJECTS = 3
EXIT_NOT_RECONCILED = 4

_EXIT_CODES = {
    "LockLostError": EXIT_FAILED,
    "MeasureError": EXIT_FAILED,
    "OutputError": EXIT_FAILED,
    "PublishError": EXIT_FAILED,
    "ReadingRoomError": EXIT_FAILED,
    "ReportError": EXIT_FAILED,
    "RunFailedError": EXIT_FAILED,
    "RunStoppedError": EXIT_FAILED,
    "RejectLimitError": EXIT_TOO_MANY_REJECTS,
    "ReconciliationError": EXIT_NOT_RECONCILED,
}
"""Of errors that say themselves what to do, by their class."""

SHOW_FAILURE = f"{__name__}.show_failure"
"""Where a command's context keeps what shows its failure in place of a plain line."""


class Failure(click.ClickException):
    """An error that was expected: one line, and an exit code."""

    def __init__(self, message: str, exit_code: int, show: Callable[..., None] | None = None):
        super().__init__(message)
        self.exit_code = exit_code
        self._show = show

    def show(self, file=None) -> None:
        """Prints the message as the command's output is."""
        if self._show:
            self._show("failed", message=self.message, exit_code=self.exit_code)
        else:
            super().show(file)


class Command(click.Command):
    """A command with `--debug`; without it no error shows a stack trace."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                callback=lambda context, _, value: context.meta.update({__name__: value}),
                help="Show the stack trace of an error.",
            )
        )

    def invoke(self, context: click.Context):
        """Runs the command; an error becomes a `Failure`, after its trace with `--debug`."""
        try:
            return super().invoke(context)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if context.meta[__name__]:
                traceback.print_exc()
            raise Failure(*_explain(error), context.meta.get(SHOW_FAILURE)) from error


def _explain(error: Exception) -> tuple[str, int]:
    """Returns the message and the exit code of an error."""
    if isinstance(error, InputError):
        return str(error), EXIT_BAD_INPUT
    # By name: importing the classes would load Beam for every command.
    if code := _EXIT_CODES.get(type(error).__name__):
        return str(error), code
    message = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{message} Run again with --debug for the stack trace.", EXIT_FAILED
