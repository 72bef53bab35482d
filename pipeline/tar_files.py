"""Members of tar archives, plain or gzipped: one after another, or alone at their place.

Nothing is ever extracted to disk. A name that comes twice in an archive means its first
member. A leading `./` of a name does not count.
"""

import functools
import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import BinaryIO

from model.reading import FileVersion, check_size, naming_errors, read_whole
from schemas.rejects import ImageError, Reason

_LARGEST_NAME_BYTES = 2**20
"""The standard library would read a header that holds a name into memory, however large."""

_NAMES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
"""Kinds of headers that hold the name, or more, of the member after them."""

_INDICES = 16
"""Archives whose index a process remembers: some 20 MB each for 100,000 members."""


class Member:
    """A member of an archive that is being read.

    Attributes:
      name: In the archive.
      offset: Of its first header in the archive, in bytes, uncompressed.
      size_bytes: Of its content.
    """

    def __init__(self, tar: tarfile.TarFile, info: tarfile.TarInfo):
        """Names a member that `tar` has just come to."""
        self._tar = tar
        self._info = info
        self.name = member_name(info.name)
        self.offset = info.offset
        self.size_bytes = info.size

    def check(self) -> None:
        """Raises if it is not to be read.

        Raises:
          ImageError: It is no regular file, points outside the archive, or is too large.
        """
        if not self._info.isreg():
            raise ImageError(Reason.NOT_A_FILE, "the member is a folder, link or device")
        path = PurePosixPath(self.name)
        if path.is_absolute() or ".." in path.parts:
            raise ImageError(Reason.NOT_A_FILE, "the member's name points outside the archive")
        check_size(self.size_bytes)

    def read(self, on_progress: Callable[[], None] = lambda: None) -> bytes:
        """Returns its content, before the next member is asked for.

        Args:
          on_progress: Called after each piece.

        Raises:
          ImageError: The archive is damaged there.
        """
        with _naming_damage():
            return read_whole(self._tar.extractfile(self._info), on_progress)


def member_name(name: str) -> str:
    """Returns what the name of a member is compared by."""
    return name.removeprefix("./")


def read_members(file: BinaryIO, *, gzipped: bool) -> Iterator[Member]:
    """Gives all members from where `file` stands to the end of the archive.

    Args:
      file: Read once and never sought.
      gzipped: Whether to decompress it.

    Raises:
      ImageError: The archive is damaged or cut short from there on.
    """
    with _naming_damage():
        stream = _Gunzipped(file) if gzipped else file
        # Not "r:", which seeks back by a byte: in a gzip file that is from the beginning.
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictInfo) as tar:
            while (info := tar.next()) is not None:
                yield Member(tar, info)
                tar.members.clear()  # it would remember all


def read_member(
    path: str,
    name: str,
    version: FileVersion,
    make_room: Callable[[int], None],
    on_progress: Callable[[], None],
) -> bytes:
    """Returns the content of one member of a plain local archive.

    Args:
      path: Of the archive.
      name: Of the member.
      version: Of the archive, as it was just looked up.
      make_room: Called with the member's size before it is read.
      on_progress: Called after each piece.

    Raises:
      ImageError: There is no such member, it is not to be read, or the archive is
        damaged.
    """
    name = member_name(name)
    offsets, damage = _index(path, version)
    if name not in offsets:
        raise damage or ImageError(Reason.NOT_FOUND, "no member of that name in the archive")
    with naming_errors(), open(path, "rb") as file:
        file.seek(offsets[name])
        members = read_members(file, gzipped=False)  # closes the archive when it goes
        member = next(members, None)
        if member is None or member.name != name:
            raise ImageError(Reason.CORRUPT, "the archive was changed while it was read")
        member.check()
        make_room(member.size_bytes)
        return member.read(on_progress)


def list_members(path: str) -> tuple[dict[str, int], ImageError | None]:
    """Returns the place of each member of a plain local archive, and what hides the rest.

    Reads headers alone.

    Raises:
      ImageError: The archive cannot be read.
    """
    offsets: dict[str, int] = {}
    with naming_errors():
        try:
            with _naming_damage(), tarfile.open(path, "r:", tarinfo=_StrictInfo) as tar:
                while (info := tar.next()) is not None:
                    offsets.setdefault(member_name(info.name), info.offset)
                    tar.members.clear()  # it would remember all
        except ImageError as damage:
            return offsets, damage
    return offsets, None


@functools.lru_cache(maxsize=_INDICES)
def _index(path: str, version: FileVersion) -> tuple[dict[str, int], ImageError | None]:
    # The version is part of the key: an archive that was written anew is listed anew.
    return list_members(path)


class _Gunzipped:
    """What is in a gzip file, to the last byte where it is cut short."""

    def __init__(self, file: BinaryIO):
        self._file = gzip.GzipFile(fileobj=file)

    def read(self, size: int) -> bytes:
        # Not read, which gives nothing at all where it cannot give as much as asked for.
        return self._file.read1(size)


class _StrictInfo(tarfile.TarInfo):
    """Tells damage from the end of an archive, which the standard library takes it for."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "_StrictInfo":
        info = super().frombuf(buf, encoding, errors)
        if info.type in _NAMES and info.size > _LARGEST_NAME_BYTES:
            raise ImageError(Reason.CORRUPT, "the archive holds a name of over a megabyte")
        return info

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> "_StrictInfo":
        try:
            return super().fromtarfile(archive)
        except (tarfile.EmptyHeaderError, tarfile.TruncatedHeaderError) as error:
            raise _cut_short() from error
        except (tarfile.InvalidHeaderError, tarfile.SubsequentHeaderError) as error:
            raise ImageError(Reason.CORRUPT, "the archive is damaged at or before it") from error


@contextmanager
def _naming_damage() -> Iterator[None]:
    """Turns what the libraries raise over a damaged archive into the error of an image."""
    try:
        yield
    except (EOFError, tarfile.ReadError) as error:
        raise _cut_short() from error
    except (gzip.BadGzipFile, zlib.error, tarfile.TarError, ValueError, OverflowError) as error:
        raise ImageError(Reason.CORRUPT, "the archive is damaged at or before it") from error


def _cut_short() -> ImageError:
    return ImageError(Reason.TRUNCATED, "the archive ends before the member does")
