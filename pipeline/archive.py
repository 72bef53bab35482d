"""The pipeline that scores an archive, from manifest rows to staged parts."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import apache_beam as beam

from model.bundle import bundle_files
from model.object_store import SCHEME
from model.serving import ScorerSettings
from pipeline import images, scoring
from pipeline.images import READS_RETRIED, LoadImages
from pipeline.job import ScoringJob
from pipeline.layout import TABLES, RunPaths
from pipeline.manifest import read_row_group
from pipeline.mirror import send
from pipeline.rows import ApplyThresholds, reject_row
from pipeline.runner import Runner, counter
from pipeline.scoring import ScoreImages
from pipeline.sharding import in_shards
from pipeline.staging import StageRows
from pipeline.stopping import STOP
from pipeline.workers import ALONE, Workers, hand_out
from schemas.tables import REJECTS_SCHEMA, scores_schema


def share_bundle(paths: RunPaths, scorer: ScorerSettings) -> ScorerSettings:
    """Returns the settings with a bundle that workers on other machines reach.

    A local one is copied into the staging of a run on a store, and goes with it.
    """
    if paths.store is None or scorer.bundle.startswith(SCHEME):
        return scorer
    folder, local = paths.staging / "bundle", Path(scorer.bundle)
    names = bundle_files(scorer.bundle)
    paths.store.upload((local / name, paths.name_of(folder / name)) for name in names)
    return dataclasses.replace(scorer, bundle=paths.shared(folder))


class ReadManifest(beam.PTransform):
    """Rows of a checked manifest; those of a shard together.

    The only shuffle of the whole pipeline is here, where a row is a hundred bytes.

    Args:
      path: The checked manifest, where every worker reaches it.
      row_groups: Which of its row groups.
    """

    def __init__(self, path: str, row_groups: Iterable[int]):
        super().__init__()
        self._path = path
        self._row_groups = list(row_groups)

    def expand(self, pipeline):
        path = self._path
        return (
            pipeline
            | "RowGroups" >> beam.Create(self._row_groups, reshuffle=False)
            | "ReadRowGroup" >> beam.FlatMap(lambda index: in_shards(read_row_group(path, index)))
            | "ShuffleRows" >> beam.Reshuffle()
        )


class ScoreRows(beam.PTransform):
    """Manifest rows in; staged parts of scores and rejects out.

    One composite and one fused stage, so that a resource hint on it keeps decoding,
    inference and staging in one environment: a hint on a part of it would send what
    flows there through a shuffle. Rejects are staged where they arise, since a
    Flatten of both kinds would end the stage.
    """

    def __init__(self, job: ScoringJob):
        super().__init__()
        self._job = job

    def expand(self, rows):
        job = self._job
        scores, rejects = (job.paths.shared(job.paths.parts(table)) for table in TABLES)
        # While the network is busy with one batch, the threads fill the next.
        load = LoadImages(
            threads=job.decode_threads, read_ahead=2 * job.batch_size, checks=job.checks
        )
        loaded = rows | load
        score = ScoreImages(job.scorer, job.batch_size, job.checks.rejects)
        scored = loaded[images.LOADED] | score
        carried = job.manifest.carried
        (
            scored[scoring.SCORED]
            | ApplyThresholds(
                job.thresholds,
                calibration=job.calibration,
                model_id=job.scorer.model_id,
                thresholds_id=job.thresholds_id,
                carried=carried,
                redact_uris=job.redact_uris,
            )
            | "StageScores" >> StageRows(scores, scores_schema(carried))
        )
        rejected = {"load": loaded[images.REJECTED], "inference": scored[scoring.REJECTED]}
        for step, found in rejected.items():
            (
                found
                | f"Row_rejected_at_{step}" >> beam.Map(reject_row, job.redact_uris)
                | f"Stage_rejected_at_{step}" >> StageRows(rejects, REJECTS_SCHEMA)
            )


class ScoreArchive(beam.PTransform):
    """Some row groups of a manifest in; staged parts of scores and rejects out.

    Args:
      job: What to score.
      row_groups: Of the manifest that is left to score.
      resource_hints: What the stage that decodes and infers asks of its machines.
    """

    def __init__(
        self,
        job: ScoringJob,
        row_groups: Iterable[int],
        resource_hints: Mapping[str, str] | None = None,
    ):
        super().__init__()
        self._job = job
        self._row_groups = list(row_groups)
        self._hints = resource_hints or {}

    def expand(self, pipeline):
        work = self._job.paths.shared(Path(self._job.plan.work.path))
        rows = pipeline | ReadManifest(work, self._row_groups)
        rows | ScoreRows(self._job).with_resource_hints(**self._hints)


def score_archive(job: ScoringJob, runner: Runner, workers: Workers = ALONE) -> int:
    """Scores what is left of the manifest into staged parts.

    A local runner gets the rows in waves of a row group, because it holds what it
    shuffles in memory and loses it with the process; the scorer stays loaded between
    waves. Several workers take the waves in turn. Any other runner gets all rows in one
    pipeline. Ends early, between or within waves, once a stop is requested.

    Args:
      job: What to score.
      runner: Local where there are several workers.
      workers: Processes that score; what they stage is all they share.

    Returns:
      How many reads were tried again.

    Raises:
      WorkerError: One of several workers died or failed.
    """
    groups = range(job.plan.work.row_groups)
    if groups:
        send(job.paths, Path(job.plan.work.path))
    if workers.number > 1:
        return sum(hand_out(groups, functools.partial(_score_in_worker, job, runner), workers))
    retries = 0
    waves = [[group] for group in groups] if runner.is_local else [groups] if groups else []
    for wave in waves:
        if STOP.requested:
            break
        retries += _score_wave(job, runner, wave)
    return retries


def _score_wave(job: ScoringJob, runner: Runner, wave: Iterable[int]) -> int:
    def build(pipeline: beam.Pipeline) -> None:
        pipeline | ScoreArchive(job, wave, runner.resource_hints)

    if runner.handover:
        runner.hand_over(build)
        return 0
    return counter(runner.run(build), READS_RETRIED)


def _score_in_worker(job: ScoringJob, runner: Runner, group: int) -> int:
    # Before Beam would, which makes an error of it that no longer says what to do.
    scoring.load_scorer(job.scorer)
    return _score_wave(job, runner, [group])
