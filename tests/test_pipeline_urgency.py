"""A department's own order of urgency is taken whole, or refused by what is wrong with it."""

import pytest

from pipeline.urgency import load_urgency
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS

TIERS = dict.fromkeys(ABNORMAL_FINDINGS, 3)


@pytest.fixture
def written(tmp_path):
    """Returns a function that writes tiers as a file and gives its path."""

    def write(tiers):
        lines = [f"{finding} = {tier}" for finding, tier in tiers.items()]
        path = tmp_path / "tiers.toml"
        path.write_text("\n".join(["[tiers]", *lines]))
        return str(path)

    return write


def test_load_urgency_example_puts_what_cannot_wait_first():
    tiers = load_urgency()
    assert set(tiers) == set(ABNORMAL_FINDINGS)
    assert {name for name, tier in tiers.items() if tier == 1} == {
        "Pneumothorax",
        "Edema",
        "Effusion",
    }


def test_load_urgency_own_table_takes_the_place_of_the_example(written):
    assert load_urgency(written(TIERS | {"Hernia": 1})) == TIERS | {"Hernia": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Fracture": 1}, "these lack or are none: Fracture"),
        ({'"No Finding"': 1}, "these lack or are none: No Finding"),
        ({"Mass": 0}, "Received: Mass = 0"),
        ({"Mass": 10}, "Received: Mass = 10"),
        ({"Mass": "true"}, "Received: Mass = True"),
        ({"Mass": 1.5}, "Received: Mass = 1.5"),
    ],
)
def test_load_urgency_wrong_tier_is_refused_by_name(written, change, message):
    with pytest.raises(InputError, match=message):
        load_urgency(written(TIERS | change))


def test_load_urgency_missing_finding_is_refused_by_name(written):
    with pytest.raises(InputError, match="these lack or are none: Hernia, Mass"):
        load_urgency(written({n: 1 for n in ABNORMAL_FINDINGS if n not in ("Mass", "Hernia")}))


@pytest.mark.parametrize("text", ["tiers = 3", "", "[tier]\nMass = 1", "not toml"])
def test_load_urgency_file_without_the_table_is_refused(tmp_path, text):
    path = tmp_path / "tiers.toml"
    path.write_text(text)
    with pytest.raises(InputError, match="--urgency must"):
        load_urgency(str(path))
    with pytest.raises(InputError, match="No such file"):
        load_urgency(str(tmp_path / "none.toml"))
