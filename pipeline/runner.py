"""Which Beam runner runs the pipelines."""

import dataclasses
from collections.abc import Callable, Sequence

import apache_beam as beam
from apache_beam.metrics import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult

from schemas.errors import InputError

_LOCAL = ("direct", "fnapi")
_LOSES_DATA = "dask"


@dataclasses.dataclass(frozen=True)
class Runner:
    """A runner and its options.

    Attributes:
      name: For people and the run record.
      is_local: Whether the workers are threads of this process.
      options: Beam's pipeline options.
    """

    name: str
    is_local: bool
    options: PipelineOptions

    def run(self, build: Callable[[beam.Pipeline], object]) -> PipelineResult:
        """Builds a pipeline, runs it, waits for its end, and returns its result."""
        runner = FnApiRunner() if self.is_local else None
        with beam.Pipeline(runner=runner, options=self.options) as pipeline:
            build(pipeline)
        return pipeline.result


def counter(result: PipelineResult, name: str) -> int:
    """Returns what a pipeline that has ended counted under a name, over all its steps."""
    counters = result.metrics().query(MetricsFilter().with_name(name))["counters"]
    # A portable runner gives None for a counter that was committed as 0.
    return sum(found.result or 0 for found in counters)


def choose_runner(beam_args: Sequence[str]) -> Runner:
    """Returns the runner that Beam's command line options name.

    `DirectRunner`, Beam's own default, would first try to download another runner,
    for ever where there is no network; FnApiRunner stands in for it.

    Args:
      beam_args: Options such as `--runner=SparkRunner`.

    Raises:
      InputError: The runner is known to lose rows.
    """
    options = PipelineOptions(list(beam_args))
    # The code of a worker is in packages; a main session would pickle the driver.
    options.view_as(SetupOptions).save_main_session = False
    name = (options.view_as(StandardOptions).runner or "DirectRunner").rpartition(".")[2]
    # Beam takes Direct, direct and directrunner for DirectRunner.
    kind = name.lower().removesuffix("runner")
    if kind == _LOSES_DATA:
        raise InputError(
            f"--runner must not be DaskRunner, which loses rows. Received: {name}."
            " Use SparkRunner or DataflowRunner, or none for this machine."
        )
    if kind in _LOCAL:
        return Runner("FnApiRunner", True, options)
    return Runner(name, False, options)
