"""`prescreen score` as it runs at night: stopped, resumed, logged, and telling no names."""

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from jobs.cli import cli
from model.phantoms import draw_phantom
from tests.fakes import tree

_ROOT = Path(__file__).parents[1]
_CANARY = "Zephyrine_Quackenbush"


def _score(*options):
    return CliRunner().invoke(cli, ["score", *map(str, options)])


def _events(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def archive(tmp_path):
    """Sixty small phantoms: their manifest."""
    folder = tmp_path / "images"
    folder.mkdir()
    with open(tmp_path / "manifest.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image_id", "uri"])
        for number in range(60):
            pixels = draw_phantom(5, number, size=64).pixels
            Image.fromarray(pixels).save(folder / f"{number}.png")
            rows.writerow([f"i{number}", f"images/{number}.png"])
    return tmp_path / "manifest.csv"


@pytest.mark.parametrize(
    "number",
    # Both come the same way; one a commit is enough.
    [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)],
    ids=lambda number: number.name,
)
def test_score_stopped_by_a_signal_ends_in_good_order_and_is_resumed(archive, tmp_path, number):
    command = [
        sys.executable, "-m", "jobs", "score", "--manifest", archive, "--batch-size", "4",
        "--output", tmp_path / "out", "--run-id", "night", "--log-json", "--gradcam-top", "0",
    ]  # fmt: skip
    process = subprocess.Popen(
        [*map(str, command)], cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    seen = []
    for line in process.stderr:
        seen.append(json.loads(line))
        if seen[-1]["event"] == "scoring":
            process.send_signal(number)
    process.wait(timeout=120)
    assert process.returncode == 1
    assert process.stdout.read() == ""
    assert [event["event"] for event in seen] == [
        "run_started",
        "manifest_checked",
        "planned",
        "scoring",
        "stopping",
        "failed",
    ]
    assert seen[-2]["signal"] == number.name
    assert (seen[-1]["level"], seen[-1]["exit_code"]) == ("error", 1)
    assert seen[-1]["message"].endswith("Go on with --resume --run-id night.")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_staging"]

    resumed = _score(*command[4:], "--resume")
    assert resumed.exit_code == 0, resumed.output
    counts = json.loads((tmp_path / "out" / "runs" / "night.json").read_text())["counts"]
    assert (counts["manifest"], counts["scored"]) == (60, 60)


def test_score_log_json_is_one_object_a_change_of_state(phantoms, tmp_path):
    options = ["--manifest", phantoms / "manifest.csv", "--output", tmp_path / "out"]
    result = _score(*options, "--run-id", "night", "--log-json", "--quiet")
    assert (result.exit_code, result.stdout) == (0, "")
    events = [event for event in _events(result.stderr) if event["event"] != "log"]
    assert [event["event"] for event in events] == [
        "run_started",
        "manifest_checked",
        "planned",
        "scoring",
        "scored",
        "drawn",
        "built",
        "published",
    ]
    assert {event["run_id"] for event in events} == {"night"}
    assert all(event["time"].endswith("+00:00") for event in events)
    assert (events[1]["images"], events[-1]["scored"], events[-1]["manifest"]) == (12, 12, 12)


def test_score_log_json_failure_is_an_object_too(tmp_path):
    (tmp_path / "m.csv").write_text("image_id,uri\n")
    result = _score("--manifest", tmp_path / "m.csv", "--output", tmp_path / "out", "--log-json")
    assert result.exit_code == 2
    last = _events(result.stderr)[-1]
    assert (last["level"], last["event"], last["exit_code"]) == ("error", "failed", 2)
    assert last["message"].startswith("manifest must have at least one row.")


def test_score_output_that_cannot_be_written_exits_1(phantoms):
    result = _score("--manifest", phantoms / "manifest.csv", "--output", "/proc/out")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: --output must be a place that can be written. Received: No such file or"
        " directory. Nothing was published. Mend it and run again.\n"
    )


def test_score_output_that_is_a_file_exits_2(phantoms, tmp_path):
    (tmp_path / "out").write_text("")
    result = _score("--manifest", phantoms / "manifest.csv", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "--output must be a folder. Received: --output" in result.stderr


def test_score_retry_reason_alone_exits_2(phantoms, tmp_path):
    options = ["--manifest", phantoms / "manifest.csv", "--output", tmp_path / "out"]
    result = _score(*options, "--retry-reason", "corrupt")
    assert result.exit_code == 2 and "--retry-reason needs --retry-rejects" in result.stderr


def test_score_resumed_run_says_what_it_kept(archive, tmp_path, monkeypatch):
    from pipeline import commit

    def full_disk(*_):
        raise OSError(28, os.strerror(28))

    options = ["--manifest", archive, "--output", tmp_path / "out", "--run-id", "night"]
    with monkeypatch.context() as broken:
        broken.setattr(commit, "plan_drawings", full_disk)
        failed = _score(*options)
    assert failed.exit_code == 1
    assert failed.stderr.endswith(
        "Error: Run night failed: OSError: [Errno 28] No space left on device. Nothing was"
        " published; what was scored is kept. Go on with --resume --run-id night.\n"
    )
    result = _score(*options, "--resume")
    assert result.exit_code == 0
    assert "Going on with run night." in result.stderr
    assert "60 images were scored by earlier attempts, 0 are held by earlier runs." in result.stderr
    assert "From earlier attempts: 60 images." in result.stdout


# Names of patients


def _plant(folder):
    """Writes images whose paths and metadata name somebody; some cannot be decoded."""
    folder = folder / _CANARY
    folder.mkdir()
    info = PngInfo()
    info.add_text("PatientName", _CANARY)
    info.add_itxt("Comment", _CANARY)
    exif = Image.Exif()
    exif[0x013B] = _CANARY  # artist
    for number in range(4):
        image = Image.fromarray(draw_phantom(6, number, size=64).pixels)
        image.save(folder / f"{_CANARY}{number}.png", pnginfo=info)
        image.save(folder / f"{_CANARY}{number}.jpg", exif=exif)
    good = (folder / f"{_CANARY}0.png").read_bytes()
    (folder / f"{_CANARY}.cut.png").write_bytes(good[: len(good) // 2])
    (folder / f"{_CANARY}.text.png").write_text(_CANARY)
    (folder / f"{_CANARY}.folder.png").mkdir()
    names = sorted(path.name for path in folder.iterdir()) + [f"{_CANARY}.missing.png"]
    return folder, names


def _everything(folder):
    """Gives the content of each file, and of each cell of a table."""
    for name in tree(folder):
        path = folder / name
        yield name, path.read_bytes()
        if name.endswith(".parquet"):
            yield name, json.dumps(pq.read_table(path).to_pylist(), default=str).encode()


@pytest.mark.parametrize(
    ("limit", "log"), [("1", "--log-json"), ("0", "--debug")], ids=["published", "refused"]
)
def test_score_tells_no_name_in_what_it_prints_or_in_redacted_output(tmp_path, limit, log):
    folder, names = _plant(tmp_path)
    (tmp_path / "m.csv").write_text("uri\n" + "".join(f"{folder.name}/{name}\n" for name in names))
    result = subprocess.run(
        [
            sys.executable, "-m", "jobs", "score", "--manifest", str(tmp_path / "m.csv"),
            "--output", str(tmp_path / "out"), "--run-id", "night", "--redact-uris",
            "--reject-limit", limit, log,
        ],
        cwd=_ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == (0 if limit == "1" else 3), result.stderr
    assert _CANARY not in result.stdout + result.stderr
    if limit == "0":
        return  # the manifest in _staging says what is left to do
    counts = json.loads((tmp_path / "out" / "runs" / "night.json").read_text())["counts"]
    assert (counts["scored"], counts["rejected"]) == (8, 4)
    for name, content in _everything(tmp_path / "out"):
        assert _CANARY not in name and _CANARY.encode() not in content, name


def test_score_names_stand_in_uris_and_ids_alone_without_redaction(tmp_path):
    folder, names = _plant(tmp_path)
    rows = [f"i{number},{folder.name}/{name}\n" for number, name in enumerate(names)]
    (tmp_path / "m.csv").write_text("image_id,uri\n" + "".join(rows))
    options = ["--manifest", tmp_path / "m.csv", "--output", tmp_path / "out"]
    result = _score(*options, "--reject-limit", "1", "--log-json")
    assert result.exit_code == 0
    assert _CANARY not in result.output
    for table in ("scores", "rejects"):
        for path in (tmp_path / "out" / table).rglob("*.parquet"):
            for row in pq.ParquetFile(path).read().to_pylist():
                assert _CANARY in row.pop("uri")
                assert _CANARY not in json.dumps(row, default=str)
