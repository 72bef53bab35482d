"""Joins manifests of sample archives into one with a column `split`, for training.

Usage: python scripts/join_manifests.py OUTPUT SPLIT=MANIFEST...
"""

import csv
import sys
from pathlib import Path


def main(output: str, *parts: str) -> None:
    """Writes OUTPUT from `SPLIT=MANIFEST` pairs; all manifests have the same columns."""
    with open(output, "w", newline="", encoding="utf-8") as file:
        rows = None
        for part in parts:
            split, manifest = part.split("=", 1)
            folder = Path(manifest).resolve().parent
            with open(manifest, newline="", encoding="utf-8") as source:
                for row in csv.DictReader(source):
                    row |= {"uri": str(folder / row["uri"]), "split": split}
                    if rows is None:
                        rows = csv.DictWriter(file, row)
                        rows.writeheader()
                    rows.writerow(row)


if __name__ == "__main__":
    main(*sys.argv[1:])
