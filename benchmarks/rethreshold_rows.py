"""What new thresholds for a long run cost: time and memory of `rethreshold`, by stage.

Usage: python benchmarks/rethreshold_rows.py [--rows 100000 1000000] [--folder DIR]
       [--output FILE.json]

Publishes a run of made-up scores, of which some seven in eight images are flagged, six
findings each on average, with a map of random values each: about 1.4 KB of disk a row, and
five times that meanwhile. Then re-thresholds it, in a process of its own: half of the
thresholds rise, so that every map is known and no network is needed. Nothing is drawn.

A stage's peak memory is the kernel's high-water mark of the process, reset where the
stage begins (Linux).
"""

import argparse
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from many_rows import Stages

from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, score_column
from schemas.tables import CAM_SIDE, manifest_schema, scores_schema

_ROWS_AT_ONCE = 16 * 1024
_THRESHOLDS, _RAISED = 0.35, 0.5
_MODEL_ID = "0123456789ab"

STAGES = {
    "flag": ("pipeline.rethreshold", "restage"),
    "freeze the ledger": ("pipeline.commit", "freeze_ledger"),
    "draw (off)": ("pipeline.commit", "_draw"),
    "compact": ("pipeline.commit", "_compact"),
    "reconcile": ("pipeline.commit", "_reconcile"),
    "rank": ("pipeline.commit", "_rank"),
    "report": ("pipeline.commit", "_report"),
    "publish": ("pipeline.commit", "publish_run"),
}
"""Which function's call begins a stage: where it is looked up, and its name."""


def main() -> None:
    """Measures, prints a table a run, and writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to work (the temporary folder)")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(_measure(arguments.folder)))
        return
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "software": {name: metadata.version(name) for name in ("prescreen", "duckdb", "pyarrow")},
        "runs": {},
    }
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            _publish(Path(folder), rows)
            command = [sys.executable, __file__, "--folder", folder, "--measure"]
            printed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        result["runs"][rows] = run = json.loads(printed)
        _print_run(rows, run)
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def _publish(folder: Path, rows: int) -> None:
    """Publishes a run of made-up scores, `out/runs/parent.json`, and other thresholds."""
    from model.bundle import demo_bundle_path, load_bundle_info, thresholds_id
    from model.thresholds import thresholds_to_json
    from pipeline.commit import CommitSettings, commit_run
    from pipeline.drawing import DrawingSettings
    from pipeline.job import ScoringJob
    from pipeline.layout import RunPaths
    from pipeline.manifest import CheckedManifest
    from pipeline.planning import WorkPlan
    from pipeline.record import RunFacts
    from pipeline.run_state import RunState
    from pipeline.runner import choose_runner
    from pipeline.score_options import ScoreOptions
    from pipeline.settings import RowSettings, current_version
    from pipeline.urgency import load_urgency

    paths, runner = RunPaths(folder / "out", "parent"), choose_runner(())
    (thresholds, raised) = (
        _thresholds(dict.fromkeys(ABNORMAL_FINDINGS, _THRESHOLDS)),
        _thresholds(
            {name: (_THRESHOLDS, _RAISED)[k % 2] for k, name in enumerate(ABNORMAL_FINDINGS)}
        ),
    )
    content = {"tta": "none", "findings": thresholds_to_json(raised)}
    (folder / "raised.json").write_text(json.dumps(content))
    groups = _stage(paths, thresholds, rows)
    manifest = CheckedManifest(str(paths.manifest), rows, groups, ())
    settings = RowSettings(
        model_id=_MODEL_ID,
        thresholds_id=thresholds_id(thresholds),
        tta="none",
        borderline=None,
        precision="float32",
        redact_uris=False,
        carried=(),
        gradcam_top=0,
        software_version=current_version(),
    )
    bundle = load_bundle_info(demo_bundle_path())
    job = ScoringJob(
        paths=paths,
        manifest=manifest,
        plan=WorkPlan(manifest),
        scorer=settings,
        thresholds=thresholds,
        thresholds_id=settings.thresholds_id,
        calibration=None,
        batch_size=32,
        decode_threads=1,
        redact_uris=False,
    )
    options = ScoreOptions("manifest.csv", str(paths.output), demo_bundle_path(), gradcam_top=0)
    started = datetime.datetime.now(datetime.UTC)
    commit_run(
        job,
        CommitSettings(
            bundle=bundle,
            drawing=DrawingSettings(top=0, limit=0, note=""),
            reject_limit=0.0,
            review_budget=None,
            urgency=load_urgency(),
            urgent_first=False,
            report=False,
            find_earlier=lambda record: None,
        ),
        runner,
        RunFacts(
            state=RunState(settings.to_json(), settings.digest, started, {}, None),
            settings=settings,
            manifest_sha256="",
            runner=runner.name,
            options=options.to_json(),
            timings_s={},
            read_retries=0,
        ),
    )


def _thresholds(values: dict[str, float]) -> dict:
    from model.thresholds import Threshold

    return {
        name: Threshold(float(np.float32(value)), 0.8, 0.7, 0.9, 0.5, 10)
        for name, value in values.items()
    }


def _stage(paths, thresholds: dict, rows: int) -> int:
    """Stages made-up scores with random maps, and their manifest; returns its row groups."""
    from model.thresholds import abnormality, threshold_vector
    from pipeline.flags import missing_maps, reflag, with_maps

    random, vector = np.random.default_rng(0), threshold_vector(thresholds)
    schema, now = scores_schema(), datetime.datetime.now(datetime.UTC)
    paths.parts("scores").mkdir(parents=True)
    with pq.ParquetWriter(paths.manifest, manifest_schema()) as manifest:
        for start in range(0, rows, _ROWS_AT_ONCE):
            count = min(_ROWS_AT_ONCE, rows - start)
            # An eighth is calm; what is left is over the threshold for six findings of 14 or so.
            scores = random.random((count, len(FINDINGS)), np.float32) * np.float32(0.63)
            scores[random.random(count) < 1 / 8] /= 2
            columns = {
                "image_id": [f"{number:08d}_000.png" for number in range(start, start + count)],
                "uri": [f"/archive/{number:08d}_000.png" for number in range(start, start + count)],
                **{score_column(name): scores[:, k] for k, name in enumerate(FINDINGS)},
                "abnormality": abnormality(scores),
                "findings": [[]] * count,
                "cams": [[]] * count,
                "tta_views": np.ones(count, np.int8),
                "content_sha256": ["ab" * 32] * count,
                "model_id": [_MODEL_ID] * count,
                "scored_at": [now] * count,
            }
            table = pa.table(
                [
                    pa.array(columns[field.name], field.type)
                    if field.name in columns
                    else pa.nulls(count, field.type)
                    for field in schema
                ],
                schema,
            )
            table = reflag(table, vector, "").table
            table = with_maps(table, _random_maps(random, missing_maps(table)))
            part = paths.parts("scores") / f"{start:08d}.parquet"
            pq.write_table(table, part, compression="zstd")
            manifest.write_table(table.select(["image_id", "uri"]).cast(manifest_schema()))
    return pq.read_metadata(paths.manifest).num_row_groups


def _random_maps(random: np.random.Generator, missing: pa.Table) -> pa.Table:
    findings = [names.split("|") for names in missing["findings"].to_pylist()]
    ends = np.cumsum([0, *(len(names) * CAM_SIDE**2 for names in findings)])
    cells = pa.array(random.random(ends[-1], np.float32))
    return pa.table(
        {
            "image_id": missing["image_id"],
            "findings": findings,
            "grids": pa.ListArray.from_arrays(pa.array(ends, pa.int32()), cells),
        }
    )


def _measure(folder: Path) -> dict:
    stages = Stages()
    from pipeline.rethreshold import RethresholdOptions, rethreshold_run

    for stage, (module, function) in STAGES.items():
        stages.begin_at(importlib.import_module(module), function, stage)
    options = RethresholdOptions(
        str(folder / "out/runs/parent.json"), str(folder / "raised.json"), run_id="child"
    )
    record = rethreshold_run(options, lambda event, **facts: None)
    facts = stages.close()
    return {
        "counts": record["counts"],
        "stages": facts,
        "tensorflow": "tensorflow" in sys.modules,
        "scores_bytes": sum(
            file["size_bytes"] for file in record["files"] if file["path"].startswith("scores/")
        ),
    }


def _print_run(rows: int, run: dict) -> None:
    print(f"{f'{rows} rows':<26}{'s':>9}{'cpu s':>9}{'peak MB':>9}{'then MB':>9}")
    for stage, facts in run["stages"].items():
        print(
            f"{stage:<26}{facts['wall_s']:9.1f}{facts['cpu_s']:9.1f}"
            f"{facts['peak_mb']:9.0f}{facts['end_mb']:9.0f}"
        )
    wall_s, cpu_s = (
        sum(facts[clock] for facts in run["stages"].values()) for clock in ("wall_s", "cpu_s")
    )
    peak = max(facts["peak_mb"] for facts in run["stages"].values())
    print(f"{'all':<26}{wall_s:9.1f}{cpu_s:9.1f}{peak:9.0f}")
    counts = {name: run["counts"][name] for name in ("flagged", "maps_kept", "flags_removed")}
    print(
        f"{counts}, {run['scores_bytes'] / rows:.0f} bytes of scores a row, TensorFlow"
        f" {'loaded' if run['tensorflow'] else 'not loaded'}\n",
        flush=True,
    )


if __name__ == "__main__":
    main()
