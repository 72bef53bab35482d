"""Everything that decides what a training run gives, and its TOML file."""

import dataclasses
import tomllib
import types
import typing

from schemas.contract import STANDARD_CONTRACT
from schemas.errors import InputError


def _check(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        raise InputError(f"{name} must be {rule}. Received: {name}={value!r}.")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _check(value in choices, name, f"one of {', '.join(choices)}", value)


@dataclasses.dataclass(frozen=True)
class Split:
    """How images are divided into train, validation and test; always by patient.

    Attributes:
      kind: `patients` divides at random by the seed; `official` takes the NIH's own
        test list and carves the validation part out of the rest; `column` takes the
        manifest's column `split`.
      validation_share: Of the patients, or with `official` of those outside the test
        list; over 0 and under 1.
      test_share: Of the patients; not used by the other two kinds.
      train_val_list: File of the NIH with a file name a line, for `official`.
      test_list: Likewise.
    """

    kind: str = "patients"
    validation_share: float = 0.15
    test_share: float = 0.15
    train_val_list: str = ""
    test_list: str = ""

    def __post_init__(self):
        _check_choice("split.kind", self.kind, ("patients", "official", "column"))
        for name in ("validation_share", "test_share"):
            value = getattr(self, name)
            _check(0 < value < 1, f"split.{name}", "over 0 and under 1", value)
        lists = bool(self.train_val_list), bool(self.test_list)
        if lists != ((self.kind == "official"),) * 2:
            raise InputError(
                "split.train_val_list and split.test_list must be given for kind 'official',"
                f" and only then. Received: kind={self.kind!r},"
                f" train_val_list={self.train_val_list!r}, test_list={self.test_list!r}."
            )


@dataclasses.dataclass(frozen=True)
class Balance:
    """What is done about rare findings, in the training part only.

    Attributes:
      minimum_positives: Images with a rarer finding are repeated until there are
        this many of it; 0 repeats none.
      class_weight_strength: A class weighs 1 minus this times its prevalence; 0
        weighs all the same.
    """

    minimum_positives: int = 2000
    class_weight_strength: float = 0.5

    def __post_init__(self):
        _check(self.minimum_positives >= 0, "balance.minimum_positives", "0 or more",
               self.minimum_positives)  # fmt: skip
        strength = self.class_weight_strength
        _check(0 <= strength <= 1, "balance.class_weight_strength", "from 0 to 1", strength)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of training images. There is no rotation: patients stand upright.

    Attributes:
      flip: Mirror half of the images. Doubtful anatomically, since it moves the heart
        to the other side, but test-time augmentation does it too.
      brightness: Most that is added to or taken from every grey level, as a share of
        the full range; 0 is off.
      contrast: Most by which distances from the mean grow or shrink, as a share; 0 is
        off.
      zoom: Smallest share of the width and height that a random crop keeps; 1 is off.
    """

    flip: bool = True
    brightness: float = 0.1
    contrast: float = 0.1
    zoom: float = 0.9

    def __post_init__(self):
        _check(0 <= self.brightness < 1, "augmentation.brightness", "from 0 to 1", self.brightness)
        _check(0 <= self.contrast < 1, "augmentation.contrast", "from 0 to 1", self.contrast)
        _check(0 < self.zoom <= 1, "augmentation.zoom", "over 0 and up to 1", self.zoom)


@dataclasses.dataclass(frozen=True)
class Loss:
    """What is minimised, on logits, averaged over the 15 classes.

    Attributes:
      kind: `focal` (Lin et al. 2017, https://arxiv.org/abs/1708.02002), `bce`, or
        `weighted_bce`, in which a positive weighs as much as negatives outnumber it.
      gamma: Of `focal`: how little an easy example counts; 0 is `bce`.
      alpha: Of `focal` with `class_balancing`: weight of a positive; a negative
        weighs 1 - alpha.
      class_balancing: Whether `focal` uses `alpha` at all. Keras ignores `alpha`
        without it; 0.25 with it favours negatives, which are common already.
    """

    kind: str = "focal"
    gamma: float = 2.0
    alpha: float = 0.25
    class_balancing: bool = False

    def __post_init__(self):
        _check_choice("loss.kind", self.kind, ("focal", "bce", "weighted_bce"))
        _check(self.gamma >= 0, "loss.gamma", "0 or more", self.gamma)
        _check(0 < self.alpha < 1, "loss.alpha", "over 0 and under 1", self.alpha)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How weights change; all layers are trained.

    Attributes:
      kind: `adam` or `adamw`.
      weight_decay: Of `adamw`.
      clip_norm: Largest norm of a variable's gradient.
    """

    kind: str = "adam"
    weight_decay: float = 0.004
    clip_norm: float = 1.0

    def __post_init__(self):
        _check_choice("optimizer.kind", self.kind, ("adam", "adamw"))
        _check(self.weight_decay >= 0, "optimizer.weight_decay", "0 or more", self.weight_decay)
        _check(self.clip_norm > 0, "optimizer.clip_norm", "over 0", self.clip_norm)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Some epochs at one image size; small sizes first save most of the time on a CPU.

    Attributes:
      size: Height and width the images are shrunk to, in pixels.
      epochs: Most passes over the training part.
      learning_rate: The highest.
      schedule: `cosine` warms up over a twentieth of the stage and falls to a
        twentieth of the rate; `plateau` starts at the rate and halves it when the
        validation AUC has not risen for 5 epochs.
      stop_after: Epochs without a higher validation AUC that end the stage.
    """

    size: int
    epochs: int
    learning_rate: float
    schedule: str = "plateau"
    stop_after: int = 10

    def __post_init__(self):
        _check(32 <= self.size <= STANDARD_CONTRACT.size, "stages.size",
               f"from 32 to {STANDARD_CONTRACT.size}", self.size)  # fmt: skip
        _check(self.epochs > 0, "stages.epochs", "1 or more", self.epochs)
        _check(self.learning_rate > 0, "stages.learning_rate", "over 0", self.learning_rate)
        _check_choice("stages.schedule", self.schedule, ("cosine", "plateau"))
        _check(self.stop_after > 0, "stages.stop_after", "1 or more", self.stop_after)


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a training run gives.

    Attributes:
      title: What the bundle is called wherever its output is shown.
      statement: What the bundle may be used for.
      data: Where the images are from, for the model card.
      seed: Of the split, the order, the augmentation, dropout and initial weights.
      batch_size: Images a step.
      precision: As the option of `score`.
      stages: In order; the last one is at the size that the network is used at.
      split, balance, augmentation, loss, optimizer: See there.
      target_recall: Wanted recall of each finding's threshold.
      threshold_policy: `point` or `conservative`; see `model.tuning`.
      borderline_band: Distance from a threshold within which `--tta borderline`
        takes a second look.
    """

    title: str = "Research model"
    statement: str = "Research prototype. Not for diagnosis. Not validated clinically."
    data: str = "not described"
    seed: int = 0
    batch_size: int = 64
    precision: str = "auto"
    stages: tuple[Stage, ...] = (Stage(size=224, epochs=50, learning_rate=1e-4),)
    split: Split = Split()
    balance: Balance = Balance()
    augmentation: Augmentation = Augmentation()
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    target_recall: float = 0.8
    threshold_policy: str = "point"
    borderline_band: float = 0.05

    def __post_init__(self):
        sizes = [stage.size for stage in self.stages]
        if not sizes or sizes[-1] != STANDARD_CONTRACT.size:
            raise InputError(
                f"stages must end at size {STANDARD_CONTRACT.size}, the network's input."
                f" Received: sizes={sizes}."
            )
        _check(self.batch_size > 0, "batch_size", "1 or more", self.batch_size)
        _check(self.seed >= 0, "seed", "0 or more", self.seed)
        _check(0 < self.target_recall <= 1, "target_recall", "over 0 and up to 1",
               self.target_recall)  # fmt: skip
        _check(0 <= self.borderline_band < 1, "borderline_band", "from 0 to 1",
               self.borderline_band)  # fmt: skip
        _check_choice("threshold_policy", self.threshold_policy, ("point", "conservative"))
        precisions = ("auto", "float32", "mixed_float16", "mixed_bfloat16")
        _check_choice("precision", self.precision, precisions)


def load_training_config(path: str) -> TrainingConfig:
    """Reads a TOML file with the fields of `TrainingConfig`, all of them optional.

    Raises:
      InputError: The file cannot be read, names a field that is not there, or holds
        a value of another type or out of its range.
    """
    try:
        with open(path, "rb") as file:
            values = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} must be a readable TOML file. Received: {error}.") from error
    return _from_toml(TrainingConfig, values, "")


def _from_toml(kind: type, values: object, prefix: str):
    """Returns a dataclass from a TOML table, checking names and types."""
    if not isinstance(values, dict):
        raise InputError(f"{prefix.rstrip('.')} must be a table. Received: {values!r}.")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(values) - set(hints)):
        raise InputError(
            f"The training configuration has no field {prefix}{unknown[0]}."
            f" Known: {', '.join(hints)}."
        )
    required = [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise InputError(f"{prefix}{missing[0]} must be given. Received: {', '.join(values)}.")
    return kind(
        **{name: _value(hints[name], value, prefix + name) for name, value in values.items()}
    )


def _value(hint: type, value: object, name: str):
    if isinstance(hint, types.GenericAlias):  # the only one: tuple[Stage, ...]
        if not isinstance(value, list):
            raise InputError(f"{name} must be an array of tables. Received: {value!r}.")
        return tuple(_from_toml(hint.__args__[0], table, f"{name}.") for table in value)
    if dataclasses.is_dataclass(hint):
        return _from_toml(hint, value, f"{name}.")
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise InputError(f"{name} must be of type {hint.__name__}. Received: {value!r}.")
    return value
