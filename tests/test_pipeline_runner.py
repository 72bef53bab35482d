"""Which runner is taken, and that nothing else is tried."""

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.runner import PipelineResult, PipelineRunner, PipelineState

from pipeline.runner import choose_runner
from schemas.errors import InputError
from tests.fakes import collect


class ElsewhereRunner(PipelineRunner):
    """Stands for a cluster: keeps the pipelines it is given and what their options are."""

    pipelines: list[tuple[beam.Pipeline, PipelineOptions]] = []
    waited_for: list["ElsewhereResult"] = []

    def run_pipeline(self, pipeline, options):
        self.pipelines.append((pipeline, options))
        return ElsewhereResult(PipelineState.RUNNING)


class ElsewhereResult(PipelineResult):
    def wait_until_finish(self, duration=None):
        ElsewhereRunner.waited_for.append(self)
        self._state = PipelineState.DONE
        return self._state


ELSEWHERE = f"{__name__}.{ElsewhereRunner.__name__}"


@pytest.mark.parametrize(
    "beam_args",
    [
        (),
        ("--runner=DirectRunner",),
        ("--runner=FnApiRunner",),
        ("--runner", "DirectRunner"),
        ("--runner=apache_beam.runners.direct.direct_runner.DirectRunner",),
        ("--direct_num_workers=1",),
    ],
    ids=lambda args: " ".join(args) or "none",
)
def test_choose_runner_this_machine_is_the_fn_api_runner(beam_args):
    runner = choose_runner(beam_args)
    assert (runner.name, runner.is_local) == ("FnApiRunner", True)
    used = []
    runner.run(lambda pipeline: used.append(type(pipeline.runner)))
    assert used == [FnApiRunner]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("SparkRunner", "SparkRunner"),
        ("PortableRunner", "PortableRunner"),
        (ELSEWHERE, "ElsewhereRunner"),
    ],
    ids=["spark", "portable", "own"],
)
def test_choose_runner_another_is_taken_by_its_name(given, name):
    runner = choose_runner([f"--runner={given}"])
    assert (runner.name, runner.is_local) == (name, False)


@pytest.mark.parametrize(
    "given",
    ["DaskRunner", "apache_beam.runners.dask.dask_runner.DaskRunner"],
    ids=["short", "qualified"],
)
def test_choose_runner_that_loses_rows_is_refused(given):
    with pytest.raises(InputError) as caught:
        choose_runner([f"--runner={given}"])
    assert str(caught.value) == (
        "--runner must not be DaskRunner, which loses rows. Received: DaskRunner."
        " Use SparkRunner or DataflowRunner, or none for this machine."
    )


@pytest.mark.parametrize(
    "beam_args", [(), ("--save_main_session",)], ids=["by_default", "even_if_asked"]
)
def test_choose_runner_main_session_is_never_pickled(beam_args):
    assert choose_runner(beam_args).options.view_as(SetupOptions).save_main_session is False


@pytest.mark.parametrize("runner", [None, "FnApiRunner", "SparkRunner", ELSEWHERE])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--job_nam=x", "--job_nam, which it does not know. Did you mean --job_name?"),
        ("--spark_master_ulr=x", "--spark_master_ulr, which it does not know."),
        ("runner=SparkRunner", "runner, which it does not know. Did you mean --runner?"),
        ("--disk_size_gb=much", "argument --disk_size_gb: invalid int value: 'much'."),
    ],
    ids=["misspelt", "spark", "no_dashes", "value"],
)
def test_choose_runner_option_that_beam_would_leave_out_is_refused(runner, wrong, said):
    with pytest.raises(InputError) as caught:
        choose_runner([*([f"--runner={runner}"] if runner else []), wrong])
    assert str(caught.value).startswith(
        f"What follows -- must be pipeline options of Beam. Received: {said}"
    )


def test_choose_runner_unknown_option_is_named_without_its_value():
    with pytest.raises(InputError) as caught:
        choose_runner(["--store_password=secret"])
    assert str(caught.value) == (
        "What follows -- must be pipeline options of Beam. Received: --store_password, which it"
        " does not know. Mend it, or leave it out."
    )


def test_choose_runner_option_of_a_job_service_is_left_to_it():
    options = choose_runner(["--runner=SparkRunner", "--storage_level=DISK_ONLY"]).options
    assert options.get_all_options(retain_unknown_options=True)["storage_level"] == "DISK_ONLY"


def test_choose_runner_experiments_are_all_kept():
    given = ["--experiments=one,two", "--experiment=three", "--experiments", "four=4"]
    options = choose_runner(given).options.get_all_options()
    assert options["experiments"] == ["one", "two", "three", "four=4"]


def test_run_here_is_over_when_it_returns():
    def build(pipeline):
        return {"squares": pipeline | beam.Create([1, 2, 3]) | beam.Map(lambda x: x * x)}

    assert sorted(collect(build)["squares"]) == [1, 4, 9]


def _fail(element):
    raise RuntimeError(f"cannot do {element}")


def test_run_here_an_error_of_a_worker_is_raised():
    runner = choose_runner([])
    with pytest.raises(Exception, match="cannot do 7"):
        runner.run(lambda pipeline: pipeline | beam.Create([7]) | beam.Map(_fail))


def test_run_elsewhere_hands_over_the_pipeline_with_its_options_and_waits(monkeypatch):
    monkeypatch.setattr(ElsewhereRunner, "pipelines", [])
    monkeypatch.setattr(ElsewhereRunner, "waited_for", [])
    # Waits also where Beam is asked not to: what comes next reads what the pipeline wrote.
    options = ["--job_name=nightly", "--no_wait_until_finish"]
    runner = choose_runner([f"--runner={ELSEWHERE}", *options])
    built = []

    def build(pipeline):
        built.append(pipeline)
        return pipeline | beam.Create([1])

    runner.run(build)
    [(pipeline, options)] = ElsewhereRunner.pipelines
    assert built == [pipeline]
    assert options.get_all_options()["job_name"] == "nightly"
    assert len(ElsewhereRunner.waited_for) == 1


def test_run_that_cannot_be_built_runs_nothing(monkeypatch):
    monkeypatch.setattr(ElsewhereRunner, "pipelines", [])
    with pytest.raises(RuntimeError, match="cannot do 1"):
        choose_runner([f"--runner={ELSEWHERE}"]).run(lambda pipeline: _fail(1))
    assert ElsewhereRunner.pipelines == []


@pytest.mark.parametrize("given", ["direct", "directrunner", "Direct", "fnapirunner"])
def test_choose_runner_name_in_any_form_that_beam_takes_is_local(given):
    runner = choose_runner([f"--runner={given}"])
    assert (runner.name, runner.is_local) == ("FnApiRunner", True)
