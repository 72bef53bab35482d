"""Rows of a manifest from the headers of DICOM files, many of them read at once.

One bounded read a file: of its first 64 KiB, and where its header is longer one more, of 1 MiB.
A file whose header says too little stays in the manifest under its path, since a run makes a
row of rejects of it, with a reason, where a listing would only lose it.
"""

import collections
import hashlib
from collections.abc import Iterable, Iterator

from model.dicom import RADIOGRAPHS, is_dicom
from model.dicom_identity import MODALITIES, Identity, read_identity, read_references
from model.reading import MAX_BYTES
from pipeline.hash_key import HashKey
from pipeline.image_names import has_no_extension, is_dicom_name, is_dicomdir, is_image
from pipeline.manifest_formats import Row
from pipeline.read_ahead import TIMEOUT_S, ReadAhead, StoreError, TimedOut
from pipeline.source import read_source, read_start
from pipeline.uris import image_id_of, manifest_folder, relative_uri, resolve_uri, split_member
from pipeline.watch import Watch
from schemas.errors import InputError
from schemas.rejects import ImageError, Reason

COLUMNS = ("patient_id", "study_date", "view_position", "modality", "photometric_interpretation")
"""What a row has beside id and uri, in this order."""

COPIES, UNREADABLE, MODALITY = "copies", "unreadable", "modality "
"""What is counted: the last for each modality, its code or `other` after it."""

_HEAD_BYTES, _LONG_HEAD_BYTES = 64 * 1024, 1024 * 1024
_READS, _DEPTH = 32, 128
_DIGEST_BYTES = 16

_UNKNOWN = Identity(None, None, None, None, None, None)


def dicom_rows(
    paths: Iterable[str], folder: str, key: HashKey | None, counts: collections.Counter
) -> Iterator[Row | None]:
    """Yields the row of each image, in order, and None for any other file.

    Images of other formats have a row with an id by their path. Of files of one SOPInstanceUID
    the first has a row; a digest of each is held in memory.

    Args:
      paths: Absolute paths, uris, or members of archives, whose headers are not read.
      folder: Of the manifest.
      key: Hashes the ids of images and patients, and leaves of a date the year; or None.
      counts: Told of copies, of other modalities, and of DICOM files listed by their path.

    Raises:
      InputError: The store does not answer.
    """
    seen: set[bytes] = set()
    for path, found in _identities(paths):
        if isinstance(found, ImageError):
            counts[UNREADABLE] += 1
            found = _UNKNOWN
        elif found is not None and found.modality not in (None, *RADIOGRAPHS):
            # No other than these is told: somebody may have typed anything.
            counts[MODALITY + (found.modality if found.modality in MODALITIES else "other")] += 1
            found = None
        if found is not None and (uid := found.sop_instance_uid):
            digest = hashlib.blake2b(uid.encode(), digest_size=_DIGEST_BYTES).digest()
            if digest in seen:
                counts[COPIES] += 1
                found = None
            seen.add(digest)
        yield found and _row(found, path, folder, key)


def _row(found: Identity, path: str, folder: str, key: HashKey | None) -> Row:
    image_id = found.sop_instance_uid or _path_id(path, folder)
    patient_id, study_date = found.patient_id, found.study_date
    if key:
        image_id = key.hashed(image_id)
        patient_id = patient_id and key.hashed(patient_id)
        study_date = study_date and study_date[:4]
    return (
        *(image_id, relative_uri(path, folder), patient_id, study_date),
        *(found.view_position, found.modality, found.photometric_interpretation),
    )


def _path_id(path: str, folder: str) -> str:
    image_id = image_id_of(path, folder)
    # A file may be called by a UID that another one has.
    return image_id if image_id.strip("0123456789.") else f"./{image_id}"


def _identities(paths: Iterable[str]) -> Iterator[tuple[str, Identity | ImageError | None]]:
    """Yields each path with what `_identity` says of it, in order."""
    # Set aside, a late one would come out of order.
    ahead = ReadAhead(_identify, threads=_READS, depth=_DEPTH, late_s=TIMEOUT_S)
    try:
        for path in paths:
            yield from map(_given, ahead.put(path))
        yield from map(_given, ahead.drain())
    except StoreError as error:
        raise InputError(
            "source must be on a store that answers. Received: no answer to many reads at once."
            " See to it, then list again."
        ) from error
    finally:
        ahead.close()


def _given(result) -> tuple[str, Identity | ImageError | None]:
    return (result.item, result.error) if isinstance(result, TimedOut) else result


def _identify(path: str, watch: Watch) -> tuple[str, Identity | ImageError | None]:
    try:
        return path, _identity(path, watch)
    except ImageError as error:
        return path, error


def _identity(path: str, watch: Watch) -> Identity | None:
    """Returns what a file says of itself; None where it is no image that is listed.

    Raises:
      ImageError: It does not say, or cannot be read.
    """
    if is_image(path) and not is_dicom_name(path):
        return _UNKNOWN
    if split_member(path)[1] is not None:
        if is_dicom_name(path):
            raise ImageError(Reason.READ_ERROR, "the header of a member is not looked at")
        return None
    if is_dicomdir(path) or not (is_dicom_name(path) or has_no_extension(path)):
        return None
    head = read_start(path, _HEAD_BYTES, watch)
    if not is_dicom(head) and not is_dicom_name(path):
        return None
    is_whole = len(head) < _HEAD_BYTES
    try:
        found = read_identity(head, is_whole=is_whole)
    except ImageError as error:
        if is_whole or error.reason is not Reason.TRUNCATED:
            raise
        head = read_start(path, _LONG_HEAD_BYTES, watch)
        found = read_identity(head, is_whole=len(head) < _LONG_HEAD_BYTES)
    if found.modality in (None, *RADIOGRAPHS) and not found.sop_instance_uid:
        raise ImageError(Reason.INVALID_HEADER, "SOPInstanceUID is missing, or none")
    return found


def referenced_files(dicomdir: str) -> tuple[list[str], int]:
    """Returns the files that a DICOMDIR references as images, and how many as something else.

    Args:
      dicomdir: A path or uri.

    Raises:
      InputError: It cannot be read, is damaged, or references a file outside its folder.
    """
    folder = manifest_folder(dicomdir)
    try:
        names, others = read_references(read_source(dicomdir).data)
    except ImageError as error:
        raise InputError(
            f"source must be a whole DICOMDIR of at most {MAX_BYTES} bytes that references files"
            f" below its folder. Received: source={dicomdir!r} ({error}). List the folder instead."
        ) from None
    return [resolve_uri(name, folder) for name in names], others
