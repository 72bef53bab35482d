"""The command `verify`."""

import dataclasses
import json
import typing

import click

from jobs.command import EXIT_FAILED, Command, Failure

if typing.TYPE_CHECKING:
    from pipeline.verification import Problem, Verification

_SHOWN = 20
"""How many problems are printed; --json has them all."""


@click.command("verify", cls=Command)
@click.argument("run", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print counts and all problems, as JSON.")
def verify_command(run: str, as_json: bool):
    """Checks that a published run still is what was published.

    RUN is its record, OUTPUT/runs/ID.json. Every file of the run must be there with its
    size, sha256 and rows, no file beside them, and each image once. Exit code 1 where
    something is not so; each such thing is a line. Nothing is written to OUTPUT.
    """
    from pipeline.mirror import published_run
    from pipeline.verification import verify_run

    with published_run(run) as record:
        verification = verify_run(record)
    if as_json:
        values = dataclasses.asdict(verification)
        click.echo(json.dumps({"ok": not verification.problems, **values}, indent=2))
    else:
        click.echo(_as_text(verification))
    count = len(verification.problems)
    if count:
        raise Failure(
            f"run {verification.run_id} is not what was published: {count}"
            f" problem{'' if count == 1 else 's'}. Restore what is named from a copy, or remove"
            " the run, its record first, and score its images again.",
            EXIT_FAILED,
        )


def _as_text(verification: "Verification") -> str:
    problems, counts = verification.problems, verification.counts
    if problems:
        lines = [_line(problem) for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"and {len(problems) - _SHOWN:,} more")
        return "\n".join(lines)
    return (
        f"Run {verification.run_id} is what was published: {verification.files:,} files,"
        f" {verification.size_bytes:,} bytes; {counts['scored']:,} images scored,"
        f" {counts['rejected']:,} rejected, {counts['skipped']:,} skipped,"
        f" {counts['manifest']:,} in the manifest."
    )


def _line(problem: "Problem") -> str:
    # A file that was not published can have any name, also one that breaks the line.
    path = problem.path if problem.path.isprintable() else repr(problem.path)
    return f"{path}: {problem.what}"
