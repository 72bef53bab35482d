"""The documentation names what is there, and points to what exists."""

import re
from pathlib import Path

import click
import pytest

from jobs.cli import cli
from model.decoding import MAX_PIXELS
from model.reading import MAX_BYTES
from schemas.rejects import Reason

_ROOT = Path(__file__).parents[1]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "option"),
    [
        (name, option)
        for name, command in sorted(cli.commands.items())
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for option in parameter.opts
        if option.startswith("--")
    ],
)
def test_readme_names_every_command_and_option(name, option):
    assert f"prescreen {name}" in _README
    assert f"`{option}" in _README or f" {option} " in _README


@pytest.mark.parametrize("reason", Reason)
def test_readme_names_every_reason_under_its_stage(reason):
    (row,) = re.findall(rf"^\| {reason.stage} \|.*", _README, re.MULTILINE)
    assert f"`{reason}`" in row


def test_readme_states_the_limits_as_they_are():
    assert MAX_BYTES == 256 * 2**20
    assert MAX_PIXELS == 64_000_000


@pytest.mark.parametrize(
    "document",
    sorted(
        path for folder in (".", "docs", "benchmarks") for path in (_ROOT / folder).glob("*.md")
    ),
    ids=lambda path: path.relative_to(_ROOT).as_posix(),
)
def test_document_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("name", ["worker.Dockerfile", "gpu-server.Dockerfile"])
def test_images_that_the_documentation_builds_read_dicom(name):
    dockerfile = (_ROOT / "docker" / name).read_text(encoding="utf-8")
    (installed,) = re.findall(r'"\.(\S+)"$', dockerfile, re.MULTILINE)
    by_default = re.findall(r'^ARG EXTRA="(.*)"$', dockerfile, re.MULTILINE)
    documents = [dockerfile, *(path.read_text() for path in (_ROOT / "docs").glob("*.md"))]
    builds = re.findall(rf"docker build -f docker/{name} .*", "\n".join(documents))
    assert builds
    for build in builds:
        given = re.findall(r"--build-arg 'EXTRA=(.*?)'", build)
        extras = installed.replace("${EXTRA}", (given or by_default or [""])[0])
        assert set(extras.strip("[]").split(",")) <= {"dicom", "gpu"} and "dicom" in extras, build


def test_architecture_names_files_that_exist():
    text = (_ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    for path in set(re.findall(r"\b(?:schemas|model|pipeline|jobs|tests)/\w+\.py", text)):
        assert (_ROOT / path).exists(), path
