"""A bundle: a network on disk with everything needed to believe its scores.

A folder of `model.keras`, `bundle.json`, `features.npz` where the distance from the training
data is known, and, for people, `card.md`. Nothing in it is executable: no pickle, no code, and
Keras loads it in safe mode.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

from model.bundle_cache import local_bundle
from model.calibration import Calibration, calibration_from_json
from model.card import model_card
from model.feature_distance import (
    FEATURES_FILE,
    FeatureDistance,
    FeatureReference,
    read_features,
    write_features,
)
from model.thresholds import TTA_MODES, Threshold, thresholds_from_json, thresholds_to_json
from schemas.contract import (
    STANDARD_CONTRACT,
    VIEW_BRIGHTNESS,
    VIEW_CONTRAST,
    VIEWS,
    InputContract,
)
from schemas.errors import InputError
from schemas.findings import FINDINGS

FORMAT_VERSION = 1
_NETWORK_FILE = "model.keras"
_INFO_FILE = "bundle.json"
_CARD_FILE = "card.md"

_ID_DIGITS = 12


@dataclasses.dataclass(frozen=True)
class BundleInfo:
    """What `bundle.json` holds.

    Attributes:
      title: What the model is called wherever its output is shown.
      statement: What it may be used for, in plain words.
      findings: Classes in output order.
      input_contract: How an image becomes the network's input.
      training_precision: Keras dtype policy of the training.
      thresholds: By test-time augmentation mode, one a finding.
      borderline_band: Distance from a threshold, in score, within which the mode
        `borderline` takes a second look.
      metrics: What was measured, with the name of the split it was measured on.
      provenance: Data, configuration and software of the training.
      model_sha256: Digest of `model.keras`, 64 hex digits.
      calibration: How scores become probabilities; None where nothing was fitted.
        Fitted on scores of a single view.
      feature_reference: What is known of distances from the training data; None where
        nothing was fitted. It changes no score.
    """

    title: str
    statement: str
    findings: tuple[str, ...]
    input_contract: InputContract
    training_precision: str
    thresholds: Mapping[str, Mapping[str, Threshold]]
    borderline_band: float
    metrics: Mapping
    provenance: Mapping
    model_sha256: str
    calibration: Calibration | None = None
    feature_reference: FeatureReference | None = None

    @property
    def model_id(self) -> str:
        """12 hex digits over the network and all else that changes a score or abnormality."""
        deciding = {
            "model_sha256": self.model_sha256,
            "findings": list(self.findings),
            "input_contract": self.input_contract.to_json(),
            "borderline_band": self.borderline_band,
            "tta": [VIEWS, VIEW_BRIGHTNESS, VIEW_CONTRAST],
        }
        if self.calibration:
            deciding["calibration"] = self.calibration.to_json()
        return short_digest(deciding)

    def to_json(self) -> dict:
        """Returns the content of `bundle.json`."""
        return {
            "format_version": FORMAT_VERSION,
            "title": self.title,
            "statement": self.statement,
            "findings": list(self.findings),
            "input_contract": self.input_contract.to_json(),
            "training_precision": self.training_precision,
            "thresholds": {
                mode: thresholds_to_json(values) for mode, values in self.thresholds.items()
            },
            "borderline_band": self.borderline_band,
            "calibration": self.calibration.to_json() if self.calibration else None,
            "feature_distance": (
                self.feature_reference.to_json() if self.feature_reference else None
            ),
            "metrics": dict(self.metrics),
            "provenance": dict(self.provenance),
            "model_sha256": self.model_sha256,
        }


def thresholds_id(thresholds: Mapping[str, Threshold]) -> str:
    """Returns 12 hex digits over the thresholds of one mode."""
    return short_digest({name: thresholds[name].threshold for name in thresholds})


def short_digest(values: object) -> str:
    """Returns the first 12 hex digits of SHA-256 over canonical JSON."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:_ID_DIGITS]


def demo_bundle_path() -> str:
    """Returns the folder of the bundle that is used when none is named."""
    return str(resources.files("model") / "demo_bundle")


def save_bundle(
    network, info: BundleInfo, folder: str, distance: FeatureDistance | None = None
) -> BundleInfo:
    """Writes a bundle; `bundle.json` last, so that half a bundle has none.

    Args:
      network: A Keras model.
      info: Everything else; its digests are replaced.
      folder: New, or holding a bundle that is overwritten.
      distance: Where, and only where, `info` has a `feature_reference`.

    Returns:
      `info` with the digests of the files as written.

    Raises:
      ValueError: There is one of `distance` and `feature_reference` without the other.
    """
    if (distance is None) != (info.feature_reference is None):
        raise ValueError(
            "distance must be given where info has a feature_reference, and only there. Received:"
            f" distance={distance}, feature_reference={info.feature_reference}."
        )
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / _INFO_FILE).unlink(missing_ok=True)
    network.save(path / _NETWORK_FILE)
    info = dataclasses.replace(info, model_sha256=file_sha256(path / _NETWORK_FILE))
    info = _with_distance(info, distance, path)
    _write_info(info, path)
    return info


def copy_bundle(
    folder: str, into: str, info: BundleInfo, distance: FeatureDistance | None = None
) -> None:
    """Writes a bundle of the same network and other facts; `bundle.json` last.

    Args:
      folder: The bundle whose files are copied.
      into: A folder that does not exist.
      info: The facts of the copy, with the digest of that network.
      distance: Another than the bundle's; None for that one, if it has one.

    Raises:
      InputError: `into` exists or cannot be made.
    """
    path = Path(into)
    try:
        path.mkdir(parents=True)
    except OSError as error:
        raise InputError(
            f"A copy of a bundle must go to a new folder. Received: {into}: {error.strerror}."
            " Name another folder."
        ) from error
    source = _on_this_machine(folder)
    shutil.copyfile(source / _NETWORK_FILE, path / _NETWORK_FILE)
    if distance is None and info.feature_reference:
        shutil.copyfile(source / FEATURES_FILE, path / FEATURES_FILE)
    else:
        info = _with_distance(info, distance, path)
    _write_info(info, path)


def _with_distance(info: BundleInfo, distance: FeatureDistance | None, path: Path) -> BundleInfo:
    """Writes the file of the distance, if there is one, and notes its digest."""
    if distance is None:
        return info
    sha256 = write_features(distance, path)
    reference = dataclasses.replace(info.feature_reference, sha256=sha256)
    return dataclasses.replace(info, feature_reference=reference)


def _write_info(info: BundleInfo, folder: Path) -> None:
    (folder / _CARD_FILE).write_text(model_card(info), encoding="utf-8")
    temporary = folder / f"{_INFO_FILE}.tmp"
    temporary.write_text(json.dumps(info.to_json(), indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, folder / _INFO_FILE)


def load_bundle_info(folder: str) -> BundleInfo:
    """Reads and verifies a bundle without loading its network.

    Args:
      folder: Of the bundle; local or a `gs://` uri.

    Raises:
      InputError: The folder is no bundle, its network file has another digest, or
        its findings or input contract are not the ones this software serves.
    """
    path = _on_this_machine(folder)
    values = _read_info(path)
    try:
        info = _info_from_json(values, folder)
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder}/{_INFO_FILE} lacks or garbles the field {error}.") from error
    _check_served(info, folder)
    digest = file_sha256(path / _NETWORK_FILE)
    if digest != info.model_sha256:
        raise InputError(
            f"{folder}/{_NETWORK_FILE} must have the digest that {_INFO_FILE} names,"
            f" {info.model_sha256[:_ID_DIGITS]}. Received: {digest[:_ID_DIGITS]}."
            " The file was changed or damaged: restore the bundle."
        )
    if info.feature_reference:
        read_features(path, info.feature_reference.sha256)
    return info


def load_features(folder: str, sha256: str) -> FeatureDistance:
    """Returns what measures distances from the training data of a bundle.

    Args:
      folder: Of the bundle; local or a `gs://` uri.
      sha256: Of the file, as a verified `bundle.json` names it.

    Raises:
      InputError: It is missing, another, or garbled.
    """
    return read_features(_on_this_machine(folder), sha256)


def load_network(folder: str):
    """Returns the Keras model of a verified bundle.

    Raises:
      InputError: Its output width is not the number of findings, or its input is
        not the contract's.
    """
    import keras  # here, so that the facts of a bundle can be read without TensorFlow

    network = keras.saving.load_model(_on_this_machine(folder) / _NETWORK_FILE, compile=False)
    size = STANDARD_CONTRACT.size
    if network.output_shape[1:] != (len(FINDINGS),):
        raise InputError(
            f"{folder}: the network must have {len(FINDINGS)} outputs, one a finding."
            f" Received: output_shape={network.output_shape}."
        )
    dtype = network.inputs[0].dtype
    if network.input_shape[1:] != (size, size) or dtype != "uint8":
        raise InputError(
            f"{folder}: the network must take uint8 ({size}, {size})."
            f" Received: input_shape={network.input_shape}, dtype={dtype}."
        )
    return network


def bundle_files(folder: str) -> tuple[str, ...]:
    """Returns the names of the files that make a local bundle; the first names the others."""
    return (_INFO_FILE, *_further_files((Path(folder) / _INFO_FILE).read_bytes()))


def _further_files(content: bytes) -> tuple[str, ...]:
    """Returns the files that the content of `bundle.json` wants beside itself."""
    try:
        wants_features = json.loads(content).get("feature_distance") is not None
    except (ValueError, AttributeError):  # to be refused where it is read
        wants_features = False
    return (_NETWORK_FILE, FEATURES_FILE) if wants_features else (_NETWORK_FILE,)


def _on_this_machine(folder: str) -> Path:
    return Path(local_bundle(folder, _INFO_FILE, _further_files))


def _read_info(folder: Path) -> dict:
    for name in (_INFO_FILE, _NETWORK_FILE):
        if not (folder / name).is_file():
            raise InputError(
                f"A bundle must be a folder with {_INFO_FILE} and {_NETWORK_FILE}."
                f" Received: {folder}, without {name}."
            )
    try:
        values = json.loads((folder / _INFO_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{folder}/{_INFO_FILE} must be readable JSON. Received: {error}."
        ) from error
    version = values.get("format_version") if isinstance(values, dict) else None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{folder}/{_INFO_FILE} must have format_version {FORMAT_VERSION}."
            f" Received: {version!r}. Use the version of this software that wrote it."
        )
    return values


def _info_from_json(values: Mapping, folder: str) -> BundleInfo:
    contract = dict(values["input_contract"])
    contract["value_range"] = tuple(contract["value_range"])
    calibration = values["calibration"]
    reference = values.get("feature_distance")  # bundles from before have no such field
    return BundleInfo(
        title=values["title"],
        statement=values["statement"],
        findings=tuple(values["findings"]),
        input_contract=InputContract(**contract),
        training_precision=values["training_precision"],
        thresholds={
            mode: thresholds_from_json(mode_thresholds, f"{folder}: thresholds.{mode}")
            for mode, mode_thresholds in values["thresholds"].items()
        },
        borderline_band=float(values["borderline_band"]),
        metrics=values["metrics"],
        provenance=values["provenance"],
        model_sha256=values["model_sha256"],
        calibration=None if calibration is None else calibration_from_json(calibration, folder),
        feature_reference=None if reference is None else FeatureReference.from_json(reference),
    )


def _check_served(info: BundleInfo, folder: str) -> None:
    if info.findings != FINDINGS:
        raise InputError(
            f"{folder}: findings must be the {len(FINDINGS)} of ChestX-ray14 in their order."
            f" Received {len(info.findings)}: {', '.join(map(str, info.findings))}."
        )
    for field in dataclasses.fields(InputContract):
        received = getattr(info.input_contract, field.name)
        served = getattr(STANDARD_CONTRACT, field.name)
        if received != served:
            raise InputError(
                f"{folder}: input_contract.{field.name} must be {served!r}, what this version"
                f" implements. Received: {received!r}."
            )
    unknown = sorted(set(info.thresholds) - set(TTA_MODES))
    if unknown:
        raise InputError(f"{folder}: thresholds must be for {TTA_MODES}. Received: {unknown}.")


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's content, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
