"""The reading room's folder: what was drawn of a run, as DICOM objects that a PACS can file.

It is a folder of this machine, and no part of OUTPUT: its files name patients. Objects of a run
are written into a hidden folder before the run is published, and that is renamed right after.
"""

import os
from pathlib import Path

from pipeline.events import Report
from pipeline.layout import Output, sync
from pipeline.run_state import read_record
from pipeline.uris import has_scheme
from schemas.errors import InputError


class ReadingRoomError(Exception):
    """The objects of a run could not be written, or not be shown."""


def check_room(folder: str, output: str) -> None:
    """Checks that a folder can be a reading room's, and that objects can be made; makes nothing.

    Args:
      folder: Of `--dicom-out`.
      output: The place of all runs.

    Raises:
      InputError: It cannot, or highdicom is not installed.
    """
    if has_scheme(folder):
        raise InputError(
            f"--dicom-out must be a folder on this machine. Received: --dicom-out {folder}. Write"
            " into a local one, and let a DICOM router send from there."
        )
    path = Path(folder).absolute()
    if path.exists() and not path.is_dir():
        raise InputError(f"--dicom-out must be a folder. Received: --dicom-out {path}, a file.")
    if not has_scheme(output) and path.resolve().is_relative_to(Path(output).resolve()):
        raise InputError(
            "--dicom-out must lie outside --output, where no file names a patient. Received:"
            f" --dicom-out {folder}. Name another folder."
        )
    try:
        import model.dicom_out  # noqa: F401
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("highdicom", "jpeg_ls", "pydicom"):
            raise
        raise InputError(
            f"--dicom-out needs highdicom, which is not installed. Received: --dicom-out {folder}."
            " Install it: pip install 'prescreen[dicom]'."
        ) from error


def open_room(folder: str, output: Output, report: Report) -> Path:
    """Returns the folder, made where it is missing, with what crashes have left hidden shown.

    Shown is what belongs to a run that is published in `output`, and has no folder yet.

    Raises:
      InputError: It cannot be written, or the record of a run cannot be read.
      ReadingRoomError: As `show` does.
    """
    room = Path(folder).absolute()
    try:
        room.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            "--dicom-out must be a folder that can be made. Received:"
            f" --dicom-out {folder} ({error.strerror}). Name another one."
        ) from error
    if not os.access(room, os.W_OK | os.X_OK):
        raise InputError(
            f"--dicom-out must be a folder that can be written. Received: --dicom-out {folder}."
            " Mend its permissions, or name another one."
        )
    for hidden in sorted(room.glob(".run_id=*.tmp")):
        run_id = hidden.name.removeprefix(".run_id=").removesuffix(".tmp")
        record = output.run(run_id).record
        if not record.exists() or _shown(room, run_id).exists():
            continue
        # Another OUTPUT may have a run of that name, and is at it.
        if _objects_of(read_record(record)) == len(list(hidden.rglob("*.dcm"))):
            show(room, run_id)
            report("dicom_shown", run_id=run_id)
    return room


def check_new(room: Path, run_id: str) -> None:
    """Checks that the room holds no run of that name yet.

    Raises:
      InputError: It does.
    """
    if _shown(room, run_id).exists():
        raise InputError(
            f"--dicom-out must not hold a run of that name yet. Received: {run_id}, whose objects"
            " are there. Choose another --run-id, or another folder."
        )


def show(room: Path, run_id: str) -> None:
    """Gives what is written of a published run its last name; again does nothing.

    Raises:
      ReadingRoomError: It cannot be renamed.
    """
    hidden = hidden_folder(room, run_id)
    if not hidden.exists():
        return
    try:
        os.rename(hidden, _shown(room, run_id))
        sync(room)
    except FileNotFoundError:
        return  # by another start, which has found it hidden and the run published
    except OSError as error:
        raise ReadingRoomError(
            f"Run {run_id} is published, but its DICOM objects stay hidden, as {hidden.name} in"
            f" --dicom-out, which cannot be renamed ({error.strerror}). Mend that: the next start"
            " with the same --dicom-out shows them."
        ) from error


def _objects_of(record: dict) -> int | None:
    return record["counts"].get("dicom_objects")


def hidden_folder(room: Path, run_id: str) -> Path:
    """Returns where the objects of a run are until it is published."""
    return room / f".run_id={run_id}.tmp"


def _shown(room: Path, run_id: str) -> Path:
    return room / f"run_id={run_id}"
