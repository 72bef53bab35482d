"""Prices are taken whole, with date and source, or refused by what is wrong with them."""

import datetime
from pathlib import Path

import pytest

from pipeline.prices import Price, load_prices
from schemas.errors import InputError

GOOD = {
    "name": '"a machine"',
    "price_per_hour": "2",
    "currency": '"USD"',
    "date": "2026-11-22",
    "source": '"a list"',
}


@pytest.fixture
def written(tmp_path):
    """Returns a function that writes one price as a file and gives its path."""

    def write(price, head="[[price]]"):
        path = tmp_path / "prices.toml"
        path.write_text("\n".join([head, *(f"{name} = {price[name]}" for name in price)]))
        return str(path)

    return write


def test_load_prices_gives_what_the_file_says(written):
    expected = Price("a machine", 2, "USD", datetime.date(2026, 11, 22), "a list")
    assert load_prices(written(GOOD)) == [expected]
    assert expected.to_json()["date"] == "2026-11-22"


def test_load_prices_example_says_of_each_when_and_where():
    example = load_prices(str(Path(__file__).parents[1] / "docs/prices.toml"))
    assert len(example) == 2 and all(price.source for price in example)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"price_per_hour": "-1"}, "price_per_hour = -1"),
        ({"price_per_hour": "inf"}, "price_per_hour = inf"),
        ({"price_per_hour": "true"}, "price_per_hour = True"),
        ({"price_per_hour": '"2"'}, "price_per_hour = '2'"),
        ({"date": '"2026-11-22"'}, "date as a date such as 2026-11-22, without quotes"),
        ({"date": "2026-11-22T10:00:00"}, "date as a date"),
        ({"currency": "1"}, "currency = 1, price 1 of"),
        ({"region": '"x"'}, "these lack or are none: region"),
    ],
)
def test_load_prices_wrong_value_is_refused_by_name(written, change, message):
    with pytest.raises(InputError, match=message):
        load_prices(written(GOOD | change))


def test_load_prices_without_a_source_is_refused(written):
    with pytest.raises(InputError, match="these lack or are none: source"):
        load_prices(written({name: GOOD[name] for name in GOOD if name != "source"}))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("[price]", "a table .*price.* for each"),
        ("[[prices]]", "with prices"),
        ("[", "can be read"),
    ],
)
def test_load_prices_other_file_is_refused(written, head, message):
    with pytest.raises(InputError, match=message):
        load_prices(written(GOOD, head))


def test_load_prices_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="--prices must be a TOML file .*No such file"):
        load_prices(str(tmp_path / "none.toml"))
