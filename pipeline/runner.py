"""Which Beam runner runs the pipelines."""

import argparse
import copy
import dataclasses
import difflib
import enum
from collections.abc import Callable, Mapping, Sequence

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import (
    GoogleCloudOptions,
    PipelineOptions,
    SetupOptions,
    StandardOptions,
)
from apache_beam.options.pipeline_options_validator import PipelineOptionsValidator
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, create_runner
from apache_beam.transforms.resources import parse_resource_hints

from pipeline.presets import PRESETS, Preset
from schemas.errors import InputError

_LOCAL = ("direct", "fnapi")
_DATAFLOW = "dataflow"
_LOSES_DATA = "dask"

_MISSPELT = 0.85
"""From this likeness on, an unknown option is taken for a misspelt one."""


class Handover(enum.Enum):
    """The option by which a run ends before what it has built has scored anything."""

    DRY_RUN = "--dry_run"
    TEMPLATE = "--template_location"
    SUBMITTED = "--no_wait_until_finish"


@dataclasses.dataclass(frozen=True)
class Runner:
    """A runner and its options.

    Attributes:
      name: For people and the run record.
      is_local: Whether the workers are threads of this process.
      options: Beam's pipeline options.
      resource_hints: What the stage that decodes and infers asks of its machines.
      handover: Why scoring goes on, if at all, when this process has ended; None where
        it is waited for.
    """

    name: str
    is_local: bool
    options: PipelineOptions
    resource_hints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    handover: Handover | None = None

    @property
    def is_dataflow(self) -> bool:
        """Whether the workers are Google's."""
        return _kind(self.name) == _DATAFLOW

    def run(self, build: Callable[[beam.Pipeline], object]) -> PipelineResult:
        """Builds a pipeline, runs it, waits for its end, and returns its result."""
        return self._run(build, waits=True)

    def hand_over(self, build: Callable[[beam.Pipeline], object]) -> None:
        """Builds a pipeline and leaves it to the runner, for `handover`."""
        self._run(build, waits=False)

    def _run(self, build: Callable[[beam.Pipeline], object], *, waits: bool) -> PipelineResult:
        # A copy, since the Dataflow runner writes a job's folders into its options.
        options = copy.deepcopy(self.options)
        options.view_as(StandardOptions).no_wait_until_finish = not waits
        runner = FnApiRunner() if self.is_local else None
        with beam.Pipeline(runner=runner, options=options) as pipeline:
            build(pipeline)
        return pipeline.result


def counter(result: PipelineResult, name: str) -> int:
    """Returns what a pipeline that has ended counted under a name, over all its steps."""
    counters = result.metrics().query(MetricsFilter().with_name(name))["counters"]
    # A portable runner gives None for a counter that was committed as 0.
    return sum(found.result or 0 for found in counters)


def choose_runner(beam_args: Sequence[str], preset: str | None = None) -> Runner:
    """Returns the runner that Beam's command line options name.

    `DirectRunner`, Beam's own default, would first try to download another runner,
    for ever where there is no network; FnApiRunner stands in for it.

    Args:
      beam_args: Options such as `--runner=SparkRunner`.
      preset: One of `pipeline.presets.PRESETS`; says what `beam_args` do not.

    Raises:
      InputError: Beam does not know an option, the runner is known to lose rows, or it
        is not the preset's.
    """
    parser = _parser()
    known, unknown = _parse(parser, beam_args)
    name = (known.runner or "DirectRunner").rpartition(".")[2]
    kind = _kind(name)
    if kind == _LOSES_DATA:
        raise InputError(
            f"--runner must not be DaskRunner, which loses rows. Received: {name}."
            " Use SparkRunner or DataflowRunner, or none for this machine."
        )
    _check_known(unknown, parser, all_are_known=kind in (*_LOCAL, _DATAFLOW))
    chosen = PRESETS[preset] if preset else None
    if chosen:
        _check_preset(preset, chosen, name, kind, known)
    # The last of two counts, so those of the preset come first.
    options = PipelineOptions([*(chosen.beam_args if chosen else ()), *beam_args])
    # The code of a worker is in packages; a main session would pickle the driver.
    options.view_as(SetupOptions).save_main_session = False
    if kind in _LOCAL:
        return Runner("FnApiRunner", True, options)
    if kind != _DATAFLOW:
        return Runner(name, False, options)
    _check_cloud(options)
    hints = _resource_hints(options, chosen) if chosen else {}
    return Runner(name, False, options, hints, _handover(known))


def _kind(name: str) -> str:
    # Beam takes Direct, direct and directrunner for DirectRunner.
    return name.lower().removesuffix("runner")


def _parser() -> argparse.ArgumentParser:
    """Returns what knows every option that Beam does, and raises where a value is wrong."""
    parsers = []
    PipelineOptions([]).get_all_options(add_extra_args_fn=parsers.append)
    parsers[0].exit_on_error = False
    return parsers[0]


def _parse(
    parser: argparse.ArgumentParser, beam_args: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options that Beam knows, and what else stands there."""
    try:
        return parser.parse_known_args(beam_args)
    except argparse.ArgumentError as error:
        raise InputError(
            f"What follows -- must be pipeline options of Beam. Received: {error}."
        ) from error


def _check_known(
    unknown: Sequence[str], parser: argparse.ArgumentParser, *, all_are_known: bool
) -> None:
    """Fails on an option that Beam would leave out without a word.

    Args:
      unknown: What the parser did not take.
      parser: Of Beam's options.
      all_are_known: Whether it knows every option of the runner. Spark, Flink and the
        like have more, which their job services tell Beam later: there only what looks
        like a known one is refused.
    """
    names = [name for name in parser._option_string_actions if name.startswith("--")]
    for word in unknown:
        option = word.partition("=")[0]  # a value may be a secret
        likely = difflib.get_close_matches(option, names, 1, _MISSPELT)
        if likely or all_are_known:
            raise InputError(
                "What follows -- must be pipeline options of Beam. Received:"
                f" {option}, which it does not know."
                + (f" Did you mean {likely[0]}?" if likely else " Mend it, or leave it out.")
            )


def _check_preset(
    name: str, preset: Preset, runner: str, kind: str, known: argparse.Namespace
) -> None:
    if kind != _kind(preset.runner):
        raise InputError(
            f"--preset {name} must be given with --runner={preset.runner}. Received: {runner}."
            f" Write -- --runner={preset.runner} after the other options, or leave the preset out."
        )
    missing = [f"--{option}" for option in preset.needs if not getattr(known, option)]
    if missing:
        raise InputError(
            f"--preset {name} needs further options after --. Missing: {', '.join(missing)}."
            " docs/dataflow.md says where each comes from."
        )
    services = known.dataflow_service_options or []
    if preset.resource_hints and (
        known.flexrs_goal or any(option.startswith("worker_accelerator") for option in services)
    ):
        raise InputError(
            f"--preset {name} must not be given with --flexrs_goal or a worker_accelerator, since"
            " it asks for the GPU by a resource hint. Leave those out; for another GPU give"
            " --resource_hints=accelerator=..."
        )


def _check_cloud(options: PipelineOptions) -> None:
    # Beam would look later, and make a bucket of its own where this one is misspelt.
    validator = PipelineOptionsValidator(options, create_runner("DataflowRunner"))
    cloud = options.view_as(GoogleCloudOptions)
    errors = validator.validate_gcs_path(cloud, "temp_location")
    if errors := errors + validator.validate_cloud_options(cloud):
        raise InputError(
            f"--runner=DataflowRunner needs other options after --. Received: {' '.join(errors)}"
            " docs/dataflow.md says where each comes from."
        )


def _resource_hints(options: PipelineOptions, preset: Preset) -> dict[str, str]:
    """Returns the hints of a preset, and those of the user in their place.

    They are taken out of the options, from where Beam would put them on every stage.
    """
    standard = options.view_as(StandardOptions)
    given = dict(hint.partition("=")[::2] for hint in standard.resource_hints)
    standard.resource_hints = []
    try:
        parse_resource_hints(given)
    except ValueError as error:
        raise InputError(
            f"--resource_hints must be NAME=VALUE, as Beam knows them. Received: {error}"
        ) from error
    return {**preset.resource_hints, **given}


def _handover(known: argparse.Namespace) -> Handover | None:
    if known.dry_run:
        return Handover.DRY_RUN
    if known.template_location:
        return Handover.TEMPLATE
    return Handover.SUBMITTED if known.no_wait_until_finish else None
