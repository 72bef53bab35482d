"""Listing images into a manifest: folders, globs, prefixes, archives, a DICOMDIR, the NIH CSV.

Files are listed in an order of their names, so that the manifest of one archive is
the same file each time. A single folder is listed without holding its files' names
in memory; where there are several sources every path is remembered, to list each
file once. Nothing is asked of a file but its name, unless headers of DICOM files are
wanted (`pipeline/dicom_listing.py`). A linked folder counts as a file that was left out.
"""

import collections
import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipeline.hash_key import load_hash_key
from pipeline.image_names import (
    IMAGE_EXTENSIONS,
    has_no_extension,
    is_dicom_name,
    is_dicomdir,
    is_image,
)
from pipeline.manifest import NIH_COLUMNS, ManifestRow, check_manifest, read_row_group
from pipeline.manifest_formats import Row, manifest_columns, manifest_format, write_rows
from pipeline.source_paths import source_paths
from pipeline.uris import (
    absolute_path,
    has_scheme,
    image_id_of,
    manifest_folder,
    relative_uri,
    split_member,
)
from schemas.errors import InputError


@dataclass(frozen=True)
class Listing:
    """How many images a manifest lists, and how many files or rows it leaves out.

    Attributes:
      rows: Images listed.
      left_out: Files or rows that are none, with the next two.
      other_modalities: DICOM files by their modality, where it is none of a radiograph.
      copies: DICOM files with the SOPInstanceUID of one that is listed.
      without_header: DICOM files that are listed by their path, whose header says no more.
      new_key: Whether the key was made.
    """

    rows: int
    left_out: int
    other_modalities: Mapping[str, int] = field(default_factory=dict)
    copies: int = 0
    without_header: int = 0
    new_key: bool = False


def list_images(
    sources: Sequence[str],
    *,
    output: str,
    images: str | None = None,
    dicom: bool = False,
    hash_key: str | None = None,
) -> Listing:
    """Lists images into a manifest and returns how many.

    Args:
      sources: Folders, globs, prefixes ending in `/` of any scheme that Beam's
        FileSystems know, tar archives, and single images; or the NIH `Data_Entry` CSV
        alone.
      output: CSV, TSV, JSON lines or Parquet to write, by extension; appears
        whole or not at all.
      images: Folder that holds the images of the NIH CSV, or archives of them, at any
        depth.
      dicom: Whether to read the headers of DICOM files, for ids and further columns, and to
        look at files without an extension; a DICOMDIR then is a source too.
      hash_key: File of the key that hashes ids, made where there is none; with `dicom` alone.

    Raises:
      InputError: A source is missing, matches nothing, or cannot be listed.
    """
    _check_request(sources, output, images)
    _check_dicom(sources, images, dicom, hash_key)
    if dicom:
        return _list_dicom(sources, output, hash_key)
    folder, counts = manifest_folder(output), collections.Counter()
    with _whole_file(output) as partial:
        if images is None:
            paths = _without(_all_paths(sources, is_image), output, partial)
            rows, carried = _file_rows(paths, folder, counts), ()
        else:
            carried, rows = _nih_rows(sources[0], images, folder)
        write_rows(_kept(rows, counts), ("image_id", "uri", *carried), partial)
    return Listing(counts["kept"], counts["left out"], without_header=counts["DICOM"])


def _list_dicom(sources: Sequence[str], output: str, hash_key: str | None) -> Listing:
    try:
        # Half a second to import, and of an extra.
        from pipeline.dicom_listing import COLUMNS, COPIES, MODALITY, UNREADABLE, dicom_rows
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "pydicom":
            raise
        raise InputError(
            "dicom must be given where pydicom is installed. Received: no pydicom."
            " pip install 'prescreen[dicom]'."
        ) from error
    key = load_hash_key(hash_key) if hash_key else None
    folder, counts = manifest_folder(output), collections.Counter()
    with _whole_file(output) as partial:
        paths = _without(_all_paths(sources, _may_be_image), output, partial)
        rows = _kept(dicom_rows(paths, folder, key, counts), counts)
        write_rows(rows, ("image_id", "uri", *COLUMNS), partial)
        if not counts["kept"]:
            raise InputError(
                "sources must hold at least one radiograph. Received:"
                f" {counts['left out']} files, none of them one. Check the paths."
            )
    modalities = {
        name.removeprefix(MODALITY): number
        for name, number in sorted(counts.items())
        if name.startswith(MODALITY)
    }
    return Listing(
        counts["kept"],
        counts["left out"],
        modalities,
        counts[COPIES],
        counts[UNREADABLE],
        new_key=key is not None and key.is_new,
    )


def _kept(rows: Iterable[Row | None], counts: collections.Counter) -> Iterator[Row]:
    """Passes rows on and counts them, and what became no row."""
    for row in rows:
        counts["left out" if row is None else "kept"] += 1
        if row is not None:
            yield row


def _check_request(sources: Sequence[str], output: str, images: str | None) -> None:
    if manifest_format(output)[0] == "text":
        raise InputError(
            "output must be CSV, TSV, JSON lines or Parquet, by its extension."
            f" Received: output={output!r}."
        )
    if os.path.isdir(output) or absolute_path(output) in map(absolute_path, sources):
        raise InputError(
            "output must be a file of its own, neither a folder nor a source."
            f" Received: output={output!r}."
        )
    tables = [source for source in sources if source.lower().endswith((".csv", ".csv.gz"))]
    if (images is not None or tables) and (images is None or tables != list(sources)):
        raise InputError(
            "images must name the folder of the NIH CSV's images, and that CSV be the one source."
            f" Received: images={images!r}, {len(sources)} sources, {len(tables)} of them CSV."
        )
    if images is not None and not (os.path.isdir(images) or has_scheme(images)):
        raise InputError(f"images must be a folder. Received: images={images!r}. Check the path.")


def _check_dicom(
    sources: Sequence[str], images: str | None, dicom: bool, hash_key: str | None
) -> None:
    if dicom and images is not None:
        raise InputError(
            "dicom must be given without images. Received: both. The NIH's images are PNGs."
        )
    if hash_key is not None and not dicom:
        raise InputError(
            "hash-key must be given with dicom, whose ids it hashes. Received: hash-key alone."
        )
    if not dicom and any(map(is_dicomdir, sources)):
        raise InputError(
            "dicom must be given where a source is a DICOMDIR. Received: a DICOMDIR. Add --dicom."
        )


def _may_be_image(path: str) -> bool:
    return is_image(path) or has_no_extension(path)


def _without(paths: Iterable[str], output: str, partial: str) -> Iterator[str]:
    """Passes paths on, but for those of the manifest."""
    own = (absolute_path(output), partial)
    return (path for path in paths if path not in own)


def _file_rows(
    paths: Iterable[str], folder: str, counts: collections.Counter
) -> Iterator[Row | None]:
    """Yields the row of each image, and None for any other file; counts DICOM files."""
    for path in paths:
        counts["DICOM"] += is_dicom_name(path)
        yield (image_id_of(path, folder), relative_uri(path, folder)) if is_image(path) else None


def _all_paths(sources: Sequence[str], counts_as_image: Callable[[str], bool]) -> Iterable[str]:
    """Returns the path of every file of the sources, once."""
    listings = [  # missing ones are found first
        (source, source_paths(source), counts_as_image) for source in sources
    ]
    if len(sources) == 1:
        return _holding_images(*listings[0])
    return dict.fromkeys(path for listing in listings for path in _holding_images(*listing))


def _holding_images(
    source: str, paths: Iterator[str], counts_as_image: Callable[[str], bool]
) -> Iterator[str]:
    """Passes the paths on; raises at the end if no image was among them."""
    found = False
    for path in paths:
        found = found or counts_as_image(path)
        yield path
    if not found:
        raise InputError(
            f"source must hold at least one image ({', '.join(IMAGE_EXTENSIONS)})."
            f" Received: source={source!r}. Check the path; a prefix must end in /."
        )


def _nih_rows(
    source: str, images: str, folder: str
) -> tuple[tuple[str, ...], Iterator[Row | None]]:
    """Returns the columns that the NIH CSV adds, and its rows, None where there is no file."""
    columns = manifest_columns(source)
    if "uri" in columns or NIH_COLUMNS["uri"] not in columns:
        raise InputError(
            "source must be the NIH Data_Entry CSV with a column 'Image Index' if it is a CSV."
            f" Received: source={source!r}. Another CSV that names images is a manifest already."
        )
    carried, rows = _checked_rows(source)
    files = _files_by_name(images, {row.image_id for row in rows})
    return carried, (
        (row.image_id, relative_uri(files[row.image_id], folder), *row.carried)
        if row.image_id in files
        else None
        for row in rows
    )


def _checked_rows(manifest: str) -> tuple[tuple[str, ...], list[ManifestRow]]:
    with tempfile.TemporaryDirectory() as scratch:
        checked = check_manifest(manifest, into=os.path.join(scratch, "manifest.parquet"))
        groups = [read_row_group(checked.path, group) for group in range(checked.row_groups)]
    return checked.carried, [row for group in groups for row in group]


def _files_by_name(images: str, names: set[str]) -> dict[str, str]:
    """Returns the path of each file below `images` that is called one of `names`."""
    files, doubled = {}, []
    for path in source_paths(images.rstrip("/") + "/" if has_scheme(images) else images):
        file, member = split_member(path)
        name = (file if member is None else member).rpartition("/")[2]
        if name in names and files.setdefault(name, path) != path:
            doubled.append(name)
    if doubled:
        raise InputError(
            f"images must hold one file of a name. Received: {len(doubled)} names twice or more,"
            f" first {', '.join(map(repr, doubled[:3]))}. Remove the copies."
        )
    if not files:
        raise InputError(
            "images must hold files that the NIH CSV names. Received:"
            f" images={images!r}, without any. Check the path."
        )
    return files


@contextlib.contextmanager
def _whole_file(output: str) -> Iterator[str]:
    """Gives a local path of the same extension, whose file becomes `output` on success."""
    if has_scheme(output):
        with tempfile.TemporaryDirectory() as scratch:
            partial = os.path.join(scratch, os.path.basename(output))
            yield partial
            _upload(partial, output)
        return
    folder, name = os.path.split(os.path.abspath(output))
    partial = os.path.join(folder, f".{uuid.uuid4().hex}-{name}")
    try:
        os.makedirs(folder, exist_ok=True)
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
