"""Kills, starves and disturbs `prescreen score`, and looks whether anything is lost.

Usage: python scripts/nothing_lost.py kills --work DIR [--images 600] [--kills 25] [--seed 1]
       python scripts/nothing_lost.py faults --work DIR [--images 600] [--seed 1]
       python scripts/nothing_lost.py nights --work DIR [--nights 30] [--seed 1]

Each writes an archive of phantoms and of files that cannot be scored into DIR, a folder that
is new or empty, and starts real processes over it.

kills: SIGKILL at random moments of all phases of a run, then `--resume`. What is published
must equal an uninterrupted run's in every field but times and run id, scores within 1e-5,
while a reader who looks every 50 ms sees no rows or all of them.

faults: a disk that is full in three phases, an OUTPUT that may not be written, a store that
fails or hangs, two starts at once, SIGTERM and SIGINT. Full and read-only disks are mounted,
which root may; without, they are left out, and the table says so.

nights: one command, night after night, while the archive changes, files are bad, processes
are killed and the model is another one.

Prints a Markdown table, below it what is not as it must be, and exits with 1 if anything is.
Linux only.
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import nothing_lost_bench
import nothing_lost_faults
import nothing_lost_kills
import nothing_lost_nights


def run_kills(arguments: argparse.Namespace) -> int:
    """Kills runs and prints what came of it; returns how many went wrong."""
    killer = nothing_lost_kills.Killer(arguments.work, images=arguments.images, seed=arguments.seed)
    _print_whole(killer.whole, killer.durations)
    return _print_table(nothing_lost_kills.HEADER, killer.kills(arguments.kills))


def run_faults(arguments: argparse.Namespace) -> int:
    """Disturbs runs and prints what came of it; returns how many went wrong."""
    bench = nothing_lost_bench.Bench(arguments.work, images=arguments.images, seed=arguments.seed)
    _print_whole(bench.whole, bench.durations)
    return _print_table(nothing_lost_bench.HEADER, nothing_lost_faults.faults(bench))


def run_nights(arguments: argparse.Namespace) -> int:
    """Lives through nights and prints what came of them; returns how many went wrong."""
    nights = nothing_lost_nights.Nights(arguments.work, seed=arguments.seed)
    return _print_table(nothing_lost_nights.HEADER, nights.run(arguments.nights))


def _print_whole(whole: nothing_lost_kills.Published, durations: dict[str, float]) -> None:
    counts = whole.record["counts"]
    phases = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in durations.items())
    print(
        f"Uninterrupted run: {counts['manifest']} images, {counts['scored']} scored,"
        f" {counts['rejected']} rejected, {counts['overlays']} overlays; {phases}.\n",
        flush=True,
    )


def _print_table(header: str, rows: Iterable) -> int:
    """Prints rows as they come, then the harm; returns how many rows have some."""
    print(header, flush=True)
    harmed = []
    for row in rows:
        print(row, flush=True)
        if row.harm:
            harmed.append(row)
    print()
    for row in harmed:
        print(row)
        print("".join(f"  {line}\n" for line in row.harm[:20]), end="")
    print(f"{len(harmed)} went wrong." if harmed else "Nothing lost, nothing doubled.")
    return len(harmed)


def main() -> int:
    """Does what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="kills|faults|nights")
    for name, function in (("kills", run_kills), ("faults", run_faults), ("nights", run_nights)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("--work", type=Path, required=True, metavar="DIR", help="new or empty")
        command.add_argument("--seed", type=int, default=1, help="of images and moments (1)")
        if name == "nights":
            command.add_argument("--nights", type=int, default=30, help="(30)")
        else:
            command.add_argument("--images", type=int, default=600, help="phantoms (600)")
        if name == "kills":
            command.add_argument("--kills", type=int, default=25, help="(25)")
    arguments = parser.parse_args()
    arguments.work = arguments.work.absolute()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if any(arguments.work.iterdir()):
        parser.error(f"--work must be a new or empty folder. Received: {arguments.work}.")
    return int(arguments.function(arguments) > 0)


if __name__ == "__main__":
    sys.exit(main())
