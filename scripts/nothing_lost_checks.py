"""What must hold of a published run beside one that nothing interrupted."""

import csv
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from nothing_lost_process import run_command

TOLERANCE = 1e-5
"""Between scores of one image in batches of different sizes."""

SAME_COUNTS = (
    *("manifest", "scored", "rejected", "skipped"),
    *("flagged", "listed", "drawn", "overlays", "not_drawn"),
)
"""Counts of a record that no interruption may change."""

_LOOK_EVERY_S = 0.05
_ROUNDED = 1e-6
"""What six digits of the worklist's CSV may add to a difference."""


@dataclass(frozen=True)
class Published:
    """All that a run published, without its id and its times.

    Attributes:
      tables: Rows of scores, rejects and worklist.
      worklist: Lines of the CSV.
      overlays: Bytes by path.
      record: As it is.
    """

    tables: dict[str, list[dict]]
    worklist: list[list[str]]
    overlays: dict[str, bytes]
    record: dict


def read_published(output: Path, run_id: str) -> Published:
    """Returns what a run published, by its record."""
    record = json.loads((output / "runs" / f"{run_id}.json").read_bytes())
    tables, overlays = {"scores": [], "rejects": [], "worklist": []}, {}
    for file in record["files"]:
        path = Path(file["path"])
        if path.suffix == ".parquet" and path.parts[0] in tables:
            rows = pq.ParquetFile(output / path).read().to_pylist()
            tables[path.parts[0]] += (comparable(row) for row in rows)
        if path.parts[0] == "gradcam":
            overlays[without_run_id(file["path"])] = (output / path).read_bytes()
    with open(output / f"worklist/run_id={run_id}.csv", newline="", encoding="utf-8") as file:
        worklist = [list(map(without_run_id, line)) for line in csv.reader(file)]
    return Published(tables, worklist, overlays, record)


def comparable(row: dict) -> dict:
    """Returns a row without its time, and with overlays that name no run."""
    row = {name: value for name, value in row.items() if name != "scored_at"}
    for name in ("cams", "overlays"):
        if name in row:
            row[name] = json.loads(without_run_id(json.dumps(row[name])))
    return row


def without_run_id(text: str) -> str:
    """Returns a text whose overlays are of no run."""
    return re.sub(r"gradcam/run_id=[^/]+/", "gradcam/", text)


def differences(whole: Published, found: Published) -> Iterator[str]:
    """Gives what differs between a run and one that was not interrupted; nothing is good."""
    for table, rows in whole.tables.items():
        yield from compare_rows(table, rows, found.tables[table])
    yield from _compare_worklists(whole.worklist, found.worklist)
    for name in sorted(whole.overlays.keys() | found.overlays.keys()):
        if whole.overlays.get(name) != found.overlays.get(name):
            yield f"{name} is {_state_of(name, whole, found)}"
    for name in SAME_COUNTS:
        ours, theirs = whole.record["counts"][name], found.record["counts"][name]
        if ours != theirs:
            yield f"count {name} is {theirs}, not {ours}"
    if whole.record["rejected_by_reason"] != found.record["rejected_by_reason"]:
        yield "rejected_by_reason differs"


def _state_of(name: str, whole: Published, found: Published) -> str:
    if name not in found.overlays:
        return "missing"
    return "of other bytes" if name in whole.overlays else "not in the other run"


def compare_rows(table: str, whole: Sequence[dict], found: Sequence[dict]) -> Iterator[str]:
    """Gives which rows are missing, unknown, doubled, or differ in a field."""
    expected = {row["image_id"]: row for row in whole}
    seen = set()
    for row in found:
        image_id = row["image_id"]
        if image_id in seen:
            yield f"{table}: {image_id} is there twice"
        elif image_id not in expected:
            yield f"{table}: {image_id} is not in the other run"
        else:
            yield from _compare_row(f"{table}: {image_id}", expected[image_id], row)
        seen.add(image_id)
    for image_id in expected.keys() - seen:
        yield f"{table}: {image_id} is missing"


def _compare_row(what: str, whole: dict, found: dict) -> Iterator[str]:
    for name in whole.keys() | found.keys():
        is_score = name.startswith("score") or name in ("abnormality", "cams")
        if name not in whole or name not in found:
            yield f"{what} has no {name} in one of both"
        elif not same(whole[name], found[name], TOLERANCE if is_score else 0.0):
            yield f"{what} has another {name}"


def same(ours: object, theirs: object, tolerance: float) -> bool:
    """Returns whether two values are equal, floats in them within a tolerance."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, float):
        return abs(ours - theirs) <= tolerance
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(
            same(value, theirs[name], tolerance) for name, value in ours.items()
        )
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(
            same(*pair, tolerance) for pair in zip(ours, theirs, strict=True)
        )
    return ours == theirs


def _compare_worklists(whole: list[list[str]], found: list[list[str]]) -> Iterator[str]:
    if len(whole) != len(found):
        yield f"worklist has {len(found)} lines, not {len(whole)}"
        return
    for number, (ours, theirs) in enumerate(zip(whole, found, strict=True), start=1):
        if not same(_cells(ours), _cells(theirs), TOLERANCE + _ROUNDED):
            yield f"worklist differs in line {number}"


def _cells(line: list[str]) -> list[list[float | str]]:
    return [[_number(text) for text in cell.split("|")] for cell in line]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def published_files(output: Path) -> list[str]:
    """Returns all files that are outside of `_staging`."""
    files = (path.relative_to(output) for path in output.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in files if path.parts[0] != "_staging")


def staged_rows(output: Path) -> int:
    """Returns the number of rows that are durable and not published.

    Raises:
      pa.ArrowException: A part with the name of a whole one is not whole.
    """
    parts = [
        part
        for table in ("scores", "rejects")
        for part in output.glob(f"_staging/[!.]*/{table}/[!.]*.parquet")
    ]
    return sum(
        pq.ParquetFile(part, page_checksum_verification=True).read().num_rows for part in parts
    )


def check_alone(output: Path, whole: Published, run_id: str) -> Iterator[str]:
    """Gives what is wrong with a run, the only one in OUTPUT; nothing is good."""
    if (records := sorted(path.stem for path in output.glob("runs/*"))) != [run_id]:
        yield f"runs has {', '.join(records)}, not {run_id} alone"
    yield from differences(whole, read_published(output, run_id))
    code, printed = run_command("verify", str(output / "runs" / f"{run_id}.json"))
    if code:
        yield f"verify ends with {code}: {printed.strip()}"
    if left := sorted(path.name for path in (output / "_staging").iterdir()):
        yield f"_staging holds {', '.join(left)}"


class Watcher:
    """A reader that looks into OUTPUT every 50 ms while others write; a context manager.

    Attributes:
      looks: How often it looked.
      harm: What it must not have seen; empty is good.
    """

    def __init__(self, output: Path, rows: int, pause: Callable[[float], None] = time.sleep):
        """Watches an OUTPUT whose only run has `rows` scores."""
        self._output = output
        self._rows = rows
        self._pause = pause
        self._seen: set[Path] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.looks = 0
        self.harm: list[str] = []

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._ended.set()
        self._thread.join()
        self.look()

    def _watch(self) -> None:
        while not self._ended.is_set():
            self.look()
            self._pause(_LOOK_EVERY_S)

    def look(self) -> None:
        """Looks once at the scores by a pattern, and at records that are new."""
        self.looks += 1
        try:
            paths = list(self._output.glob("scores/**/*.parquet"))
            rows = sum(pq.read_metadata(path).num_rows for path in paths)
            if rows not in (0, self._rows):
                self.harm.append(f"a reader saw {rows} of {self._rows} rows")
            for record in set(self._output.glob("runs/*.json")) - self._seen:
                self._seen.add(record)
                self._check_files(json.loads(record.read_bytes()))
        except (OSError, ValueError, pa.ArrowException) as error:
            self.harm.append(f"a reader met {type(error).__name__}: {error}")

    def _check_files(self, record: dict) -> None:
        for file in record["files"]:
            path = self._output / file["path"]
            if not path.is_file() or path.stat().st_size != file["size_bytes"]:
                self.harm.append(f"a reader saw a record without {file['path']}")
