"""`prescreen sample`: a synthetic archive to try everything on."""

import shlex
from pathlib import Path

import click

from jobs.command import Command


def _check_manifest(
    context: click.Context, parameter: click.Parameter, manifest: Path | None
) -> Path | None:
    if manifest is not None and manifest.suffix != ".csv":
        raise click.BadParameter(f"FILE must end in .csv. Received: {manifest.name}.")
    return manifest


@click.command(name="sample", cls=Command)
@click.argument("dest", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--count",
    type=click.IntRange(min=1),
    default=20,
    show_default=True,
    help="Number of phantoms.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Names the archive: the same seed gives the same files.",
)
@click.option(
    "--size",
    type=click.IntRange(min=64),
    default=1024,
    show_default=True,
    help="Height and width of a phantom, in pixels.",
)
@click.option(
    "--manifest",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    callback=_check_manifest,
    show_default="DEST/manifest.csv",
    help="Where to write the manifest, a CSV file.",
)
@click.option(
    "--layout",
    type=click.Choice(["files", "tar"]),
    default="files",
    show_default=True,
    help="A file an image, or all images in DEST/images.tar.",
)
def sample_command(
    dest: Path, count: int, seed: int, size: int, manifest: Path | None, layout: str
) -> None:
    """Write a synthetic archive to DEST, a new or empty local folder.

    Phantom radiographs with known findings: PNG and JPEG images, a manifest with
    labels, and boxes.csv with the place of each finding. Good for trying things
    out; nothing learnt from phantoms says anything about patients.
    """
    from tqdm import tqdm

    from model.sample_archive import write_sample_archive

    manifest = manifest or dest / "manifest.csv"
    # disable=None: no bar where standard error is not a terminal.
    with tqdm(total=count, unit="image", disable=None) as bar:
        write_sample_archive(
            dest,
            count=count,
            seed=seed,
            size=size,
            manifest=manifest,
            as_tar=layout == "tar",
            on_image=bar.update,
        )
    noun = "phantom" if count == 1 else "phantoms"
    path = shlex.quote(str(manifest))
    click.echo(
        f"Wrote {count} {noun} and {manifest}."
        f" Next: prescreen score --manifest {path} --output results"
    )
