"""The command `benchmark`, with one real scorer and a peer that repeats what it is told."""

import json
import re
import shlex
import sys

import pytest
from click.testing import CliRunner

from jobs.cli import cli

PEER = """
import csv, json, pathlib, sys
import pyarrow as pa, pyarrow.parquet as pq
from schemas.findings import FINDINGS, score_column
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open(given["--manifest"], newline="") as file:
    ids = [row["image_id"] for row in csv.DictReader(file)]
columns = {score_column(finding): [0.0] * len(ids) for finding in FINDINGS}
table = pa.table({"image_id": ids, **columns})
pq.write_table(table, pathlib.Path(given["--output"]) / "part.parquet")
print(json.dumps({"images": len(ids), "score_s": 100.0, "software": {"nothing": "1.0"}}))
"""


@pytest.fixture
def run(phantoms, one_scorer):
    """Runs the command on few images, with arguments added to it."""

    def run_command(*arguments: str):
        manifest = str(phantoms / "manifest.csv")
        few = ["--images", "4", "--repeats", "1", "--batch-size", "4"]
        return CliRunner().invoke(cli, ["benchmark", "--manifest", manifest, *few, *arguments])

    return run_command


def test_benchmark_prints_rates_ratios_and_cost_and_writes_them(run, tmp_path):
    program, output = tmp_path / "slow.py", tmp_path / "numbers.json"
    program.write_text(PEER)
    command = shlex.join([sys.executable, str(program)])
    result = run("--peer", command, "--price-per-hour", "2", "--output", str(output))

    assert result.exit_code == 0, result.output
    numbers = json.loads(output.read_text())
    stages = numbers["stages"]
    for name in ("decode", "inference", "end to end", "end to end, published", "slow"):
        assert f"{name:<24} {stages[name]['images_per_second']:8.1f} images/s" in result.stdout
    assert stages["slow"]["images_per_second"] == 0.04
    assert numbers["settings"]["images"] == 4
    faster = stages["end to end, published"]["images_per_second"] / 0.04
    assert numbers["peers"]["slow"]["prescreen_is_faster_by"] == pytest.approx(faster)
    assert 0 < numbers["peers"]["slow"]["largest_score_difference"] <= 1
    assert f"over slow         {faster:8.2f}  (scores differ by" in result.stdout
    hours, cost = map(
        float,
        re.search(r"images take (\S+) h on this machine and cost (\S+)\.", result.stdout).groups(),
    )
    expected = 1e6 / stages["end to end, published"]["images_per_second"] / 3600
    assert hours == pytest.approx(expected, rel=0.02)
    assert cost == pytest.approx(2 * hours, rel=0.02)


def test_benchmark_peer_that_cannot_be_run_exits_2(run):
    result = run("--peer", "/no/such/program")

    assert result.exit_code == 2
    assert "--peer must be a command" in result.stderr
    assert "Traceback" not in result.output


def test_benchmark_peer_given_twice_exits_2(run):
    command = shlex.join([sys.executable, "some/peer.py"])
    result = run("--peer", command, "--peer", command)

    assert result.exit_code == 2
    assert "--peer must name each program once. Received: peer, peer." in result.stderr
