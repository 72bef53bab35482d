"""Listing images into a manifest: folders, globs, prefixes, single files, the NIH CSV.

Local folders are walked in the order of their names, so that the manifest of one
archive is the same file each time. Linked folders are walked too, unless the link
leads back to a folder around it. A folder alone is listed without holding more
than one folder's names at a time; where there are several sources every path is
remembered, to list each file once.
"""

import contextlib
import csv
import glob
import gzip
import hashlib
import itertools
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipeline.manifest import (
    DELIMITERS,
    NIH_COLUMNS,
    check_manifest,
    has_scheme,
    image_id_of,
    manifest_columns,
    manifest_folder,
    manifest_format,
    read_row_group,
    resolve_uri,
)
from schemas.errors import InputError
from schemas.tables import manifest_schema

IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg")
"""What a file's name must end in, in either case, to be listed."""

NIH_CARRIED = ("patient_id", "view_position", "labels")
"""What the NIH CSV adds to a manifest."""

_TAR_EXTENSIONS = (".tar", ".tar.gz", ".tgz")
_CSV_EXTENSIONS = (".csv", ".csv.gz")
_PARQUET_ROWS = 1 << 16

Row = tuple[str | None, ...]


@dataclass(frozen=True)
class Listing:
    """How many images a manifest lists, and how many files or rows it leaves out."""

    rows: int
    left_out: int


@dataclass(frozen=True, slots=True)
class _Found:
    """A file below a source, or a row of the NIH CSV; `path` is None if it has no file."""

    path: str | None
    image_id: str | None = None
    carried: Row = ()

    @property
    def listed(self) -> bool:
        return self.path is not None and _is_image(self.path)


def list_images(sources: Sequence[str], *, output: str, images: str | None = None) -> Listing:
    """Lists images into a manifest and returns how many.

    Args:
      sources: Folders, globs, prefixes ending in `/` of any scheme that Beam's
        FileSystems know, single images, or the NIH `Data_Entry` CSV.
      output: CSV, TSV, JSON lines or Parquet to write, by extension; appears
        whole or not at all.
      images: Folder that holds the images of the NIH CSV, at any depth.

    Raises:
      InputError: A source is missing, matches nothing, or cannot be listed.
    """
    labelled = [source for source in sources if _is_csv(source)]
    _check_request(sources, labelled, output, images)
    found = [_find(source, images) for source in sources]
    columns = ("image_id", "uri", *(NIH_CARRIED if labelled else ()))
    tally = _Tally(manifest_folder(output), len(columns), several=len(sources) > 1)
    with _whole_file(output) as partial:
        own = {_absolute(output), partial}
        others = (each for each in itertools.chain(*found) if each.path not in own)
        write_rows(tally.rows(others), columns, partial, *manifest_format(output))
        tally.check()
    return Listing(tally.listed, tally.left_out)


def write_rows(
    rows: Iterable[Row], columns: Sequence[str], path: str, kind: str, gzipped: bool = False
) -> None:
    """Writes rows to a local file that `check_manifest` reads back exactly.

    Args:
      rows: Strings or None, in the order of `columns`.
      columns: `image_id`, `uri` and more.
      path: Local file, written over.
      kind: Format as `manifest_format` names it, all but text.
      gzipped: Whether to compress; not for Parquet.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "wb"))
        if gzipped:  # without name and time, so that the same rows make the same file
            file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=file, mtime=0))
        if kind == "parquet":
            _write_parquet(rows, columns, file)
        else:
            encode = _json_encoder(columns) if kind == "jsonl" else _csv_encoder(kind)
            header = [] if kind == "jsonl" else [columns]
            file.writelines(encode(row).encode() for row in itertools.chain(header, rows))


class _Tally:
    """Makes manifest rows of what was found, each file once, and counts.

    One source names no file twice, and no two images alike: only where there are
    several are the paths and ids remembered.
    """

    def __init__(self, folder: str, width: int, *, several: bool):
        self.listed = 0
        self.left_out = 0
        self._folder = folder
        self._width = width
        self._several = several
        self._paths = set()
        self._image_ids = set()
        self._doubled = []
        self._not_utf8 = []

    def rows(self, found: Iterable[_Found]) -> Iterator[Row]:
        for each in found:
            if each.path in self._paths:
                continue
            if self._several and each.path is not None:
                self._paths.add(each.path)
            if not each.listed:
                self.left_out += 1
            elif row := self._row(each):
                self.listed += 1
                yield row

    def _row(self, each: _Found) -> Row | None:
        uri = _uri_of(each.path, self._folder)
        image_id = each.image_id or image_id_of(each.path, self._folder)
        if not _is_utf8(uri):
            self._not_utf8.append(hashlib.sha256(os.fsencode(uri)).hexdigest()[:16])
            return None
        if image_id in self._image_ids:
            self._doubled.append(image_id)
        if self._several:
            self._image_ids.add(image_id)
        carried = each.carried or (None,) * (self._width - 2)
        return (image_id, uri, *carried)

    def check(self) -> None:
        """Raises for what was met that cannot be listed."""
        if self._not_utf8:
            raise InputError(
                "source must hold files whose names are UTF-8. Received:"
                f" {len(self._not_utf8)} of other names, first (by sha256 of the path)"
                f" {', '.join(self._not_utf8[:3])}. Rename them: a manifest cannot name them."
            )
        if self._doubled:
            raise InputError(
                "sources must not give two images one image_id. Received:"
                f" {len(self._doubled)} more than once, first"
                f" {', '.join(map(repr, self._doubled[:3]))}. List them into two manifests, or"
                " write the manifest to another folder."
            )


def _check_request(
    sources: Sequence[str], labelled: Sequence[str], output: str, images: str | None
) -> None:
    if manifest_format(output)[0] == "text":
        raise InputError(
            "output must be CSV, TSV, JSON lines or Parquet, by its extension."
            f" Received: output={output!r}."
        )
    if os.path.isdir(output) or _absolute(output) in map(_absolute, sources):
        raise InputError(
            "output must be a file of its own, neither a folder nor a source."
            f" Received: output={output!r}."
        )
    if labelled and images is None:
        raise InputError(
            "images must name the folder of the NIH CSV's images. Received: source="
            f"{labelled[0]!r} without it. Add --images DIR."
        )
    if images is not None and not labelled:
        raise InputError(
            f"images must go with the NIH CSV as a source. Received: images={images!r}"
            " without it. Add the CSV, or leave --images out."
        )
    if images is not None and not (os.path.isdir(images) or has_scheme(images)):
        raise InputError(f"images must be a folder. Received: images={images!r}. Check the path.")


def _find(source: str, images: str | None) -> Iterator[_Found]:
    """Yields every file or row of a source; raises at the end if no image was among them."""
    if _is_csv(source):
        _check_nih(source)
        return _some(_nih_rows(source, images), source, f" whose file is below {images!r}")
    return _some(map(_Found, _paths(source)), source)


def _some(found: Iterable[_Found], source: str, where: str = "") -> Iterator[_Found]:
    listed = False
    for each in found:
        listed = listed or each.listed
        yield each
    if not listed:
        raise InputError(
            f"source must hold at least one image ({', '.join(IMAGE_EXTENSIONS)}){where}."
            f" Received: source={source!r}. Check the path; a prefix must end in /."
        )


def _paths(source: str) -> Iterator[str]:
    """Returns the absolute paths or uris of the files of a source."""
    if os.path.isdir(source) and not has_scheme(source):
        return _walk(os.path.abspath(source), source)
    if source.lower().endswith(_TAR_EXTENSIONS):
        raise InputError(
            f"source must not be a tar archive, which cannot be listed yet. Received: source="
            f"{source!r}. Unpack it and list the folder."
        )
    if has_scheme(source):
        return _remote_paths(source)
    if os.path.exists(source):
        return _single_image(source)
    if glob.has_magic(source):
        return _glob_paths(source)
    raise InputError(
        f"source must be a folder, a glob, a prefix, an image or the NIH CSV. Received: source="
        f"{source!r}, which does not exist. Check the path."
    )


def _single_image(source: str) -> Iterator[str]:
    if not _is_image(source):
        raise InputError(
            f"source must be an image ({', '.join(IMAGE_EXTENSIONS)}) if it is a single file."
            f" Received: source={source!r}."
        )
    return iter([_absolute(source)])


def _walk(folder: str, source: str, around: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Yields the files below a local folder, entry by entry in the order of their names."""
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"source must be readable throughout. Received: source={source!r}, in it a folder"
            f" that is not ({type(error).__name__}). Check its permissions."
        ) from error
    identity = (status.st_dev, status.st_ino)
    if identity in around:
        return
    for entry in ordered:
        # Of a link that leads nowhere or in a circle DirEntry.is_dir may raise.
        if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
            yield from _walk(entry.path, source, (*around, identity))
        else:
            yield entry.path


def _glob_paths(source: str) -> Iterator[str]:
    """Yields the files that match, and the files below folders that do.

    With `**` folders match beside the files in them and are passed over.
    """
    for path in sorted(set(glob.iglob(source, recursive=True))):
        if not os.path.isdir(path):
            yield os.path.abspath(path)
        elif "**" not in source:
            yield from _walk(os.path.abspath(path), source)


def _remote_paths(source: str) -> Iterator[str]:
    pattern = source + "**" if source.endswith("/") else source
    try:
        (match,) = FileSystems.match([pattern])
    except Exception as error:  # every file system has errors of its own
        cause = (str(error).splitlines() or [""])[0][:200]
        raise InputError(
            f"source must be a place that can be listed. Received: source={source!r}"
            f" ({type(error).__name__}: {cause}). Check the path and its permissions."
        ) from error
    paths = sorted(metadata.path for metadata in match.metadata_list)
    return (path for path in paths if not path.endswith("/"))  # placeholders of folders


def _check_nih(source: str) -> None:
    columns = manifest_columns(source)
    if "uri" in columns or NIH_COLUMNS["uri"] not in columns:
        raise InputError(
            "source must be the NIH Data_Entry CSV with a column 'Image Index' if it is a CSV."
            f" Received: source={source!r}. Another CSV that names images is a manifest already."
        )


def _nih_rows(source: str, images: str) -> Iterator[_Found]:
    """Yields the rows of the NIH CSV, in its order, each with its file below `images`."""
    with tempfile.TemporaryDirectory() as folder:
        checked = check_manifest(source, into=os.path.join(folder, "nih.parquet"))
        groups = range(checked.row_groups)
        names = {row.image_id for group in groups for row in read_row_group(checked.path, group)}
        files = _files_by_name(images, names)
        for group in groups:
            for row in read_row_group(checked.path, group):
                known = dict(zip(checked.carried, row.carried, strict=True))
                carried = tuple(known.get(name) for name in NIH_CARRIED)
                yield _Found(files.get(row.image_id), row.image_id, carried)


def _files_by_name(images: str, names: set[str]) -> dict[str, str]:
    """Returns the path of each file below `images` that is called one of `names`."""
    files, doubled = {}, []
    for path in _paths(images.rstrip("/") + "/" if has_scheme(images) else images):
        name = path.rpartition("/")[2]
        if name in names and files.setdefault(name, path) != path:
            doubled.append(name)
    if doubled:
        raise InputError(
            f"images must hold one file of a name. Received: {len(doubled)} names twice or more,"
            f" first {', '.join(map(repr, doubled[:3]))}. Remove the copies."
        )
    return files


def _uri_of(path: str, folder: str) -> str:
    """Returns the uri by which a manifest in `folder` names `path`, relative if it can."""
    relative = image_id_of(path, folder)
    return relative if resolve_uri(relative, folder) == path else path


def _absolute(path: str) -> str:
    return path if has_scheme(path) else os.path.abspath(path)


def _is_csv(source: str) -> bool:
    return source.lower().endswith(_CSV_EXTENSIONS) and not os.path.isdir(source)


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_EXTENSIONS)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of a local name that Python keeps as surrogates
        return False
    return True


@contextlib.contextmanager
def _whole_file(output: str) -> Iterator[str]:
    """Gives a local path to write to, whose file becomes `output` if the block succeeds."""
    if has_scheme(output):
        with tempfile.TemporaryDirectory() as folder:
            partial = os.path.join(folder, "manifest")
            yield partial
            _upload(partial, output)
        return
    partial = os.path.join(manifest_folder(output), f".manifest-{uuid.uuid4().hex}.tmp")
    try:
        os.makedirs(os.path.dirname(partial), exist_ok=True)
        open(partial, "xb").close()
    except OSError as error:
        raise InputError(
            f"output must be in a folder that can be written to. Received: output={output!r}"
            f" ({type(error).__name__}). Choose another."
        ) from error
    try:
        yield partial
        os.replace(partial, output)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)


def _upload(path: str, uri: str) -> None:
    with (
        open(path, "rb") as source,
        FileSystems.create(uri, compression_type=CompressionTypes.UNCOMPRESSED) as target,
    ):
        shutil.copyfileobj(source, target)


def _write_parquet(rows: Iterable[Row], columns: Sequence[str], file: BinaryIO) -> None:
    schema = manifest_schema(tuple(columns[2:]))
    rows = iter(rows)
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while batch := list(itertools.islice(rows, _PARQUET_ROWS)):
            arrays = [pa.array(values, pa.string()) for values in zip(*batch, strict=True)]
            writer.write_table(pa.table(arrays, schema))


def _json_encoder(columns: Sequence[str]) -> Callable[[Row], str]:
    return lambda row: json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n"


class _Echo:
    """A file whose `write` hands the text back, as `writerow` then does."""

    @staticmethod
    def write(text: str) -> str:
        return text


def _csv_encoder(kind: str) -> Callable[[Row], str]:
    def writer(quoting: int) -> Callable[[Row], str]:
        dialect = {"delimiter": DELIMITERS[kind], "lineterminator": "\n", "quoting": quoting}
        return csv.writer(_Echo, **dialect).writerow

    # Before Python 3.13 csv leaves a carriage return unquoted where lines end in "\n".
    plain, quoted = writer(csv.QUOTE_MINIMAL), writer(csv.QUOTE_ALL)
    return lambda row: (quoted if any("\r" in cell for cell in row if cell) else plain)(row)
