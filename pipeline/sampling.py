"""A sample of the images that are to be scored, and what the job makes of it.

The job itself scores the sample, into a folder of its own: first as a process does that has
just begun, then as one that is warm, then more images. So what is told of a run is how the job
runs here, whatever the images lie in and whatever its options are.
"""

import dataclasses
import glob
import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.windowed_value import WindowedValue

from model.devices import prepare_gpus
from model.frozen import InferenceError
from model.scorer import CPU_BATCH_SIZE, default_batch_size
from pipeline import scoring
from pipeline.commit import ReportError
from pipeline.database import connect
from pipeline.elements import LoadedImage, RejectedImage
from pipeline.images import LoadImageDoFn
from pipeline.layout import TABLES, RunPaths, staged_parts
from pipeline.manifest import CheckedManifest, ManifestRow
from pipeline.run import score_manifest
from pipeline.run_errors import RunFailedError, RunStoppedError
from pipeline.score_options import ScoreOptions
from pipeline.setting_up import Setup
from pipeline.sharding import SHARD, in_shards
from pipeline.stopping import STOP
from pipeline.workers import cause
from schemas.errors import InputError
from schemas.tables import manifest_schema

_RUN_ID = "sample"

_PARTS, _PARTS_OF_SIX_VIEWS = 4, 2
"""How many times as many images the larger run has; with test-time augmentation each takes
six times as long."""


class MeasureError(Exception):
    """The sample could not be measured."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Images to measure with.

    Attributes:
      rows: As many as are measured; they repeat under other ids where there are too few.
      distinct: How many of them, from the first, are different images.
    """

    rows: list[ManifestRow]
    distinct: int


@dataclasses.dataclass(frozen=True)
class SampleRun:
    """What the job made of some images.

    Attributes:
      images: How many.
      record: Of the run.
      folder: Its OUTPUT.
      staged_bytes: What lay staged when all were scored.
    """

    images: int
    record: dict
    folder: Path
    staged_bytes: int

    def seconds(self, step: str) -> float:
        """Returns what a step took; 0 where it was not done."""
        return self.record["timings_s"].get(step, 0.0)

    def size_bytes(self, kind: str) -> int:
        """Returns what a kind of result takes."""
        files = self.record["files"]
        return sum(file["size_bytes"] for file in files if file["path"].startswith(f"{kind}/"))


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was measured.

    Attributes:
      decode: Images a second, read for the first time and decoded.
      inference: Images a second through the network.
      shares_cores: Whether both compute on the same cores.
      begun: The run of a process that had just begun.
      small, large: Two runs of one that was warm, of fewer and of more images.
      rejected_by_reason: Of the distinct images.
      steady_s: Seconds an image once all of several workers are at work; None where there is
        one. They begin with each run, and that takes longer than a sample.
    """

    decode: float
    inference: float
    shares_cores: bool
    begun: SampleRun
    small: SampleRun
    large: SampleRun
    rejected_by_reason: dict[str, int]
    steady_s: float | None = None


def sample_size(options: ScoreOptions) -> tuple[int, int]:
    """Returns how many images the smaller and the larger run have: whole batches each."""
    batch = options.batch_size or default_batch_size()
    # On a CPU larger batches are no faster, and would make a sample of hours.
    small = options.workers * (batch if prepare_gpus() else CPU_BATCH_SIZE)
    return small, small * (_PARTS if options.tta == "none" else _PARTS_OF_SIX_VIEWS)


def choose_sample(work: CheckedManifest, size: int, folder: Path) -> Sample:
    """Returns images from all over a manifest: by hash of the id, so that no order matters.

    Of those in archives that are read from the start, which are as many of the sample as of
    the manifest, the first few of one archive or of some are taken.

    Args:
      work: To choose from; has rows.
      size: How many.
      folder: To work in.
    """
    columns = ", ".join(f'"{name}"' for name in manifest_schema(work.carried).names)
    with connect(folder) as connection:
        found = connection.execute(
            f"SELECT {columns} FROM (SELECT *, row_number() OVER (PARTITION BY is_streamed ORDER BY"
            " spread, file_row_number) AS place, count(*) OVER (PARTITION BY is_streamed) AS alike"
            f" FROM (SELECT *, {SHARD} IS NOT NULL AS is_streamed,"
            f" hash(coalesce({SHARD}, image_id)) AS spread"
            " FROM read_parquet($work, file_row_number=true, hive_partitioning=false)))"
            " WHERE place <= ceil($size * alike / $rows) ORDER BY place / alike LIMIT $size",
            {"work": glob.escape(work.path), "size": size, "rows": work.rows},
        ).fetchall()
    rows = [ManifestRow(image_id, uri, tuple(carried)) for image_id, uri, *carried in found]
    repeated = [
        dataclasses.replace(row, image_id=f"{row.image_id} (sample {k})")
        for k, row in enumerate(itertools.islice(itertools.cycle(rows), size))
        if k >= len(rows)
    ]
    return Sample([*rows, *repeated], len(rows))


def measure_sample(
    setup: Setup, sample: Sample, small: int, folder: Path, on_step: Callable[[str], None]
) -> Measured:
    """Reads, decodes and scores a sample.

    Args:
      setup: Of the run to tell of.
      sample: For the larger run.
      small: How many of it the smaller run has.
      folder: To work in; exists.
      on_step: Called with what is done next, for people.

    Raises:
      InputError: No image of the sample can be scored.
      MeasureError: The job fails on the sample, or was asked to stop.
    """
    on_step("decoding the sample")
    # First of all: a file that was read once is in memory, and no longer as slow as its disk.
    rate, images = _decode(setup.options, sample.rows)
    ids = {row.image_id for row in sample.rows[: sample.distinct]}
    rejected = [image for image in images if isinstance(image, RejectedImage)]
    reasons = Counter(str(image.error.reason) for image in rejected if image.row.image_id in ids)
    if len(rejected) == len(images) and not STOP.requested:
        raise _nothing_to_score(sample, reasons)
    on_step("scoring it")
    runs = [
        _score(setup, sample.rows[:number], folder / str(place))
        # Each of several workers begins with its run, so none of them is ever warm.
        for place, number in enumerate((small, small, len(sample.rows)))
        if setup.options.workers == 1 or place
    ]
    if not runs[-1].record["counts"]["scored"]:
        raise _nothing_to_score(sample, Counter(runs[-1].record["rejected_by_reason"]))
    on_step("measuring the network alone")
    return Measured(
        decode=rate,
        inference=_infer(
            setup, [image.pixels for image in images if isinstance(image, LoadedImage)]
        ),
        shares_cores=not prepare_gpus(),
        begun=runs[0],
        small=runs[-2],
        large=runs[-1],
        rejected_by_reason=dict(reasons.most_common()),
        steady_s=_steady_s(runs[-1], small) if setup.options.workers > 1 else None,
    )


def steady_pace(times_s: Sequence[float], first: int) -> float:
    """Returns the seconds an image after the first ones.

    Args:
      times_s: When each was scored.
      first: How many are scored before all workers are at work; never more than half.
    """
    times_s = sorted(times_s)
    first = max(1, min(first, len(times_s) // 2))
    later = len(times_s) - first
    return (times_s[-1] - times_s[first - 1]) / later if later else 0.0


def _steady_s(run: SampleRun, first: int) -> float:
    folder = RunPaths(run.folder, _RUN_ID).published("scores")
    parts = [pq.ParquetFile(part).read(["scored_at"]) for part in staged_parts(folder)]
    times = pa.concat_tables(parts)["scored_at"].to_pylist()
    return steady_pace([time.timestamp() for time in times], first)


def _batch_size(options: ScoreOptions) -> int:
    batch = options.batch_size or default_batch_size()
    return batch if prepare_gpus() else min(batch, CPU_BATCH_SIZE)


def _nothing_to_score(sample: Sample, reasons: Counter) -> InputError:
    listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
    return InputError(
        f"A plan needs images that can be scored. Received: a sample of {sample.distinct} images,"
        f" all rejected ({listed}). Look at the manifest and at the images."
    )


def _decode(
    options: ScoreOptions, rows: Sequence[ManifestRow]
) -> tuple[float, list[LoadedImage | RejectedImage]]:
    """Returns rows a second, read and decoded as the job does it, and what they are then."""
    # All decode threads of all workers, as far as one process can keep them busy.
    load = LoadImageDoFn(options.workers * options.decode_threads, 2 * _batch_size(options))
    load.setup()
    start = time.perf_counter()
    images = [image for work in in_shards(rows) for image in load.process(work)]
    images += load.finish_bundle()
    seconds = time.perf_counter() - start
    load.teardown()
    return len(rows) / seconds, [_untagged(image) for image in images]


def _untagged(image):
    """Returns an image without what Beam says of it."""
    while isinstance(image, TaggedOutput | WindowedValue):
        image = image.value
    return image


def _infer(setup: Setup, squares: Sequence[np.ndarray]) -> float:
    """Returns images a second through the network alone, in batches."""
    pixels = np.stack(squares)
    scorer, batch = scoring.load_scorer(setup.scorer), _batch_size(setup.options)
    try:
        scorer.score(pixels[:batch])  # several workers have warmed up their own, not this one
        start = time.perf_counter()
        for first in range(0, len(pixels), batch):
            scorer.score(pixels[first : first + batch])
    except InferenceError as error:
        raise MeasureError(f"The network failed on the sample: {error}.") from error
    return len(pixels) / (time.perf_counter() - start)


def _score(setup: Setup, rows: Sequence[ManifestRow], folder: Path) -> SampleRun:
    """Runs the job over some images, into a folder of its own."""
    folder.mkdir()
    manifest, output = folder / "manifest.parquet", folder / "output"
    _write_manifest(manifest, rows, setup.settings.carried)
    given = setup.options
    is_drawn = given.gradcam_top and given.gradcam_limit
    options = dataclasses.replace(
        given,
        manifest=str(manifest),
        output=str(output),
        run_id=_RUN_ID,
        resume=False,
        only_new=False,
        retry_rejects=None,
        retry_reasons=(),
        gradcam_limit=len(rows) // 2 if is_drawn else 0,
        batch_size=_batch_size(given),
        reject_limit=1.0,
        review_budget=None,
        dicom_out=None,
        preset=None,
        beam_args=given.beam_args if setup.runner.is_local else (),
    )
    staged = {}

    def note_staged(event: str, **_) -> None:
        if event == "scored":
            parts = [part for table in TABLES for part in staged_parts(paths.parts(table))]
            staged["bytes"] = sum(Path(part).stat().st_size for part in parts)

    paths = RunPaths(output, _RUN_ID)
    try:
        record = score_manifest(options, note_staged, setup.workers.prepare)
    except RunStoppedError as error:
        raise MeasureError("The plan was stopped. Nothing was written.") from error
    except RunFailedError as error:
        raise MeasureError(
            f"The sample could not be scored ({cause(error.__cause__)}), so a run would fail too."
        ) from error
    except ReportError as error:
        raise MeasureError(
            f"The report of the sample could not be made ({cause(error.__cause__)}). Plan, and"
            " run, with --no-report."
        ) from error
    return SampleRun(len(rows), record, output, staged["bytes"])


def _write_manifest(path: Path, rows: Sequence[ManifestRow], carried: tuple[str, ...]) -> None:
    columns = zip(*((row.image_id, row.uri, *row.carried) for row in rows), strict=True)
    arrays = [pa.array(values, pa.string()) for values in columns]
    pq.write_table(pa.table(arrays, manifest_schema(carried)), path)
