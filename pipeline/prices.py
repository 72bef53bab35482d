"""What machines cost, from a file that says of each price when and where it was found."""

import dataclasses
import datetime
import tomllib
from pathlib import Path

from schemas.errors import InputError


@dataclasses.dataclass(frozen=True)
class Price:
    """What an hour of a machine costs.

    Attributes:
      name: Of the machine, and how it is paid for.
      price_per_hour: In `currency`.
      currency: Such as USD.
      date: When the price was looked up.
      source: Where.
    """

    name: str
    price_per_hour: float
    currency: str
    date: datetime.date
    source: str

    def to_json(self) -> dict:
        """Returns the price as JSON has it."""
        return {**dataclasses.asdict(self), "date": self.date.isoformat()}


_KINDS = {
    "name": (str, "a text"),
    "price_per_hour": ((int, float), "a number, 0 or more"),
    "currency": (str, "a text such as USD"),
    "date": (datetime.date, "a date such as 2026-11-22, without quotes"),
    "source": (str, "a text"),
}


def load_prices(path: str) -> list[Price]:
    """Returns the prices of a TOML file, in its order.

    Args:
      path: Of a file with a table `[[price]]` for each; see `Price` for what is in it.

    Raises:
      InputError: It cannot be read, or a price lacks something or holds something else.
    """
    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--prices must be a TOML file that can be read. Received: {path} ({reason})."
        ) from error
    tables = content.get("price")
    if set(content) != {"price"} or not isinstance(tables, list) or not tables:
        raise InputError(
            "--prices must hold a table [[price]] for each price, and nothing else. Received:"
            f" {path}, with {', '.join(content) or 'nothing'}."
        )
    return [_price(table, number, path) for number, table in enumerate(tables, start=1)]


def _price(table: object, number: int, path: str) -> Price:
    found = set(table) if isinstance(table, dict) else set()
    if wrong := sorted(found ^ set(_KINDS)):
        raise InputError(
            f"--prices must give each price {', '.join(_KINDS)}, and nothing else. Received:"
            f" price {number} of {path}, where these lack or are none: {', '.join(wrong)}."
        )
    for name, (kind, rule) in _KINDS.items():
        value = table[name]
        is_wrong = not isinstance(value, kind) or isinstance(value, bool | datetime.datetime)
        if is_wrong or (name == "price_per_hour" and not 0 <= value < float("inf")):
            raise InputError(
                f"--prices must give {name} as {rule}. Received: {name} = {value!r}, price"
                f" {number} of {path}."
            )
    return Price(**table)
