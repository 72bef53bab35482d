"""The stages that `benchmark` measures, on the same images, by the code that `score` runs."""

import csv
import dataclasses
import functools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from model.bundle import BundleInfo, load_bundle_info, load_network
from model.devices import resolve_precision
from model.folding import fold_batch_norms
from model.frozen import FrozenGraph, freeze
from model.network import set_precision
from model.overlays import overlay_note
from model.scorer import Scorer, default_batch_size
from model.serving import build_scorer, choose_thresholds, scorer_settings
from model.thresholds import flagged_findings, threshold_vector
from pipeline.benchmark import (
    DECODE,
    END_TO_END,
    INFERENCE,
    OVERLAYS,
    PUBLISHED,
    START,
    TTA_ALL,
    TTA_BORDERLINE,
    WITHOUT_MAPS,
    Stage,
)
from pipeline.drawing import DrawingSettings, PlannedImage, draw_image
from pipeline.elements import LoadedImage
from pipeline.images import READS_AT_ONCE, ImageLoader, load_image
from pipeline.layout import RunPaths
from pipeline.manifest import ManifestRow, check_manifest, read_row_group
from pipeline.read_ahead import ReadAhead
from pipeline.run import score_manifest
from pipeline.score_options import ScoreOptions
from pipeline.uris import is_streamed
from schemas.errors import InputError
from schemas.findings import FINDINGS

_MOST_DRAWN = 64
"""Images drawn in a repeat."""

_TTA_PART = 4
"""One in so many images goes through test-time augmentation, which takes six times as long."""


@dataclasses.dataclass(frozen=True)
class BenchmarkOptions:
    """The options of `benchmark`, one attribute each; see its help for their meaning.

    `batch_size` is None for what suits the device.
    """

    manifest: str
    bundle: str
    images: int
    repeats: int
    batch_size: int | None
    precision: str
    decode_threads: int


class Workbench:
    """Images, networks and a folder, made ready to be measured with.

    Attributes:
      manifest: CSV of the images, with absolute uris.
      images: How many they are.
      batch_size: Images a batch.
      borderline_share: Share of the images measured that get a second look with
        `--tta borderline`; None where the bundle does not know what that is.
      scores: Folder of the scores that the last whole run published.
    """

    def __init__(self, options: BenchmarkOptions, folder: Path):
        """Loads all that the stages work on.

        Args:
          options: Of the command.
          folder: To work in; exists.

        Raises:
          InputError: The manifest or the bundle breaks a rule, or an image cannot be
            decoded.
        """
        self._options = options
        self._folder = folder
        info = load_bundle_info(options.bundle)
        rows = _sample(options.manifest, options.images, folder)
        self.images = len(rows)
        self.batch_size = min(options.batch_size or default_batch_size(), self.images)
        self.manifest = folder / "images.csv"
        _write_manifest(self.manifest, rows)
        self._rows = rows
        self._loaded = {row.uri: _loaded(row) for row in _distinct(rows)}
        self._pixels = np.stack([self._loaded[row.uri].pixels for row in rows])
        self._scorers = dict(_scorers(options, info))
        self._without_maps = _without_maps(options)
        self._drawing = DrawingSettings(top=3, limit=_MOST_DRAWN, note=overlay_note(info.title))
        self._thresholds = choose_thresholds(info, "none")
        self._planned = list(self._plan_drawings())
        self.borderline_share = self._measure_borderline_share()
        self.scores: Path | None = None

    def stages(self) -> list[Stage]:
        """Returns what this machine, bundle and manifest let be measured."""
        stages = [
            Stage(DECODE, self.images, self._decode),
            Stage(INFERENCE, self.images, functools.partial(self._infer, "none", self.images)),
            Stage(WITHOUT_MAPS, self.images, self._infer_without_maps),
        ]
        for mode, name in (("all", TTA_ALL), ("borderline", TTA_BORDERLINE)):
            if mode in self._scorers:
                work = functools.partial(self._infer, mode, self._tta_images)
                stages.append(Stage(name, self._tta_images, work))
        if self._planned:
            stages.append(Stage(OVERLAYS, len(self._planned), self._draw))
        return [*stages, Stage(END_TO_END, self.images, self._score)]

    @property
    def _tta_images(self) -> int:
        """How many images go through test-time augmentation: whole batches."""
        batches = max(self.images // _TTA_PART // self.batch_size, 1)
        return batches * self.batch_size

    def _decode(self) -> None:
        threads = self._options.decode_threads
        self._in_threads(ImageLoader(threads), self._rows, READS_AT_ONCE, 2 * self.batch_size)

    def _in_threads(self, work: Callable, items: Sequence, threads: int, depth: int) -> None:
        ahead = ReadAhead(work, threads=min(threads, depth), depth=depth)
        for item in items:
            list(ahead.put(item))
        list(ahead.drain())
        ahead.close()

    def _batches(self, images: int) -> Iterator[np.ndarray]:
        for start in range(0, images, self.batch_size):
            yield self._pixels[start : min(start + self.batch_size, images)]

    def _infer(self, mode: str, images: int) -> None:
        for batch in self._batches(images):
            self._scorers[mode].score(batch)

    def _infer_without_maps(self) -> None:
        for batch in self._batches(self.images):
            self._without_maps(batch)

    def _measure_borderline_share(self) -> float | None:
        if "borderline" not in self._scorers:
            return None
        scorer = self._scorers["borderline"]
        views = [scorer.score(batch).views for batch in self._batches(self._tta_images)]
        return float((np.concatenate(views) > 1).mean())

    def _plan_drawings(self) -> Iterator[PlannedImage]:
        """Gives what `pipeline.drawing` would draw of the first flagged images."""
        vector = threshold_vector(self._thresholds)
        for row, pixels in zip(self._rows[:_MOST_DRAWN], self._pixels, strict=False):
            scored = self._scorers["none"].score(pixels[None])
            flagged = flagged_findings(scored.scores[0], vector)
            if len(flagged):
                yield PlannedImage(
                    row.image_id,
                    row.uri,
                    self._loaded[row.uri].facts.source_version,
                    scored.scores[0].tolist(),
                    [{"finding": FINDINGS[k], "grid": scored.cams[0, k].ravel()} for k in flagged],
                )

    def _draw(self) -> None:
        thresholds = {name: value.threshold for name, value in self._thresholds.items()}
        paths = RunPaths(self._folder, "drawing")

        def draw(planned, watch):
            return list(draw_image(planned, paths, thresholds, self._drawing, watch))

        threads = self._options.decode_threads
        self._in_threads(draw, self._planned, threads, 2 * threads)

    def _score(self) -> dict[str, float]:
        """Runs the whole job; returns what its own clocks say, start-up apart."""
        output = Path(tempfile.mkdtemp(dir=self._folder))
        options = ScoreOptions(
            manifest=str(self.manifest),
            output=str(output),
            bundle=self._options.bundle,
            gradcam_limit=0,
            no_report=True,
            batch_size=self.batch_size,
            precision=self._options.precision,
            decode_threads=self._options.decode_threads,
        )
        timings = score_manifest(options, lambda event, **facts: None)["timings_s"]
        self.scores = output / "scores"
        return {
            END_TO_END: timings["score"],
            PUBLISHED: timings["score"] + timings["write"],
            START: timings["start"],
        }


def _sample(manifest: str, count: int, folder: Path) -> list[ManifestRow]:
    """Returns the first `count` rows; where there are fewer, they come again under other ids."""
    checked = check_manifest(manifest, into=str(folder / "manifest.parquet"))
    rows: list[ManifestRow] = []
    for index in range(checked.row_groups):
        rows += read_row_group(checked.path, index)
        if len(rows) >= count:
            break
    return [
        dataclasses.replace(rows[k % len(rows)], image_id=f"{k:08d}", carried=())
        for k in range(count)
    ]


def _distinct(rows: Sequence[ManifestRow]) -> Iterable[ManifestRow]:
    """Returns the first row of each file."""
    return {row.uri: row for row in reversed(rows)}.values()


def _write_manifest(path: Path, rows: Sequence[ManifestRow]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "uri"])
        writer.writerows((row.image_id, row.uri) for row in rows)


def _loaded(row: ManifestRow) -> LoadedImage:
    if is_streamed(row.uri):
        raise InputError(
            "A benchmark needs images that are files, or members of plain tar archives here."
            f" Received: row {int(row.image_id) + 1} of the manifest, in another archive."
            " Unpack that."
        )
    image = load_image(row)
    if isinstance(image, LoadedImage):
        return image
    raise InputError(
        "A benchmark needs images that can be scored. Received: the image in row"
        f" {int(row.image_id) + 1} of the manifest is rejected as {image.error.reason.value}."
        " Leave it out."
    )


def _scorers(options: BenchmarkOptions, info: BundleInfo) -> Iterator[tuple[str, Scorer]]:
    """Gives the scorer of each mode of test-time augmentation that the bundle lets be run."""
    for mode in ("none", "all", "borderline"):
        if mode == "borderline" and not (info.borderline_band and "none" in info.thresholds):
            continue
        settings = scorer_settings(options.bundle, info, tta=mode, precision=options.precision)
        yield mode, build_scorer(settings)


def _without_maps(options: BenchmarkOptions) -> FrozenGraph:
    network = fold_batch_norms(load_network(options.bundle))
    precision = resolve_precision(options.precision)
    set_precision(network, precision)
    return freeze(lambda squares: [network(squares, training=False)], precision)
