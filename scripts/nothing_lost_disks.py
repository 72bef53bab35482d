"""Runs on disks that are full, or may not be written."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nothing_lost_bench import Bench, Fault
from nothing_lost_checks import staged_rows
from nothing_lost_process import Event

_AMPLE = 1 << 32
"""Bytes of a disk on which nothing runs out of space."""

_RIGHTS = "-dac_override,-dac_read_search"
_WITHOUT_RIGHTS = ("setpriv", "--bounding-set", _RIGHTS, "--inh-caps", _RIGHTS, "--")
"""Runs a command of root's for which permissions hold all the same."""


def full_disk(bench: Bench, since: str, until: str) -> Fault:
    """Lets the disk be full between two events, then gives it more space."""
    name, output = f"disk full after `{since}`", bench.work / f"full-{since}"
    size = (bench.occupied[since] + bench.occupied[until]) // 2
    with _mounted(output, f"size={size}") as mounted:
        if not mounted:
            return Fault(name)
        fault, attempt = bench.fail(f"{name}, {size / 1e6:.1f} MB", output)
        harm = [] if attempt.find(since) else [f"it failed before {since}"]
        if "space" not in attempt.message:
            harm.append("its message does not say why")
        staged = staged_rows(output)
        _mount("-o", f"remount,size={_AMPLE}", str(output))
        fault = replace(fault, harm=(*fault.harm, *harm))
        return bench.resume(fault, output, f"more space; {staged} rows were staged")


def forbidden_output(bench: Bench) -> Fault:
    """Lets OUTPUT be a folder that may not be written, then allows it."""
    output = bench.work / "forbidden"
    output.mkdir()
    output.chmod(0o555)
    fault, _ = bench.fail("OUTPUT may not be written", output, prefix=_prefix())
    if left := sorted(output.iterdir()):
        fault = replace(fault, harm=(*fault.harm, f"it left {left}"))
    output.chmod(0o755)
    return bench.resume(fault, output, "permission given")


def read_only_output(bench: Bench) -> Fault:
    """Lets OUTPUT be on a disk that is read-only, then mounts it anew."""
    name, output = "OUTPUT is mounted read-only", bench.work / "read-only"
    with _mounted(output, f"size={_AMPLE},ro") as mounted:
        if not mounted:
            return Fault(name)
        fault, _ = bench.fail(name, output)
        _mount("-o", "remount,rw", str(output))
        return bench.resume(fault, output, "mounted for writing")


def withdrawn_output(bench: Bench) -> Fault:
    """Takes the permission to write away while a run scores, then gives it back."""
    output = bench.work / "withdrawn"
    staging = output / "_staging" / "night"

    def withdraw(event: Event) -> None:
        if event.name == "scoring":
            for folder in (staging / "scores", staging / "rejects"):
                folder.mkdir(exist_ok=True)
                folder.chmod(0o555)

    fault, _ = bench.fail("permission withdrawn", output, prefix=_prefix(), on_event=withdraw)
    for folder in (staging / "scores", staging / "rejects"):
        folder.chmod(0o755)
    return bench.resume(fault, output, "permission given")


def _prefix() -> Sequence[str]:
    return _WITHOUT_RIGHTS if os.geteuid() == 0 else ()


@contextmanager
def _mounted(folder: Path, options: str) -> Iterator[bool]:
    """Mounts a disk in memory while it is used; gives False where that is not allowed."""
    folder.mkdir()
    if os.geteuid() or not shutil.which("mount"):
        yield False
        return
    mounted = _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
