"""How urgent a finding is, by a table that a department may replace."""

import tomllib
from importlib import resources
from pathlib import Path

from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS

_LEAST_URGENT = 9


def load_urgency(path: str | None = None) -> dict[str, int]:
    """Returns the tier of each of the 14 findings, 1 for the most urgent.

    Args:
      path: A TOML file with a table `tiers`; None for `pipeline/urgency.toml`.

    Raises:
      InputError: It cannot be read, or does not give each of the 14 findings a tier of 1 to 9.
    """
    name = path or "urgency.toml"
    try:
        file = Path(path) if path else resources.files("pipeline") / "urgency.toml"
        tiers = tomllib.loads(file.read_text(encoding="utf-8")).get("tiers")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"--urgency must be a TOML file that can be read. Received: {name} ({reason})."
        ) from error
    if not isinstance(tiers, dict):
        raise InputError(f"--urgency must have a table [tiers]. Received: {name}, without one.")
    wrong = sorted(set(tiers) ^ set(ABNORMAL_FINDINGS))
    if wrong:
        raise InputError(
            f"--urgency must give a tier to each of the {len(ABNORMAL_FINDINGS)} findings and to"
            f" nothing else. Received: {name}, where these lack or are none: {', '.join(wrong)}."
        )
    for finding, tier in tiers.items():
        if type(tier) is not int or not 1 <= tier <= _LEAST_URGENT:
            raise InputError(
                f"--urgency must give tiers of 1 (read first) to {_LEAST_URGENT}."
                f" Received: {finding} = {tier!r}, in {name}."
            )
    return tiers
