"""The command line as a whole: help, version, errors and exit codes."""

import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from jobs.cli import cli
from jobs.command import Command
from schemas.errors import InputError

_ROOT = Path(__file__).parents[1]


def _commands():
    return sorted(cli.commands.items())


def test_help_answers_in_under_half_a_second():
    times_s = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "jobs", "--help"]
        result = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert result.returncode == 0
        assert result.stdout.startswith("Usage: prescreen")
    # Of a core, which it waits for where other tests run; the best of three.
    assert min(times_s) < 0.5


@pytest.mark.parametrize(("name", "command"), _commands(), ids=lambda value: str(value))
def test_command_has_help_for_itself_and_each_option(name, command):
    assert command.help
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts}"


@pytest.mark.parametrize(("name", "command"), _commands(), ids=lambda value: str(value))
def test_command_handles_errors_the_common_way(name, command):
    assert isinstance(command, Command)


def _command_that_raises(error):
    @click.command(cls=Command)
    def command():
        raise error

    return command


class RejectLimitError(Exception):
    """Named as the pipeline's."""


class ReconciliationError(Exception):
    """Named as the pipeline's."""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("bad"), 2, "Error: bad\n"),
        (RejectLimitError("many"), 3, "Error: many\n"),
        (ReconciliationError("lost"), 4, "Error: lost\n"),
        (
            OSError(28, "No space left on device"),
            1,
            "Error: OSError: [Errno 28] No space left on device"
            " Run again with --debug for the stack trace.\n",
        ),
    ],
    ids=["input", "rejects", "reconciliation", "anything else"],
)
def test_command_error_is_one_line_and_its_exit_code(error, code, message):
    result = CliRunner().invoke(_command_that_raises(error), [])
    assert (result.exit_code, result.stderr, result.stdout) == (code, message, "")


def test_command_debug_shows_the_stack_trace():
    result = CliRunner().invoke(_command_that_raises(InputError("bad")), ["--debug"])
    assert result.exit_code == 2
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert result.stderr.endswith("schemas.errors.InputError: bad\nError: bad\n")


def test_pipeline_errors_have_the_names_that_exit_codes_go_by():
    from jobs.command import _EXIT_CODES
    from pipeline.run_errors import EXPECTED, RunFailedError
    from pipeline.sampling import MeasureError

    named = {error.__name__ for error in (*EXPECTED, RunFailedError, MeasureError)}
    assert named - {"InputError"} == set(_EXIT_CODES)
