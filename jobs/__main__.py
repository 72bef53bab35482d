"""Runs the command line as `python -m jobs`."""

from jobs.cli import cli

cli(prog_name="prescreen")
