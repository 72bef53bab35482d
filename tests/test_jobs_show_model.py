"""`prescreen show-model --card`; its other output is tested with `train`."""

from click.testing import CliRunner

from jobs.show_model import show_model_command
from model.bundle import demo_bundle_path, load_bundle_info
from model.card import model_card


def test_show_model_card_is_printed_as_it_is():
    result = CliRunner().invoke(show_model_command, ["--card"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == model_card(load_bundle_info(demo_bundle_path()))


def test_show_model_card_and_json_at_once_exit_2():
    result = CliRunner().invoke(show_model_command, ["--card", "--json"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--json and --card cannot be printed at once. Give one of them." in result.stderr
