"""`prescreen show-model`: the card, and bundles of which little is known."""

import dataclasses

from click.testing import CliRunner

from jobs.show_model import show_model_command
from model import bundle
from model.bundle import demo_bundle_path, load_bundle_info
from model.card import model_card
from model.thresholds import Threshold
from schemas.findings import ABNORMAL_FINDINGS
from tests.fakes import make_bundle


def test_show_model_card_is_printed_as_it_is():
    result = CliRunner().invoke(show_model_command, ["--card"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == model_card(load_bundle_info(demo_bundle_path()))


def test_show_model_card_and_json_at_once_exit_2():
    result = CliRunner().invoke(show_model_command, ["--card", "--json"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--json and --card cannot be printed at once. Give one of them." in result.stderr


def test_show_model_of_an_imported_bundle_says_that_nothing_was_measured(monkeypatch):
    imported = Threshold(0.25, None, None, None, None, None, "imported", None)
    info = dataclasses.replace(
        make_bundle(),
        thresholds={"all": dict.fromkeys(ABNORMAL_FINDINGS, imported)},
        metrics={
            "split": "no data",
            "images": 0,
            "mean_auc": None,
            "findings": {name: {"auc": None, "positives": 0} for name in ABNORMAL_FINDINGS},
        },
        provenance={"thresholds_origin": "taken over with the network"},
    )
    monkeypatch.setattr(bundle, "load_bundle_info", lambda folder: info)
    result = CliRunner().invoke(show_model_command, [])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert "Not measured on any images." in lines
    assert f"{'Mass':<20} {'-':>6} {'0.250':>10} {'-':>7} {'-':>15}" in lines
    assert lines[-1] == "Thresholds are for --tta all; taken over with the network."
