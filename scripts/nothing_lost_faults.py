"""Runs on bad disks, over bad stores, started twice or told to stop."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

from nothing_lost_bench import Bench, Fault, badly_failed
from nothing_lost_checks import (
    Published,
    check_alone,
    compare_rows,
    read_published,
    staged_rows,
)
from nothing_lost_child import fate_of_read
from nothing_lost_disks import forbidden_output, full_disk, read_only_output, withdrawn_output
from nothing_lost_process import Attempt

_STOPS_WITHIN_S = 30.0
_ATTEMPTS = 4
"""Reads of a file, until its last error counts."""


def faults(bench: Bench) -> Iterator[Fault]:
    """Makes all faults, one after the other, and gives what came of each."""
    for since, until in (("scoring", "scored"), ("scored", "drawn"), ("drawn", "built")):
        yield full_disk(bench, since, until)
    yield forbidden_output(bench)
    yield read_only_output(bench)
    yield withdrawn_output(bench)
    yield flaky_store(bench)
    yield started_at_once(bench)
    yield started_again(bench)
    yield from (stopped(bench, number) for number in (signal.SIGTERM, signal.SIGINT))


def flaky_store(bench: Bench) -> Fault:
    """Lets 20% of all reads fail and 1% hang; each image must fare as its reads do."""
    output = bench.work / "flaky"
    began_s = time.monotonic()
    options = ("--run-id", "flaky", "--reject-limit", "0.05" if bench.images >= 200 else "1")
    attempt = bench.start(output, *options, changes=("--flaky", str(bench.seed)))
    code, seconds = attempt.end(), time.monotonic() - began_s
    name = "20% of reads fail, 1% hang"
    if code:
        return Fault(name, code, attempt.message, harm=("it failed",))
    found = read_published(output, "flaky")
    expected, retried = _expected_rejects(bench)
    harm = list(_compare_flaky(bench.whole, found, expected))
    if found.record["read_retries"] < retried:
        harm.append(f"read_retries is {found.record['read_retries']}, under {retried}")
    reasons = [reason for reason, _ in expected.values()]
    message = (
        f"{reasons.count('read_timeout')} of {bench.images} hung,"
        f" {reasons.count('read_error')} failed {_ATTEMPTS} times, as foretold;"
        f" {found.record['read_retries']} reads tried again; {seconds:.0f} s"
    )
    return Fault(name, code, message, harm=tuple(harm))


def _expected_rejects(bench: Bench) -> tuple[dict[str, tuple[str, int]], int]:
    """Returns reason and attempts by id of what the flaky store makes rejects; and all retries."""
    expected, retried = {}, 0
    bad = {row["image_id"] for row in bench.whole.tables["rejects"]}
    for image_id in bench.archive.rows:
        if image_id == "missing":
            continue  # asked for, never opened
        fates = [
            fate_of_read(bench.seed, bench.archive.path(image_id).name, attempt)
            for attempt in range(_ATTEMPTS)
        ]
        last = next((k for k, fate in enumerate(fates) if fate != "fail"), _ATTEMPTS - 1)
        retried += last
        if fates[last] != "read":
            reason = "read_timeout" if fates[last] == "hang" else "read_error"
            expected[image_id] = (reason, last + 1)
        elif image_id in bad:
            expected[image_id] = ("", last + 1)  # rejected as ever
    return expected, retried


def _compare_flaky(
    whole: Published, found: Published, expected: dict[str, tuple[str, int]]
) -> Iterator[str]:
    """Gives where a run over the flaky store differs from what follows for each image."""
    as_ever, rejects = whole.tables["rejects"], []
    for row in found.tables["rejects"]:
        reason, attempts = expected.get(row["image_id"], ("", 1))
        if row["attempts"] != attempts or (reason and row["reason"] != reason):
            yield f"rejects: {row['image_id']} has {row['attempts']} attempts, {row['reason']}"
        # Its own reason, stage and version are compared where only the number of reads differs.
        rejects.append(row if reason else row | {"attempts": 1})
    lost = {image_id for image_id, (reason, _) in expected.items() if reason}
    yield from (f"rejects: {name} is missing" for name in lost - {r["image_id"] for r in rejects})
    yield from compare_rows("rejects", _without(lost, as_ever), _without(lost, rejects))
    # What is drawn is read again, and may fail or hang then.
    scores = [_without_cams(run.tables["scores"]) for run in (whole, found)]
    yield from compare_rows("scores", _without(lost, scores[0]), scores[1])
    for name, data in found.overlays.items():
        if whole.overlays.get(name, data) != data:
            yield f"{name} is of other bytes"


def _without(image_ids: set[str], rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["image_id"] not in image_ids]


def _without_cams(rows: list[dict]) -> list[dict]:
    return [row | {"cams": None} for row in rows]


def started_at_once(bench: Bench) -> Fault:
    """Starts a run twice; one process does it, the other is refused."""
    output = bench.work / "at-once"
    both = [bench.start(output, "--run-id", "night") for _ in range(2)]
    done, refused = sorted(both, key=Attempt.end)
    harm = list(_badly_refused(bench, output, done, refused))
    if refused.ended_s > done.ended_s:
        harm.append("the one was refused after the other had ended")
    name = "two starts of one `--run-id` at once"
    return Fault(name, refused.end(), refused.message, "the other", done.end(), tuple(harm))


def started_again(bench: Bench) -> Fault:
    """Starts the nightly line while the night before still scores."""
    output = bench.work / "again"
    first = bench.start(output, "--only-new", "--resume")
    first.wait_for("scoring")
    # It must not end before the other, which takes seconds to start.
    first.send(signal.SIGSTOP)
    second = bench.start(output, "--only-new", "--resume")
    code = second.end()
    first.send(signal.SIGCONT)
    harm = tuple(_badly_refused(bench, output, first, second))
    name = "`--only-new --resume` while the last one scores"
    return Fault(name, code, second.message, "the first", first.end(), harm)


def _badly_refused(bench: Bench, output: Path, done: Attempt, refused: Attempt) -> Iterator[str]:
    """Gives what is wrong with two starts of which one was to be refused; nothing is good."""
    codes = done.end(), refused.end()
    if codes != (0, 2):
        yield f"exit codes {codes}: {done.message} {refused.message}"
        return
    yield from check_alone(output, bench.whole, done.result.facts["run_id"])
    if f"held by process {done.process} on " not in refused.message:
        yield "the message does not say who holds the run"


def stopped(bench: Bench, number: signal.Signals) -> Fault:
    """Sends a signal while a run scores, then resumes it."""
    output = bench.work / f"stopped-{number.name}"
    attempt = bench.start(output, "--run-id", "night")
    attempt.wait_for("scoring")
    time.sleep(bench.durations["to scored"] / 2)
    attempt.send(number)
    sent_s = time.monotonic()
    code = attempt.end()
    seconds = attempt.ended_s - sent_s
    harm = list(badly_failed(attempt, output))
    if seconds > _STOPS_WITHIN_S:
        harm.append(f"it took {seconds:.0f} s to stop")
    if "--resume --run-id night" not in attempt.message:
        harm.append("the message does not say how to go on")
    if not (staged := staged_rows(output)):
        harm.append("nothing was flushed")
    fault = Fault(
        f"{number.name}, stopped in {seconds:.1f} s", code, attempt.message, harm=tuple(harm)
    )
    return bench.resume(fault, output, f"resumed; {staged} rows were staged")
