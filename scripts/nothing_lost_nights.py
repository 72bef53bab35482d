"""One line of cron, night after night, over an archive that changes."""

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
from nothing_lost_archive import Archive
from nothing_lost_checks import comparable, compare_rows, read_published
from nothing_lost_process import Attempt

from model.bundle import demo_bundle_path
from pipeline.run_state import committed_runs
from pipeline.verification import verify_run
from schemas.findings import ABNORMAL_FINDINGS

HEADER = (
    "| night | what | exit code | manifest | scored | rejected | skipped | to do | s | good |\n"
    + "|---" * 10
    + "|"
)

_IMAGES = 60
_LIMIT = 0.05
_PAUSE_S = 0.5
"""After each step of publishing, on the night that is killed in it."""


@dataclass(frozen=True)
class Plan:
    """A night to be.

    Attributes:
      what: Happens.
      change: Changes the archive, and returns the ids of images that are new or other.
      ends: `published`, `too many rejects`, or the event after which it is killed.
      kill_after_s: After that event.
    """

    what: str
    change: Callable[[], list[str]]
    ends: str = "published"
    kill_after_s: float = 0.0


@dataclass(frozen=True)
class Night:
    """What came of one night.

    Attributes:
      number: From 1.
      what: Happened.
      code: Exit code.
      counts: Of the record; empty where nothing was published.
      to_do: Images that were to be scored or rejected.
      seconds: From start to end.
      harm: What is not as it must be; empty is good.
    """

    number: int
    what: str
    code: int
    counts: dict[str, int]
    to_do: int
    seconds: float
    harm: tuple[str, ...]

    def __str__(self) -> str:
        """Returns the line of the table."""
        names = ("manifest", "scored", "rejected", "skipped")
        counts = " | ".join(str(self.counts.get(name, "")) for name in names)
        return (
            f"| {self.number} | {self.what} | {self.code} | {counts} | {self.to_do}"
            f" | {self.seconds:.1f} | {'NO' if self.harm else 'yes'} |"
        )


class Nights:
    """An archive, a bundle and an OUTPUT over which the same command runs every night."""

    def __init__(self, work: Path, *, seed: int):
        """Writes the archive, and a bundle that can be exchanged."""
        self._work = work
        self._output = work / "output"
        self._bundle = work / "bundle"
        shutil.copytree(demo_bundle_path(), self._bundle)
        self._random = random.Random(seed)
        self._archive = Archive(work / "archive", images=_IMAGES, seed=seed)
        self._spoilt: list[str] = []
        # Images without a row of the present model, of their present file, in a published run.
        self._to_do: set[str] = set()
        self._command = (
            *("--manifest", str(self._archive.manifest), "--output", str(self._output)),
            *("--model", str(self._bundle), "--only-new", "--resume"),
            *("--reject-limit", str(_LIMIT)),
        )

    def run(self, count: int) -> Iterator[Night]:
        """Lives through so many nights and gives what came of each, and of all in the end."""
        plans, finishes = self._plans(), False
        for number in range(1, count + 1):
            plan = plans.get(number) or self._plain(number)
            night = self._live(number, plan, finishes)
            finishes = plan.ends == "built"
            yield night
        began_s = time.monotonic()
        harm = tuple(self._judge_all())
        seconds = time.monotonic() - began_s
        yield Night(count + 1, "a fresh run beside all", 0, {}, 0, seconds, harm)

    def _plans(self) -> dict[int, Plan]:
        """Returns the nights that are not plain."""
        add = self._archive.add
        return {
            1: Plan("the first, with bad files", self._begin),
            4: Plan("nothing has changed", list),
            7: Plan("40 new, killed while it scores", lambda: add(40), "scoring", 0.3),
            11: Plan("40 new, killed while it draws", lambda: add(40), "scored", 0.2),
            14: Plan("6 new, killed while it publishes", lambda: add(6), "built", 2.5 * _PAUSE_S),
            17: Plan("one is gone", self._remove),
            20: Plan("another model", self._exchange_model),
            23: Plan("too many are spoilt", self._spoil, "too many rejects"),
            24: Plan("those are mended", lambda: self._archive.change(self._spoilt)),
            27: Plan("20 new, 5 changed", lambda: add(20) + self._change(5)),
            28: Plan("nothing has changed", list),
        }

    def _plain(self, number: int) -> Plan:
        if number % 3:
            return Plan("3 new", lambda: self._archive.add(3))
        return Plan("2 new, 2 changed", lambda: self._archive.add(2) + self._change(2))

    def _begin(self) -> list[str]:
        self._archive.add_bad()
        # Four bad ones are too many for so small an archive.
        for image_id in ("text", "empty"):
            self._archive.remove(image_id)
        return list(self._archive.rows)

    def _good(self) -> list[str]:
        return [image_id for image_id in self._archive.rows if image_id not in ("cut", "missing")]

    def _change(self, count: int) -> list[str]:
        # Not those added tonight: an image counts once.
        known = [image_id for image_id in self._good() if not image_id.startswith("added")]
        return self._archive.change(self._random.sample(known, count))

    def _remove(self) -> list[str]:
        self._archive.remove(self._random.choice(self._good()))
        return []

    def _spoil(self) -> list[str]:
        count = int(_LIMIT * len(self._archive.rows)) + 1
        self._spoilt = self._archive.spoil(self._random.sample(self._good(), count))
        return self._spoilt

    def _exchange_model(self) -> list[str]:
        """Puts another bundle at the same path: each threshold and what is borderline differ."""
        path = self._bundle / "bundle.json"
        bundle = json.loads(path.read_bytes())
        bundle["borderline_band"] *= 2
        for finding in ABNORMAL_FINDINGS:
            bundle["thresholds"]["none"][finding]["threshold"] *= 0.9
        path.write_text(json.dumps(bundle))
        return list(self._archive.rows)

    def _live(self, number: int, plan: Plan, finishes: bool) -> Night:
        """Lives through a night; `finishes` says that it must publish what the last one built."""
        self._to_do = (self._to_do | set(plan.change())) & self._archive.rows.keys()
        pauses = ("--pause-s", str(_PAUSE_S)) if plan.ends == "built" else ()
        attempt = Attempt(self._command, changes=pauses)
        harm, counts, to_do = [], {}, len(self._to_do)
        if plan.ends in ("published", "too many rejects"):
            code = attempt.end()
        else:
            attempt.wait_for(plan.ends)
            time.sleep(plan.kill_after_s)
            attempt.kill()
            code = attempt.end()
        expected = {"published": 0, "too many rejects": 3}.get(plan.ends, -9)
        if code != expected:
            harm.append(f"exit code {code}, not {expected}: {attempt.message}")
        elif code == 0:
            counts = self._record(attempt)["counts"]
            harm += self._judge(attempt, counts)
        if finishes != (attempt.find("run_finished_earlier") is not None):
            harm.append("it finished an earlier run, or not, and must not, or must")
        if code == 0 or plan.ends == "built":
            self._to_do.clear()
        seconds = attempt.ended_s - attempt.began_s
        return Night(number, plan.what, code, counts, to_do, seconds, tuple(harm))

    def _record(self, attempt: Attempt) -> dict:
        path = self._output / "runs" / f"{attempt.result.facts['run_id']}.json"
        return json.loads(path.read_bytes())

    def _judge(self, attempt: Attempt, counts: dict[str, int]) -> Iterator[str]:
        """Gives what is wrong with the record of tonight; nothing is good."""
        done = counts["scored"] + counts["rejected"]
        if attempt.find("published_already"):
            yield "it published nothing"
        if done + counts["skipped"] != counts["manifest"]:
            yield "scored, rejected and skipped are not the manifest"
        if counts["manifest"] != len(self._archive.rows):
            yield f"the manifest has {len(self._archive.rows)} rows"
        if done != len(self._to_do):
            yield f"{done} were scored or rejected, and {len(self._to_do)} were to do"

    def _judge_all(self) -> Iterator[str]:
        """Gives what is wrong after all nights; nothing is good."""
        records = committed_runs(self._output)
        for record in records:
            problems = verify_run(self._output / "runs" / f"{record['run_id']}.json").problems
            yield from (f"run {record['run_id']}: {problem}" for problem in problems)
        if left := sorted(path.name for path in (self._output / "_staging").iterdir()):
            yield f"_staging holds {', '.join(left)}"
        newest = self._newest_rows(records)
        yield from self._compare_versions(newest)
        yield from self._compare_with_fresh_run(newest)

    def _newest_rows(self, records: list[dict]) -> dict[str, tuple[str, dict]]:
        """Returns table and newest row, by id, of published runs of the present model."""
        newest = {}
        for record in records:
            if record["scoring_digest"] != records[-1]["scoring_digest"]:
                continue
            for file in record["files"]:
                table = file["path"].split("/")[0]
                if table in ("scores", "rejects"):
                    for row in pq.ParquetFile(self._output / file["path"]).read().to_pylist():
                        newest[row["image_id"]] = (table, comparable(row))
        return newest

    def _compare_versions(self, newest: dict[str, tuple[str, dict]]) -> Iterator[str]:
        for image_id in self._archive.rows:
            if image_id not in newest:
                yield f"{image_id} has no row of the present model"
                continue
            _, row = newest[image_id]
            path, version = self._archive.path(image_id), (None, None)
            if path.exists():
                status = path.stat()
                version = (status.st_size, str(status.st_mtime_ns))
            if (row["size_bytes"], row["source_version"]) != version:
                yield f"the newest row of {image_id} is of another file"

    def _compare_with_fresh_run(self, newest: dict[str, tuple[str, dict]]) -> Iterator[str]:
        output = self._work / "fresh"
        paths = ("--manifest", str(self._archive.manifest), "--output", str(output))
        options = ("--model", str(self._bundle), "--reject-limit", str(_LIMIT))
        attempt = Attempt((*paths, *options, "--run-id", "fresh"))
        if code := attempt.end():
            yield f"a fresh run ended with {code}: {attempt.message}"
            return
        fresh = read_published(output, "fresh")
        for table in ("scores", "rejects"):
            rows = [
                row
                for image_id, (kind, row) in newest.items()
                if kind == table and image_id in self._archive.rows
            ]
            yield from compare_rows(table, fresh.tables[table], rows)
