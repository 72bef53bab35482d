"""What the distance from the training data costs: the frozen graph with and without it.

Runs both in turn on the same images and prints the medians. Without a fitted bundle it takes a
random distance, which costs the same.
"""

import argparse
import statistics
import time

import numpy as np

from model.bundle import demo_bundle_path, load_network
from model.feature_distance import FEATURES, FeatureDistance
from model.scorer import CPU_BATCH_SIZE, Scorer


def main() -> None:
    """Reads the arguments, measures, and prints medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=demo_bundle_path(), metavar="BUNDLE")
    parser.add_argument("--batch-size", type=int, default=CPU_BATCH_SIZE, metavar="N")
    parser.add_argument("--repeats", type=int, default=40, metavar="N")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (arguments.batch_size, 224, 224), np.uint8)
    network = load_network(arguments.model)
    whitening = np.triu(rng.normal(size=(FEATURES, FEATURES))).astype(np.float32)
    distance = FeatureDistance(np.zeros(FEATURES, np.float32), whitening)
    scorers = {"without": Scorer(network), "with": Scorer(network, distance=distance)}
    seconds = {name: [] for name in scorers}
    for scorer in scorers.values():
        scorer.score(images)
    for repeat in range(arguments.repeats):
        # Each goes first as often as the other.
        for name in sorted(scorers, reverse=bool(repeat % 2)):
            started = time.perf_counter()
            scorers[name].score(images)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        each = value / arguments.batch_size * 1e3
        spread = f"{min(seconds[name]):.3f} to {max(seconds[name]):.3f} s a batch"
        print(f"{name:<8} {each:.2f} ms an image ({spread})")
    ratios = [one / other for one, other in zip(seconds["with"], seconds["without"], strict=True)]
    print(f"ratio of the medians {medians['with'] / medians['without']:.4f},")
    print(f"median of the ratios in turn {statistics.median(ratios):.4f}")


if __name__ == "__main__":
    main()
