"""The 15 classes of ChestX-ray14, in network output order.

Source: Wang et al. 2017, "ChestX-ray8: Hospital-scale Chest X-ray Database and
Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax
Diseases", https://arxiv.org/abs/1705.02315.
"""

NO_FINDING = "No Finding"

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    NO_FINDING,
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
"""All 15 classes; a score vector has this order."""

ABNORMAL_FINDINGS = tuple(name for name in FINDINGS if name != NO_FINDING)
"""The 14 findings that can be flagged, drawn and ranked."""

ABNORMAL_INDICES = tuple(FINDINGS.index(name) for name in ABNORMAL_FINDINGS)
"""Position of each of the 14 findings in a score vector."""


def score_column(finding: str) -> str:
    """Returns the name of the scores table's column for `finding`."""
    return "score_" + finding.replace(" ", "_")


def parse_labels(labels: str) -> tuple[str, ...]:
    """Returns the classes named in a `|`-separated label string.

    Args:
      labels: For example `"Effusion|Mass"`, as the NIH `Finding Labels` column.

    Raises:
      ValueError: A name is not one of `FINDINGS`, or `No Finding` stands beside
        another class.
    """
    names = tuple(labels.split("|"))
    unknown = [name for name in names if name not in FINDINGS]
    if unknown:
        raise ValueError(
            f"labels must be names of findings joined by '|'. Received: {unknown[0]!r}."
            f" Known: {', '.join(FINDINGS)}."
        )
    if NO_FINDING in names and len(set(names)) > 1:
        raise ValueError(f"labels must name {NO_FINDING!r} alone. Received: {labels!r}.")
    return names
