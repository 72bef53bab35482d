"""The paths of a source: of a folder, glob, prefix, archive, DICOMDIR or single file.

In an order of their names, so that they are the same each time. A tar archive is its members,
wherever it is found. Linked folders are not entered; each is a path like that of a file.
"""

import contextlib
import glob
import logging
import os
from collections.abc import Iterable, Iterator

from apache_beam.io.filesystems import FileSystems

from model.object_store import SCHEME, ObjectFolder
from pipeline.image_names import is_dicomdir
from pipeline.source import open_source
from pipeline.tar_files import list_members, read_members
from pipeline.uris import absolute_path, has_scheme, is_archive, is_gzipped, is_streamed
from schemas.errors import InputError
from schemas.rejects import ImageError

_log = logging.getLogger(__name__)


def source_paths(source: str) -> Iterator[str]:
    """Returns the absolute paths or uris of the files of a source, and of archives' members."""
    files = _files(source)  # a missing source is found here and now
    return (path for file in files for path in _opened(file, source))


def _opened(file: str, source: str) -> Iterable[str]:
    """Returns a file as it is, or the uris of an archive's members, once each.

    Warns where damage hides the rest of them.
    """
    if not is_archive(file):
        return (file,)
    names, damage = _member_names(file)
    if damage and not names:
        raise InputError(
            "source must hold archives that can be read. Received:"
            f" source={source!r}, with one that cannot ({damage}). Check it, or copy it again."
        ) from damage
    if damage:
        _log.warning(
            "source=%r holds an archive of which only %d members can be listed (%s).",
            source,
            len(names),
            damage,
        )
    return (f"{file}#{name}" for name in names)


def _member_names(archive: str) -> tuple[Iterable[str], ImageError | None]:
    """Returns the names of an archive's members, and what hides the rest."""
    if not is_streamed(f"{archive}#"):
        try:
            return list_members(archive)
        except ImageError as error:
            return (), error
    names: dict[str, None] = {}
    try:
        with open_source(archive) as file:
            for member in read_members(file, gzipped=is_gzipped(archive)):
                names[member.name] = None
    except ImageError as error:
        return names, error
    return names, None


def _files(source: str) -> Iterator[str]:
    """Returns the absolute paths or uris of the files of a source."""
    if os.path.isdir(source):
        return _walk(os.path.abspath(source))
    if is_dicomdir(source) and (has_scheme(source) or os.path.exists(source)):
        return _referenced(absolute_path(source))
    if has_scheme(source):
        return _remote_paths(source)
    if os.path.exists(source):
        return iter([os.path.abspath(source)])
    if glob.has_magic(source):
        return _glob_paths(source)
    raise InputError(
        "source must be a folder, a glob, a prefix, an archive, an image or the NIH CSV."
        f" Received: source={source!r}, which does not exist. Check the path."
    )


def _referenced(dicomdir: str) -> Iterator[str]:
    """Returns the images of a DICOMDIR; warns of what else it references."""
    from pipeline.dicom_listing import referenced_files

    files, others = referenced_files(dicomdir)
    if others:
        _log.warning("source=%r references %d files that are no images.", dicomdir, others)
    return iter(files)


def _walk(folder: str) -> Iterator[str]:
    """Yields the files below a local folder, and the linked folders as if they were files."""

    def refuse(error: OSError) -> None:
        raise InputError(
            f"source must be readable throughout. Received: source={folder!r}, in it a folder"
            f" that is not ({type(error).__name__}). Check its permissions."
        ) from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        yield from (os.path.join(parent, name) for name in sorted(files + links))


def _glob_paths(source: str) -> Iterator[str]:
    """Yields the files that match, and the files below folders that do.

    With `**` folders match beside the files in them and are passed over.
    """
    for path in sorted(set(glob.iglob(source, recursive=True))):
        if not os.path.isdir(path):
            yield os.path.abspath(path)
        elif "**" not in source:
            yield from _walk(os.path.abspath(path))


def _remote_paths(source: str) -> Iterator[str]:
    if source.startswith(SCHEME) and source.endswith("/"):
        return _object_paths(source)
    pattern = source + "**" if source.endswith("/") else source
    with _naming_failure(source):
        (match,) = FileSystems.match([pattern])
    paths = sorted(metadata.path for metadata in match.metadata_list)
    return (path for path in paths if not path.endswith("/"))  # placeholders of folders


def _object_paths(prefix: str) -> Iterator[str]:
    """Yields page by page what Beam would hold all at once."""
    with _naming_failure(prefix):
        for found in ObjectFolder(prefix.removesuffix("/")).objects():
            yield prefix + found.name


@contextlib.contextmanager
def _naming_failure(source: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # every file system has errors of its own
        cause = (str(error).splitlines() or [""])[0][:200]
        raise InputError(
            f"source must be a place that can be listed. Received: source={source!r}"
            f" ({type(error).__name__}: {cause}). Check the path and its permissions."
        ) from error
