"""The command `manifest`: lists images into a manifest."""

import typing

import click

from jobs.command import Command

if typing.TYPE_CHECKING:
    from pipeline.listing import Listing


@click.command(name="manifest", cls=Command)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option(
    "--output",
    required=True,
    metavar="FILE",
    help="Manifest to write: .csv, .tsv, .jsonl (each also with .gz) or .parquet.",
)
@click.option(
    "--images",
    metavar="DIR",
    default=None,
    show_default="none",
    help="Folder of the images that the NIH CSV names, searched at any depth.",
)
@click.option(
    "--dicom",
    is_flag=True,
    help="Read the headers of DICOM files: ids, patients, dates, views, modalities.",
)
@click.option(
    "--hash-key",
    metavar="FILE",
    default=None,
    show_default="none",
    help="Hash the ids of images and patients under the key in FILE, made if not there.",
)
def manifest_command(
    sources: tuple[str, ...],
    output: str,
    images: str | None,
    dicom: bool,
    hash_key: str | None,
) -> None:
    """List images into a manifest that `score` reads.

    SOURCE is a folder, a glob, a prefix such as gs://bucket/folder/, an image, a
    DICOMDIR, or the NIH Data_Entry CSV, alone, with --images. Files are listed if
    they end in .png, .jpg, .jpeg, .dcm or .dicom; what does not, and linked
    folders, count as left out. With --dicom, files without an extension are listed
    if they hold DICOM, and radiographs alone: CR, DX or RG. Of sources that
    overlap, the first lists the image.
    """
    from pipeline.listing import list_images

    listing = list_images(sources, output=output, images=images, dicom=dicom, hash_key=hash_key)
    if listing.new_key:
        click.echo(f"Made a new key, {hash_key}: keep it, for another gives other ids.", err=True)
    for remark in _remarks(listing, dicom):
        click.echo(remark, err=True)
    click.echo(
        f"{_number(listing.rows, 'image')} listed in {output}; {listing.left_out:,} left out."
    )


def _remarks(listing: "Listing", dicom: bool) -> list[str]:
    """Returns what to say of DICOM files that have no row, or less in it than others."""
    remarks = []
    if listing.other_modalities:
        counts = ", ".join(
            f"{number:,} {code}" for code, number in listing.other_modalities.items()
        )
        remarks.append(f"Left out, by modality: {counts}.")
    if listing.copies:
        files = _number(listing.copies, "file")
        remarks.append(f"Left out: {files} with the SOPInstanceUID of one that is listed.")
    if listing.without_header and dicom:
        files = _number(listing.without_header, "DICOM file")
        remarks.append(f"Listed by path, since the header says no id: {files}.")
    elif listing.without_header:
        files = _number(listing.without_header, "DICOM file")
        remarks.append(f"Listed by path: {files}; --dicom reads ids and patients from the headers.")
    return remarks


def _number(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
