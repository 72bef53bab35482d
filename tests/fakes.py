"""A scorer without a network, images it knows how to read, and runs made of them."""

import dataclasses
import datetime
import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from model.bundle import BundleInfo
from model.frozen import InferenceError
from model.scorer import Scores
from model.serving import ScorerSettings
from model.thresholds import Threshold, threshold_vector
from pipeline import scoring
from pipeline.commit import CommitSettings
from pipeline.comparison import EarlierRun
from pipeline.drawing import DrawingSettings
from pipeline.elements import ImageFacts, LoadedImage, RejectedImage, ScoredImage
from pipeline.job import ScoringJob
from pipeline.layout import RunPaths
from pipeline.manifest import CheckedManifest, ManifestRow
from pipeline.planning import WorkPlan
from pipeline.record import RunFacts
from pipeline.rows import reject_row, score_row
from pipeline.run_state import RunState
from pipeline.runner import choose_runner
from pipeline.settings import RowSettings
from pipeline.urgency import load_urgency
from schemas.contract import STANDARD_CONTRACT
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS
from schemas.rejects import ImageError, Reason
from schemas.tables import REJECTS_SCHEMA, manifest_schema, scores_schema

SIDE = 224
BAND = 14
"""Rows of a picture that say one score; 15 of them, and 14 rows are left for the mark."""

NAN_SCORE, INFINITE_SCORE, NAN_CAM, BLANK_CAMS, POISON = range(1, 6)
"""Marks: what the fake scorer is to do with a picture beside scoring it."""

LOCAL = choose_runner([])
MODEL_ID = "0123456789ab"
THRESHOLDS_ID = "ba9876543210"


def picture(levels: Mapping[str, int] | int = 0, mark: int = 0) -> np.ndarray:
    """Returns uint8 `(224, 224)`: a band a finding, whose grey level is 255 times its score."""
    if isinstance(levels, int):
        levels = dict.fromkeys(FINDINGS, levels)
    pixels = np.full((SIDE, SIDE), mark, np.uint8)
    for index, finding in enumerate(FINDINGS):
        pixels[index * BAND : (index + 1) * BAND] = levels.get(finding, 0)
    return pixels


def varied_picture(index: int) -> np.ndarray:
    """Returns a picture with other scores for each index, at least one of them high."""
    return picture({name: (71 * index + 53 * k) % 256 for k, name in enumerate(FINDINGS)})


def write_picture(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


class FakeScorer:
    """Scores by pixels alone, so that no batch can change a row; remembers its batches."""

    def __init__(self):
        self.batches: list[int] = []

    def score(self, images: np.ndarray) -> Scores:
        self.batches.append(len(images))
        marks = [
            int(image[-1, 0]) if (image[-BAND:] == image[-1, 0]).all() else 0 for image in images
        ]
        if POISON in marks:
            raise InferenceError("InvalidArgumentError")
        count, rows = len(images), len(FINDINGS) * BAND
        bands = images[:, :rows].reshape(count, len(FINDINGS), -1)
        scores = (bands.mean(axis=2, dtype=np.float64) / 255).astype(np.float32)
        cells = images.reshape(count, 7, SIDE // 7, 7, SIDE // 7).mean(
            axis=(2, 4), dtype=np.float64
        )
        highest = np.maximum(cells.max(axis=(1, 2), keepdims=True), 1)
        cams = np.stack([np.roll(cells / highest, k, axis=1) for k in range(len(FINDINGS))], axis=1)
        cams = cams.astype(np.float32)
        for index, mark in enumerate(marks):
            if mark in (NAN_SCORE, INFINITE_SCORE):
                scores[index, 3] = np.nan if mark == NAN_SCORE else np.inf
            elif mark == NAN_CAM:
                cams[index, 3, 6, 6] = np.nan
            elif mark == BLANK_CAMS:
                cams[index] = 0
        return Scores(scores, cams, np.ones(count, np.int8))

    def install(self, monkeypatch) -> "FakeScorer":
        """Takes the place of every real scorer, also in pickled DoFns: workers are threads."""
        monkeypatch.setattr(scoring, "load_scorer", lambda settings: self)
        return self


def make_thresholds(threshold: float = 0.5) -> dict[str, Threshold]:
    value = Threshold(float(np.float32(threshold)), 0.8, 0.7, 0.9, 0.5, 10)
    return dict.fromkeys(ABNORMAL_FINDINGS, value)


def make_bundle() -> BundleInfo:
    return BundleInfo(
        title="Fake network",
        statement="For tests.",
        findings=FINDINGS,
        input_contract=STANDARD_CONTRACT,
        training_precision="float32",
        thresholds={"none": make_thresholds()},
        borderline_band=0.0,
        metrics={"flag_rate": {"none": 0.25}},
        provenance={},
        model_sha256=hashlib.sha256(b"").hexdigest(),
    )


def make_job(
    output: Path,
    rows: list[ManifestRow],
    *,
    carried: tuple[str, ...] = (),
    rows_a_group: int = 1000,
    batch_size: int = 4,
    thresholds: Mapping[str, Threshold] | None = None,
    run_id: str = "r1",
) -> ScoringJob:
    """Writes the checked manifest of a run and returns the job to score it."""
    paths = RunPaths(output, run_id)
    paths.staging.mkdir(parents=True)
    columns = [(row.image_id, row.uri, *row.carried) for row in rows]
    schema = manifest_schema(carried)
    arrays = [pa.array(values, pa.string()) for values in zip(*columns, strict=True)]
    pq.write_table(pa.table(arrays, schema), paths.manifest, row_group_size=rows_a_group)
    manifest = CheckedManifest(
        str(paths.manifest), len(rows), -(-len(rows) // rows_a_group), carried
    )
    return ScoringJob(
        paths=paths,
        manifest=manifest,
        plan=WorkPlan(manifest),
        scorer=ScorerSettings("no bundle", MODEL_ID, "float32", "none"),
        thresholds=thresholds or make_thresholds(),
        thresholds_id=THRESHOLDS_ID,
        calibration=None,
        batch_size=batch_size,
        decode_threads=2,
        redact_uris=False,
    )


def make_settings(
    *,
    reject_limit: float = 1.0,
    top: int = 0,
    limit: int = 1000,
    budget: float | int | None = None,
    report: bool = False,
    find_earlier: Callable[[dict], EarlierRun | None] = lambda record: None,
) -> CommitSettings:
    """Returns commit settings; nothing is drawn and no report made unless asked for."""
    return CommitSettings(
        bundle=make_bundle(),
        drawing=DrawingSettings(top=top, limit=limit, note="Fake network. Not for diagnosis."),
        reject_limit=reject_limit,
        review_budget=budget,
        urgency=load_urgency(),
        urgent_first=False,
        report=report,
        find_earlier=find_earlier,
    )


def make_row_settings(**changes) -> RowSettings:
    settings = RowSettings(
        model_id=MODEL_ID,
        thresholds_id=THRESHOLDS_ID,
        tta="none",
        borderline=None,
        precision="float32",
        redact_uris=False,
        carried=(),
        gradcam_top=0,
        gate=None,
        feature_distance=None,
        software_version="0.1.0",
    )
    return dataclasses.replace(settings, **changes)


def make_state(settings: RowSettings | None = None) -> RunState:
    settings = settings or make_row_settings()
    started = datetime.datetime(2026, 11, 22, 4, 29, tzinfo=datetime.UTC)
    return RunState(settings.to_json(), settings.digest, started, options={}, parent_run=None)


def make_facts() -> RunFacts:
    return RunFacts(
        state=make_state(),
        settings=make_row_settings(),
        manifest_sha256="cd" * 32,
        runner=LOCAL.name,
        options={"manifest": "manifest.csv"},
        timings_s={"score": 1.25},
        read_retries=0,
    )


def manifest_row(image_id: str, uri: object = "/nowhere.png", carried: tuple = ()) -> ManifestRow:
    return ManifestRow(image_id, str(uri), carried)


def loaded_image(image_id: str, pixels: np.ndarray) -> LoadedImage:
    facts = ImageFacts(SIDE, SIDE, 1234, "1700000000123456789", "ab" * 32, 100.0, 10.0)
    return LoadedImage(manifest_row(image_id), facts, pixels)


def scored_image(image_id: str, pixels: np.ndarray, uri: object = "/nowhere.png") -> ScoredImage:
    """Returns what the pipeline makes of a picture, without a pipeline."""
    loaded = loaded_image(image_id, pixels)
    result = FakeScorer().score(pixels[np.newaxis])
    row = manifest_row(image_id, uri)
    return ScoredImage(row, loaded.facts, result.scores[0], result.cams[0], 1)


def scores_of(
    image_id: str, pixels: np.ndarray | None = None, uri: object = "/nowhere.png", **changes
) -> dict:
    """Returns a row of the scores table; `changes` replace or add columns."""
    image = scored_image(image_id, picture() if pixels is None else pixels, uri)
    ids = {"model_id": MODEL_ID, "thresholds_id": THRESHOLDS_ID}
    return {
        **score_row(image, threshold_vector(make_thresholds()), None, ids, (), False),
        **changes,
    }


def reject_of(image_id: str, reason: Reason = Reason.CORRUPT) -> dict:
    """Returns a row of the rejects table."""
    return reject_row(
        RejectedImage(manifest_row(image_id), ImageError(reason, "bad"), 9, "17"), False
    )


def stage(
    paths: RunPaths, table: str, name: str, rows: list[dict], carried: tuple[str, ...] = ()
) -> str:
    """Writes a staged part called `name` and returns its path."""
    schema = scores_schema(carried) if table == "scores" else REJECTS_SCHEMA
    path = paths.parts(table) / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return str(path)


def read_rows(files: Iterable[Path | str]) -> list[dict]:
    """Returns the rows of Parquet files in order, without a name of a folder as a column."""
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def staged_rows(paths: RunPaths, table: str) -> list[dict]:
    return read_rows(sorted(paths.parts(table).glob("*.parquet")))


def tree(folder: Path) -> list[str]:
    """Returns all files below `folder`, relative to it, hidden ones too."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


_COLLECTED: dict[str, list] = {}


def _collect(element, name: str) -> None:
    _COLLECTED[name].append(element)


def collect(build: Callable[[beam.Pipeline], Mapping[str, beam.PCollection]]) -> dict[str, list]:
    """Runs a pipeline here and returns what its outputs held, in the order it came."""

    def build_and_collect(pipeline):
        for name, pcoll in build(pipeline).items():
            _COLLECTED[name] = []
            pcoll | f"Collect_{name}" >> beam.Map(_collect, name)

    _COLLECTED.clear()
    LOCAL.run(build_and_collect)
    return dict(_COLLECTED)
