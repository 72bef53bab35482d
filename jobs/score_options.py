"""The options of `score`, which `plan` has as well."""

import typing
from collections.abc import Callable

import click

from jobs.options import (
    batch_size_option,
    log_json_option,
    model_option,
    precision_option,
    quiet_option,
    thresholds_option,
    tta_option,
)
from pipeline.presets import PRESETS
from schemas.quality import Gate
from schemas.rejects import Reason

if typing.TYPE_CHECKING:
    from pipeline.score_options import ScoreOptions


class ReviewBudget(click.ParamType):
    """A share of the archive (with a decimal point) or a number of images."""

    name = "fraction|n"

    def convert(self, value, param, context):
        """Returns a float for a share, an int for a number."""
        if isinstance(value, int | float):
            return value
        try:
            budget = float(value) if "." in value else int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a share such as 0.2 nor a number.", param, context)
        if budget < 0 or (isinstance(budget, float) and budget > 1):
            self.fail(f"{value} is not from 0.0 to 1.0, nor a number of images.", param, context)
        return budget


_OPTIONS = (
    click.option("--manifest", required=True, metavar="FILE", help="Which images to score."),
    click.option("--output", required=True, metavar="DIR", help="Folder of all runs."),
    model_option,
    click.option("--run-id", metavar="ID", show_default="start in UTC", help="Names the run."),
    click.option(
        "--resume",
        is_flag=True,
        help="Go on with --run-id, or with the newest unfinished run of the same settings; start"
        " anew where there is none.",
    ),
    click.option(
        "--only-new",
        is_flag=True,
        help="Skip images whose files have not changed since a published run of the same model and"
        " settings scored or rejected them.",
    ),
    click.option(
        "--retry-rejects",
        metavar="RUN",
        help="Score only the images of the manifest that a published run, OUTPUT/runs/ID.json,"
        " rejected.",
    ),
    click.option(
        "--retry-reason",
        "retry_reasons",
        multiple=True,
        type=click.Choice([reason.value for reason in Reason]),
        metavar="CODE",
        help="With --retry-rejects: only those rejected for this reason; repeatable.",
    ),
    thresholds_option,
    tta_option,
    click.option(
        "--gradcam-top",
        type=click.IntRange(0, 14),
        default=3,
        metavar="K",
        help="Findings drawn per flagged image.",
    ),
    click.option(
        "--gradcam-limit",
        type=click.IntRange(0),
        default=1000,
        metavar="N",
        help="Images drawn, highest rank first.",
    ),
    batch_size_option,
    precision_option,
    click.option(
        "--decode-threads",
        type=click.IntRange(1),
        metavar="N",
        show_default="number of cores / workers",
        help="Images that a worker decodes at once.",
    ),
    click.option(
        "--workers",
        type=click.IntRange(1),
        default=1,
        metavar="N",
        help="Processes that score; each loads the network and takes its share of the cores.",
    ),
    click.option(
        "--preset",
        type=click.Choice(list(PRESETS)),
        metavar="NAME",
        help="What a runner's workers are: "
        + " or ".join(PRESETS)
        + ". What is given after -- counts"
        " before it.",
    ),
    click.option(
        "--reject-limit",
        type=click.FloatRange(0, 1),
        default=0.01,
        metavar="FRACTION",
        help="Share of all manifest rows that may be rejected.",
    ),
    click.option(
        "--review-budget",
        type=ReviewBudget(),
        metavar="FRACTION|N",
        show_default="all flagged",
        help="Images in the worklist, as a share of the manifest or a number.",
    ),
    click.option(
        "--urgency",
        metavar="FILE",
        show_default="an example",
        help="Tier of each finding as TOML, 1 for what is to be read first.",
    ),
    click.option(
        "--urgent-first",
        is_flag=True,
        help="Rank the worklist by the tier of the most urgent finding, then by abnormality.",
    ),
    click.option(
        "--carry", multiple=True, metavar="COLUMN", help="Manifest column copied to the scores."
    ),
    click.option(
        "--gate",
        type=click.Choice([gate.value for gate in Gate]),
        default=Gate.FLAG.value,
        help="Images whose scores are not to be believed, by their quality codes: rank them behind"
        " all others, reject them, or do nothing.",
    ),
    click.option(
        "--redact-uris",
        is_flag=True,
        help="Keep uris, and ids made from them, out of everything that is published.",
    ),
    click.option(
        "--no-report", is_flag=True, help="Make no report of the run, and compare with none."
    ),
    click.option(
        "--dicom-out",
        metavar="DIR",
        show_default="none",
        help="Folder of this machine for the reading room: overlays and flagged findings of the"
        " images drawn as DICOM objects. They name patients.",
    ),
    log_json_option,
    quiet_option,
    click.argument("beam_args", nargs=-1, type=click.UNPROCESSED),
)


def score_options(command: Callable) -> Callable:
    """Gives a command the options of `score`, and what follows `--`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_score_options(retry_rejects: str | None, retry_reasons: tuple[str, ...]) -> None:
    """Checks what can be told of the options before anything heavy is loaded."""
    if retry_reasons and retry_rejects is None:
        raise click.UsageError("--retry-reason needs --retry-rejects.")


def make_score_options(bundle: str | None, **options) -> "ScoreOptions":
    """Returns the options as a run takes them, with what is left to this machine or a preset.

    Args:
      bundle: None for the demonstration.
      **options: All others, but for `--log-json` and `--quiet`.
    """
    from model.bundle import demo_bundle_path
    from pipeline.score_options import ScoreOptions
    from pipeline.workers import cores_a_worker

    _suit_workers(options)
    options["decode_threads"] = options["decode_threads"] or cores_a_worker(options["workers"])
    return ScoreOptions(bundle=bundle or demo_bundle_path(), **options)


def _suit_workers(options: dict) -> None:
    """Puts what a preset says of its workers in place of what this machine would suggest."""
    if options["preset"] is None:
        return
    preset = PRESETS[options["preset"]]
    options["batch_size"] = options["batch_size"] or preset.batch_size
    options["decode_threads"] = options["decode_threads"] or preset.decode_threads
    if options["precision"] == "auto":
        options["precision"] = preset.precision
