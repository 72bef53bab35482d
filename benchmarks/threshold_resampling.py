"""How often a tuned threshold misses its target on other patients, by resampling.

Usage: python benchmarks/threshold_resampling.py SCORES LABELS [--score-prefix score_]
  [--target-recall 0.8] [--resamples 200] [--bootstrap 400] [--seed 0] [--output FILE.json]

Each resample divides the patients at random into halves, tunes thresholds on one with
either policy, and measures the recall on the other. SCORES and LABELS are files as
`prescreen tune` reads them.

What to expect of `conservative`: the lower end of a 95% interval lies above the target,
so the recall of all patients there could be would miss it in 2.5%. The other half is no
such thing but a sample of equal size, with an error of its own; the difference of the
two varies by the square root of 2 more, so that about 8% of the resamples miss:
Phi(-1.96 / sqrt(2)) = 0.083.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from model.score_table import LabelledScores, read_labelled_scores
from model.splits import split_by_patient
from model.thresholds import threshold_vector
from model.tuning import tune_thresholds
from schemas.findings import ABNORMAL_FINDINGS, ABNORMAL_INDICES, FINDINGS, NO_FINDING

_POLICIES = ("point", "conservative")
_PERCENTILES = (5, 25, 50, 75, 95)
_COMMON = 300
"""Findings with more positive images than this, in all, count in the average."""


def main() -> None:
    """Resamples, prints a table a policy, and writes JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scores", help="scores, as `prescreen tune` reads them")
    parser.add_argument("labels", help="labels with patients")
    parser.add_argument("--score-prefix", default="score_", help="of score columns (score_)")
    parser.add_argument("--target-recall", type=float, default=0.8, help="to reach (0.8)")
    parser.add_argument("--resamples", type=int, default=200, help="random halves (200)")
    parser.add_argument("--bootstrap", type=int, default=400, help="samples a tuning (400)")
    parser.add_argument("--seed", type=int, default=0, help="of the halves (0)")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    arguments = parser.parse_args()
    images = read_labelled_scores(
        arguments.scores, arguments.labels, score_prefix=arguments.score_prefix
    )
    results = [
        summarise(images, recalls, rules, arguments.target_recall, policy)
        for policy, (recalls, rules) in _resample(images, arguments).items()
    ]
    for result in results:
        _print(result)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n")


def _resample(images: LabelledScores, arguments: argparse.Namespace) -> dict:
    """Returns by policy held-out recalls and fallbacks, each `(resamples, 14)`.

    A recall is NaN where the other half has no positive image.
    """
    scores, labels = _all_classes(images.scores, images), _all_classes(images.labels, images)
    found = {policy: ([], []) for policy in _POLICIES}
    for number in range(arguments.resamples):
        seed = arguments.seed + number
        halves = split_by_patient(images.patients, seed, {"tuned": 0.5, "held_out": 0.5})
        tuned, held_out = halves["tuned"], halves["held_out"]
        positive = labels[held_out][:, ABNORMAL_INDICES]
        for policy, (recalls, fallbacks) in found.items():
            thresholds = tune_thresholds(
                scores[tuned],
                labels[tuned],
                arguments.target_recall,
                policy=policy,
                patients=images.patients[tuned],
                samples=arguments.bootstrap,
                seed=seed,
            )
            flagged = (scores[held_out] >= threshold_vector(thresholds))[:, ABNORMAL_INDICES]
            with np.errstate(invalid="ignore"):
                recalls.append((flagged & positive).sum(axis=0) / positive.sum(axis=0))
            rules = [thresholds[name].rule for name in ABNORMAL_FINDINGS]
            fallbacks.append([rule == "fallback_few_positives" for rule in rules])
    return {name: (np.array(one), np.array(other)) for name, (one, other) in found.items()}


def _all_classes(values: np.ndarray, images: LabelledScores) -> np.ndarray:
    if NO_FINDING in images.findings:
        return values
    return np.insert(values, FINDINGS.index(NO_FINDING), 0, axis=1)


def summarise(
    images: LabelledScores, recalls: np.ndarray, fallbacks: np.ndarray, target: float, policy: str
) -> dict:
    """Returns JSON values: by finding the held-out recall and how often it misses."""
    findings = {}
    for k, name in enumerate(ABNORMAL_FINDINGS):
        positive = images.labels[:, images.findings.index(name)]
        known = recalls[:, k][~np.isnan(recalls[:, k])]
        findings[name] = {
            "positives": int(positive.sum()),
            "patients": len(np.unique(images.patients[positive])),
            "recall": np.percentile(known, _PERCENTILES).tolist(),
            # A recall that falls short by rounding alone is no miss.
            "missed": float((known < target - 1e-9).mean()),
            "fell_back": float(fallbacks[:, k].mean()),
        }
    common = [v["missed"] for v in findings.values() if v["positives"] > _COMMON]
    return {
        "policy": policy,
        "target_recall": target,
        "resamples": len(recalls),
        "images": len(images),
        "patients": len(np.unique(images.patients)),
        "findings": findings,
        "common": len(common),
        "missed": float(np.mean(common)),
    }


def _print(result: dict) -> None:
    print(
        f"policy {result['policy']}, target {result['target_recall']}: held-out recall over"
        f" {result['resamples']} resamples of {result['patients']:,} patients,"
        f" {result['images']:,} images"
    )
    heads = "".join(f"{f'{percentile}%':>7}" for percentile in _PERCENTILES)
    print(f"{'finding':<20}{'positives':>10}{'patients':>9}{heads}{'missed':>8}{'fell back':>11}")
    for name, value in result["findings"].items():
        recalls = "".join(f"{recall:7.3f}" for recall in value["recall"])
        print(
            f"{name:<20}{value['positives']:>10,}{value['patients']:>9,}{recalls}"
            f"{value['missed']:>8.1%}{value['fell_back']:>11.1%}"
        )
    print(
        f"missed by the {result['common']} findings with over {_COMMON} positive images in all,"
        f" on average: {result['missed']:.1%}\n"
    )


if __name__ == "__main__":
    main()
