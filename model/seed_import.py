"""The seed system's files as a bundle: its weights, thresholds and labels.

The seed feeds images of 0 to 1 to an EfficientNetB0 that divides by 255 itself, so its
network has only seen grey levels divided by 255 twice. An import keeps that, and whether
the layer `rescaling_1` is there, in the constants of our `scaling` layer.
"""

import collections
import dataclasses
import datetime
import hashlib
import numbers
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import keras
import numpy as np

from model.bundle import BundleInfo
from model.network import IMAGENET_STD, Scaling, build_network
from model.restricted_pickle import load_plain_pickle
from model.seed_weights import SeedWeights, assign_seed_weights, read_seed_weights
from model.thresholds import Threshold, Thresholds
from schemas.contract import STANDARD_CONTRACT
from schemas.errors import InputError
from schemas.findings import ABNORMAL_FINDINGS, FINDINGS, NO_FINDING

TTA_MODES_OF_GRAPH = {"evaluated": ("all",), "demo": ("none", "all")}
"""By graph, the modes that stand for how the seed uses its thresholds with it.

The notebook applies them to scores averaged over random views, and of ours `all` is the
likest. `demo.py` applies them to scores of a single view as well.
"""

_PRECISIONS = {"float32": "float32", "mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}
_KERAS_EPSILON = 1e-7
_BORDERLINE_BAND = 0.05
"""As bundles trained here have it; unused until thresholds for that mode are tuned."""

_SOFTWARE = ("prescreen", "tensorflow", "keras", "numpy", "h5py")

_STATEMENT = (
    "Research prototype. Not for diagnosis. Not measured by this software."
    " Weights of the seed project, imported as they are, with its error of dividing grey"
    " levels by 255 twice.{graph} Under mixed_float16 the network can tell {fewest} to {most} of"
    " 256 grey levels apart. Thresholds were fitted on the seed's own test set, to scores"
    " averaged over random views, which this software does not make: tune them on labelled"
    " images of yours before relying on a flag."
)
_STATEMENT_OF_GRAPH = {
    "evaluated": "",
    "demo": " As in the seed's demo.py the layer rescaling_1, with which the weights were"
    " trained, is left out.",
}
_THRESHOLDS_ORIGIN = (
    "the seed's pickle: highest precision at a recall of at least 0.80 on its own test set,"
    " on scores averaged over the original and five random augmentations; what recall they"
    " reach on other scores is unknown"
)


@dataclasses.dataclass(frozen=True)
class SeedFiles:
    """Paths of what the seed's notebook saves.

    Attributes:
      weights: `best_model_final.h5`, as Keras 2 writes weights or a whole model.
      thresholds: `optimal_thresholds.pkl`, a threshold by finding.
      labels: `label_encoder.pkl`, an output index by finding.
    """

    weights: str
    thresholds: str
    labels: str


def import_seed(files: SeedFiles, graph: str) -> tuple[keras.Model, BundleInfo]:
    """Returns the network and the facts of a bundle made of the seed's files.

    Args:
      files: Nothing of them is executed.
      graph: `evaluated` gives the scores of the graph that the notebook evaluated,
        `demo` those of the seed's `demo.py`, which lacks `rescaling_1`.

    Raises:
      InputError: A file cannot be read, is of another kind, or holds other weights,
        findings or numbers than those of the seed.
    """
    check_labels(load_plain_pickle(files.labels), files.labels)
    thresholds = read_thresholds(load_plain_pickle(files.thresholds), files.thresholds)
    weights = read_seed_weights(files.weights)
    scaling = seed_scaling(weights, graph)
    network = build_network(scaling=scaling)
    assign_seed_weights(network, weights, files.weights)
    levels = grey_levels_left(scaling)
    half = levels["mixed_float16"]
    info = BundleInfo(
        title=f"Imported seed model ({graph} graph)",
        statement=_STATEMENT.format(
            graph=_STATEMENT_OF_GRAPH[graph], fewest=min(half), most=max(half)
        ),
        findings=FINDINGS,
        input_contract=STANDARD_CONTRACT,
        training_precision="mixed_float16",
        thresholds=dict.fromkeys(TTA_MODES_OF_GRAPH[graph], thresholds),
        borderline_band=_BORDERLINE_BAND,
        metrics=_nothing_measured(),
        provenance={
            **_provenance(files, graph, weights),
            "scaling": dataclasses.asdict(scaling),
            "grey_levels_left": levels,
        },
        model_sha256="",
    )
    return network, info


def check_labels(labels: object, source: str) -> None:
    """Checks that the seed's output order is that of `FINDINGS`.

    Args:
      labels: Output index by finding, or the findings in order.
      source: Names the file in errors.

    Raises:
      InputError: It is neither, or the order is another one.
    """
    if isinstance(labels, Mapping):
        order = _by_index(labels, source)
    elif isinstance(labels, list | tuple) or (isinstance(labels, np.ndarray) and labels.ndim == 1):
        order = dict(enumerate(labels))
    else:
        raise InputError(
            f"{source} must hold a dict from finding to index, or a list of findings."
            f" Received: {type(labels).__name__}."
        )
    for index, finding in enumerate(FINDINGS):
        received = order.get(index)
        if not isinstance(received, str) or _plain(received) != _plain(finding):
            raise InputError(
                f"{source} must give index {index} to {finding!r}, findings being in"
                f" alphabetical order. Received: {received!r:.60}."
            )
    if len(order) > len(FINDINGS):
        raise InputError(f"{source} must hold {len(FINDINGS)} findings. Received: {len(order)}.")


def _by_index(labels: Mapping, source: str) -> dict[int, object]:
    order = {}
    for finding, index in labels.items():
        if not isinstance(index, numbers.Integral) or isinstance(index, bool) or index in order:
            raise InputError(
                f"{source} must give each finding an index of its own."
                f" Received: {index!r:.60} for {finding!r:.60}."
            )
        order[int(index)] = finding
    return order


def read_thresholds(values: object, source: str) -> Thresholds:
    """Returns the seed's thresholds of the 14 findings; that of No Finding is left out.

    What recall they have on which images is not in the file, and stays unknown.

    Args:
      values: A number, 0 to 1, by finding.
      source: Names the file in errors.

    Raises:
      InputError: A finding is missing or unknown, or a value is no such number.
    """
    if not isinstance(values, Mapping):
        raise InputError(
            f"{source} must hold a dict from finding to threshold."
            f" Received: {type(values).__name__}."
        )
    by_name = {_plain(str(name)): value for name, value in values.items()}
    counts = collections.Counter(_plain(str(name)) for name in values)
    del counts[_plain(NO_FINDING)]
    wanted = set(map(_plain, ABNORMAL_FINDINGS))
    odd = [name for name in sorted(wanted | set(counts)) if counts[name] != 1 or name not in wanted]
    if odd:
        raise InputError(
            f"{source} must give each of the {len(wanted)} findings one threshold."
            f" Received: missing, unknown or given twice {', '.join(odd)[:200]}."
        )
    return {name: _threshold(by_name[_plain(name)], name, source) for name in ABNORMAL_FINDINGS}


def _threshold(value: object, name: str, source: str) -> Threshold:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    # NaN fails the comparison too.
    if not is_number or not 0 <= value <= 1:
        raise InputError(
            f"{source}: the threshold of {name} must be a number from 0 to 1."
            f" Received: {value!r:.60}."
        )
    return Threshold(
        threshold=float(np.float32(value)),
        recall=None,
        recall_low=None,
        recall_high=None,
        precision=None,
        positives=None,
        rule="imported",
        interval=None,
    )


def _plain(name: str) -> str:
    return name.replace(" ", "_")


def seed_scaling(weights: SeedWeights, graph: str) -> Scaling:
    """Returns what the seed's graph makes of a grey level before its first convolution.

    The image divided by 255, EfficientNetB0's division by 255, its normalization, and in
    the graph `evaluated` the layer `rescaling_1`, which divides by the square root of
    ImageNet's standard deviation: one affine map a channel.

    Args:
      weights: Whose normalization it is.
      graph: One of `TTA_MODES_OF_GRAPH`.
    """
    divisor = np.maximum(np.sqrt(weights.variance.astype(np.float64)), _KERAS_EPSILON)
    if graph == "evaluated":
        divisor = divisor * np.sqrt(IMAGENET_STD)
    return Scaling(
        scale=tuple((1 / (255 * 255 * divisor)).tolist()),
        offset=tuple((-weights.mean / divisor).tolist()),
    )


def grey_levels_left(scaling: Scaling) -> dict[str, list[int]]:
    """Returns how many of 256 grey levels the first convolution can tell apart.

    Args:
      scaling: As the network's layer `scaling` applies it, in float32.

    Returns:
      By precision, the number for red, green and blue.
    """
    scale, offset = np.float32(scaling.scale), np.float32(scaling.offset)
    scaled = np.arange(256, dtype=np.float32)[:, np.newaxis] * scale + offset
    left = {}
    for precision, dtype in _PRECISIONS.items():
        seen = np.asarray(keras.ops.cast(keras.ops.cast(scaled, dtype), "float32"))
        left[precision] = [len(np.unique(channel)) for channel in seen.T]
    return left


def _nothing_measured() -> dict:
    return {
        "split": "no data: imported, not measured",
        "images": 0,
        "mean_auc": None,
        "findings": {name: {"auc": None, "positives": 0} for name in ABNORMAL_FINDINGS},
        "flag_rate": {},
    }


def _provenance(files: SeedFiles, graph: str, weights: SeedWeights) -> dict:
    return {
        "data": "ChestX-ray14, by the seed's own account",
        "imported_from": {
            name: {"file": Path(path).name, "sha256": _sha256(path)}
            for name, path in dataclasses.asdict(files).items()
        },
        "graph": graph,
        "written_as": "whole model" if weights.whole_model else "weights",
        "written_with_rescaling_1": weights.second_rescaling,
        "thresholds_origin": _THRESHOLDS_ORIGIN,
        "software": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in _SOFTWARE},
        },
        "imported_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
