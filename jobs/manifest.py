"""The command `manifest`: lists images into a manifest."""

import click

from jobs.command import Command


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
def manifest_command(sources: tuple[str, ...], output: str, images: str | None) -> None:
    """List images into a manifest that `score` reads.

    SOURCE is a folder, a glob, a prefix such as gs://bucket/folder/, an image, or
    the NIH Data_Entry CSV, alone, with --images. Files are listed if they end in
    .png, .jpg or .jpeg; what does not, and linked folders, count as left out. Of
    sources that overlap, the first lists the image.
    """
    from pipeline.listing import list_images

    listing = list_images(sources, output=output, images=images)
    images_listed = f"{listing.rows:,} image{'' if listing.rows == 1 else 's'}"
    click.echo(f"{images_listed} listed in {output}; {listing.left_out:,} left out.")
