"""The job that Dataflow would be given, built without an account and without a network."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import SetupOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.dataflow.internal import apiclient
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from click.testing import CliRunner

from jobs.cli import cli
from model.bundle import bundle_files, demo_bundle_path
from model.object_store import ObjectFolder
from pipeline import run
from pipeline.archive import ScoreArchive
from pipeline.presets import PRESETS
from pipeline.run import HandedOver, score_manifest
from pipeline.runner import Handover, Runner, choose_runner
from pipeline.score_options import ScoreOptions
from schemas.errors import InputError
from tests.fakes import LOCAL, FakeScorer, make_job, manifest_row
from tests.gcs import BUCKET

IMAGE = "europe-west4-docker.pkg.dev/my-project/prescreen/worker:1"
PLACE = (
    "--runner=DataflowRunner",
    "--project=my-project",
    "--region=europe-west4",
    "--temp_location=gs://my-bucket/temp",
    f"--sdk_container_image={IMAGE}",
)
OFFLINE = (
    "--dry_run=True",
    "--no_auth",
    # Else Beam asks pip for all that is installed, for the job's log.
    "--experiments=disable_logging_submission_environment",
)
ADDED_BY_BEAM = {
    "beam_fn_api",
    "use_unified_worker",
    "use_runner_v2",
    "use_portable_job_submission",
    "disable_logging_submission_environment",
}
_HINT = "beam:resources:{}:v1"
_SINK = "beam:runner:sink:v1"


@dataclasses.dataclass(frozen=True)
class Built:
    """A job as it would be submitted.

    Attributes:
      graph: The portable pipeline.
      environment: Of Dataflow: experiments, worker pool.
      options: As the runner left them.
    """

    graph: beam_runner_api_pb2.Pipeline
    environment: object
    options: object

    @property
    def pool(self):
        (pool,) = self.environment.worker_pools
        return pool

    def hints(self):
        """Returns the hints of each transform that has an environment, by its name."""
        parts = self.graph.components
        return {
            transform.unique_name: dict(parts.environments[transform.environment_id].resource_hints)
            for transform in parts.transforms.values()
            if transform.environment_id
        }


def build(folder, preset, *more):
    runner = choose_runner([*PLACE, *OFFLINE, *more], preset)
    job = make_job(folder / "out", [manifest_row("i0", "gs://my-bucket/0.png")])
    result = runner.run(lambda pipeline: pipeline | ScoreArchive(job, [0], runner.resource_hints))
    environment = apiclient.Environment([], result.job.options, "8", "", result.job.proto_pipeline)
    return Built(result.job.proto_pipeline, environment.proto, result.job.options)


@pytest.fixture(scope="module")
def cpu(tmp_path_factory):
    return build(tmp_path_factory.mktemp("cpu"), "dataflow-cpu")


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    return build(tmp_path_factory.mktemp("gpu"), "dataflow-gpu")


@pytest.fixture(params=["cpu", "gpu"])
def built(request):
    return request.getfixturevalue(request.param)


# The workers


def facts_of(pool):
    return {
        "machine_type": pool.machine_type,
        "disk_size_gb": pool.disk_size_gb,
        "max_num_workers": pool.autoscaling_settings.max_num_workers,
        "threads": pool.num_threads_per_worker,
    }


def test_dataflow_cpu_worker_pool_is_the_presets(cpu):
    assert facts_of(cpu.pool) == {
        "machine_type": "n2-standard-4",
        "disk_size_gb": 50,
        "max_num_workers": 16,
        "threads": 2,
    }
    # A process a vCPU: Dataflow's own way, which Beam asks for by this name.
    assert set(cpu.environment.experiments) == ADDED_BY_BEAM | {"use_multiple_sdk_containers"}


def test_dataflow_gpu_worker_pool_is_the_presets(gpu):
    assert facts_of(gpu.pool) == {
        "machine_type": "n2-standard-2",
        "disk_size_gb": 100,
        "max_num_workers": 4,
        "threads": 4,
    }
    # A process a machine, which has one GPU.
    assert set(gpu.environment.experiments) == ADDED_BY_BEAM | {"no_use_multiple_sdk_containers"}


def test_dataflow_every_worker_runs_the_image_that_was_given(built):
    images = [image.container_image for image in built.pool.sdk_harness_container_images]
    assert set(images) == {IMAGE}


def test_dataflow_nothing_is_installed_or_unpickled_on_the_workers_beside_the_image(built):
    setup = built.options.view_as(SetupOptions)
    assert (setup.sdk_location, setup.save_main_session) == ("container", False)
    environments = built.graph.components.environments.values()
    assert [list(environment.dependencies) for environment in environments] == [[]] * len(
        environments
    )


def test_dataflow_what_the_user_gives_takes_the_place_of_the_presets(tmp_path):
    built = build(
        tmp_path,
        "dataflow-gpu",
        "--worker_machine_type=e2-standard-2",
        "--disk_size_gb=200",
        "--num_workers=3",
        "--experiments=enable_google_cloud_profiler",
        "--resource_hints=accelerator=type:nvidia-tesla-t4;count:1;install-nvidia-driver",
    )
    assert facts_of(built.pool) == {
        "machine_type": "e2-standard-2",
        "disk_size_gb": 200,
        "max_num_workers": 4,
        "threads": 4,
    }
    assert built.pool.num_workers == 3
    assert {"enable_google_cloud_profiler", "no_use_multiple_sdk_containers"} <= set(
        built.environment.experiments
    )
    hints = built.hints()
    t4 = {
        _HINT.format("accelerator"): b"type:nvidia-tesla-t4;count:1;install-nvidia-driver",
        _HINT.format("min_ram_bytes"): b"24000000000",
    }
    assert hints["ScoreArchive/ScoreRows/LoadImages"] == t4
    assert hints["ScoreArchive/ReadManifest/ReadRowGroup"] == {}


# The graph


def test_dataflow_gpu_hints_stand_on_all_that_scores_and_on_nothing_else(gpu):
    l4 = {
        _HINT.format("accelerator"): (
            b"type:nvidia-l4;count:1;machine_type:g2-standard-8;install-nvidia-driver"
        ),
        _HINT.format("min_ram_bytes"): b"24000000000",
    }
    hints = gpu.hints()
    assert {name for name in hints if "/ScoreRows" in name} > {
        "ScoreArchive/ScoreRows/LoadImages",
        "ScoreArchive/ScoreRows/ScoreImages/RunInference",
        "ScoreArchive/ScoreRows/StageScores",
    }
    assert {name for name, found in hints.items() if found == l4} == {
        name for name in hints if "/ScoreRows" in name
    }
    assert [found for name, found in hints.items() if "/ScoreRows" not in name and found] == []


def test_dataflow_cpu_asks_for_no_other_machines_than_the_pool(cpu):
    assert [found for found in cpu.hints().values() if found] == []


def test_dataflow_decoding_inference_and_staging_are_one_stage_without_an_end(built):
    _, stages = FnApiRunner().create_stages(built.graph)
    steps = [[step.unique_name for step in stage.transforms] for stage in stages]
    (scoring,) = [
        index for index, names in enumerate(steps) if any("/ScoreRows/" in name for name in names)
    ]
    for step in (
        "LoadImages",
        "RunInference",
        "ApplyThresholds",
        "StageScores",
        "Stage_rejected_at_load",
        "Stage_rejected_at_inference",
    ):
        assert any(f"/{step}" in name for name in steps[scoring]), step
    assert not any(step.spec.urn == _SINK for step in stages[scoring].transforms)


def test_dataflow_each_job_has_its_folder_beside_the_last_ones(tmp_path):
    runner = choose_runner([*PLACE, *OFFLINE], "dataflow-cpu")
    job = make_job(tmp_path / "out", [manifest_row("i0", "gs://my-bucket/0.png")])
    for _ in range(2):
        result = runner.run(lambda pipeline: pipeline | ScoreArchive(job, [0]))
        folder = result.job.google_cloud_options.staging_location
        assert folder.startswith("gs://my-bucket/temp/beamapp-") and folder.count("/") == 4


@pytest.mark.parametrize(
    ("row", "in_hints", "option"),
    [
        ("machines that score", "machine_type", "machine_type"),
        ("machines that shuffle rows and draw", None, "machine_type"),
        ("harness threads a process", None, "number_of_worker_harness_threads"),
        ("disk", None, "disk_size_gb"),
    ],
)
def test_dataflow_document_states_the_presets_as_they_are(row, in_hints, option):
    text = (Path(__file__).parents[1] / "docs" / "dataflow.md").read_text(encoding="utf-8")
    cells = re.search(rf"^\| {row} \|(.*)\|(.*)\|$", text, re.MULTILINE).groups()
    for cell, preset in zip(cells, ("dataflow-cpu", "dataflow-gpu"), strict=True):
        if cell.strip() == "the same":
            continue
        options = dict(arg.lstrip("-").split("=") for arg in PRESETS[preset].beam_args)
        hint = PRESETS[preset].resource_hints.get("accelerator", "")
        hints = dict(part.split(":") for part in hint.split(";") if ":" in part)
        assert (hints.get(in_hints) or options[option]) in cell


# What is refused before anything is read


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(
    ("beam_args", "name"),
    [((), "DirectRunner"), (("--runner=SparkRunner",), "SparkRunner")],
    ids=["none", "spark"],
)
def test_preset_with_another_runner_is_refused(preset, beam_args, name):
    with pytest.raises(InputError) as caught:
        choose_runner(beam_args, preset)
    assert str(caught.value) == (
        f"--preset {preset} must be given with --runner=DataflowRunner. Received: {name}."
        " Write -- --runner=DataflowRunner after the other options, or leave the preset out."
    )


def test_preset_without_what_only_the_user_knows_is_refused():
    with pytest.raises(InputError) as caught:
        choose_runner(PLACE[:2], "dataflow-cpu")
    assert str(caught.value) == (
        "--preset dataflow-cpu needs further options after --."
        " Missing: --region, --temp_location, --sdk_container_image."
        " docs/dataflow.md says where each comes from."
    )


@pytest.mark.parametrize(
    "option",
    [
        "--flexrs_goal=COST_OPTIMIZED",
        "--dataflow_service_options=worker_accelerator=type:nvidia-l4;count:1",
    ],
    ids=["flexrs", "worker_accelerator"],
)
def test_gpu_preset_with_another_way_to_machines_is_refused(option):
    with pytest.raises(InputError, match="must not be given with --flexrs_goal or a worker_acc"):
        choose_runner([*PLACE, option], "dataflow-gpu")
    choose_runner([*PLACE, option], "dataflow-cpu")


@pytest.mark.parametrize("hint", ["accelerater=type:x", "min_ram=much", "min_ram"])
def test_preset_with_a_hint_that_beam_does_not_know_is_refused(hint):
    with pytest.raises(InputError, match="--resource_hints must be NAME=VALUE, as Beam knows"):
        choose_runner([*PLACE, f"--resource_hints={hint}"], "dataflow-gpu")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("--temp_location=gs://x/temp", "Invalid GCS bucket (gs://x/temp)"),
        ("--temp_location=gs://my-bucket", "Invalid GCS path: 'gs://my-bucket'"),
        ("--project=123", "Invalid Project ID (123)"),
        ("--job_name=Tonight", "Invalid job_name (Tonight)"),
    ],
)
def test_dataflow_place_that_cannot_be_is_refused_before_a_bucket_is_made(wrong, said):
    with pytest.raises(InputError) as caught:
        choose_runner([*PLACE, wrong])
    assert said in str(caught.value)


# What leaves a run before it is scored


@pytest.mark.parametrize(
    ("beam_args", "handover"),
    [
        ((), None),
        (("--no_wait_until_finish",), Handover.SUBMITTED),
        (("--template_location=gs://my-bucket/t",), Handover.TEMPLATE),
        (("--dry_run=True",), Handover.DRY_RUN),
        (("--dry_run=True", "--template_location=gs://my-bucket/t"), Handover.DRY_RUN),
    ],
    ids=["none", "no_wait", "template", "dry_run", "dry_template"],
)
def test_dataflow_job_that_is_not_waited_for_is_handed_over(beam_args, handover):
    assert choose_runner([*PLACE, *beam_args]).handover is handover


@pytest.mark.parametrize("runner", ["DirectRunner", "SparkRunner"])
def test_run_elsewhere_is_always_waited_for(runner):
    args = ["--dry_run=True", "--template_location=gs://my-bucket/t", "--no_wait_until_finish"]
    assert choose_runner([f"--runner={runner}", *args]).handover is None


@pytest.mark.parametrize("option", ["--dry_run=True", "--template_location=gs://my-bucket/t"])
def test_score_only_new_with_a_job_that_is_only_built_is_refused(option):
    options = ScoreOptions(
        "none.csv", "gs://my-bucket/out", "none", only_new=True, beam_args=(*PLACE, option)
    )
    with pytest.raises(InputError, match="--only-new must not be given with --(dry_run|template)"):
        score_manifest(options, lambda event, **facts: None)


def test_score_output_that_dataflow_does_not_reach_is_refused(tmp_path):
    options = ScoreOptions("none.csv", str(tmp_path / "out"), "none", beam_args=PLACE)
    with pytest.raises(InputError, match="--output must be on a store .gs://"):
        score_manifest(options, lambda event, **facts: None)
    assert not (tmp_path / "out").exists()


ROOT = f"gs://{BUCKET}"
OUTPUT = f"{ROOT}/results"
ON_STORE = [option for option in PLACE if "temp_location" not in option]


@pytest.fixture
def store(store, phantoms, monkeypatch):
    """A store with phantoms and a file that is none; a fake network scores where anything does."""
    scorer = FakeScorer().install(monkeypatch)
    monkeypatch.setattr(run, "load_scorer", lambda settings: scorer)
    manifest = (phantoms / "manifest.csv").read_text() + "missing,images/none.png,,,\n"
    folder = ObjectFolder(f"{ROOT}/xrays")
    folder.upload((path, f"images/{path.name}") for path in (phantoms / "images").iterdir())
    folder.write("manifest.csv", manifest.encode())
    return store


def invoke(*arguments):
    return CliRunner().invoke(cli, arguments)


def score(preset, *beam_args):
    arguments = ["score", "--manifest", f"{ROOT}/xrays/manifest.csv", "--output", OUTPUT]
    arguments += ["--run-id", "night", "--reject-limit", "1", "--preset", preset, "--", *ON_STORE]
    return invoke(*arguments, f"--temp_location={ROOT}/temp", *beam_args)


def published():
    return [found.name for found in ObjectFolder(OUTPUT).objects("runs/")]


def score_elsewhere(monkeypatch):
    """Does what the job would, as far as its rows are concerned."""
    with monkeypatch.context() as patch:

        def hand_over(self, build):
            dataclasses.replace(LOCAL, resource_hints=self.resource_hints).run(build)

        patch.setattr(Runner, "hand_over", hand_over)
        submitted = score("dataflow-cpu", "--no_wait_until_finish")
    assert submitted.exit_code == 0, submitted.output
    assert submitted.stdout == (
        "Run night: its job is submitted. When that has ended, publish with:"
        f" prescreen commit {OUTPUT} night\n"
    )
    assert not published()


def test_score_dry_run_builds_the_job_and_publishes_nothing(store):
    built = score("dataflow-cpu", *OFFLINE)
    assert built.exit_code == 0, built.output
    assert built.stdout == (
        "Run night: its job was built, and not submitted. To submit it, give the same command with"
        " --resume --run-id night and without --dry_run.\n"
    )
    assert not published()
    # What its workers would need is on the store, this machine's bundle too.
    staged = {found.name for found in ObjectFolder(f"{OUTPUT}/_staging/night").objects()}
    bundle = {f"bundle/{name}" for name in bundle_files(demo_bundle_path())}
    assert staged == {"run.json", "manifest.parquet"} | bundle
    assert {"bundle/bundle.json", "bundle/model.keras"} <= bundle


def test_score_template_is_written_whole_and_names_the_commit(store):
    written = score("dataflow-gpu", f"--template_location={ROOT}/night", OFFLINE[-1])
    assert written.exit_code == 0, written.output
    assert written.stdout == (
        "Run night: its template is written, and nothing is scored yet. Start a job from it, once;"
        f" when that has ended, publish with: prescreen commit {OUTPUT} night\n"
    )
    assert not published()
    template = json.loads(ObjectFolder(ROOT).read("night"))
    (pool,) = template["environment"]["workerPools"]
    assert (pool["machineType"], pool["numThreadsPerWorker"]) == ("n2-standard-2", 4)
    assert template["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"].startswith(
        f"{ROOT}/temp/"
    )
    early = invoke("commit", OUTPUT, "night")
    assert early.exit_code == 2
    assert "night, where 13 of 13 images are not, or have changed since" in early.output
    assert not published()


def test_commit_publishes_what_a_job_has_scored_under_its_name(store, monkeypatch):
    score_elsewhere(monkeypatch)
    committed = invoke("commit", OUTPUT, "night")
    assert committed.exit_code == 0, committed.output
    record = json.loads(ObjectFolder(OUTPUT).read("runs/night.json"))
    assert record["runner"] == "DataflowRunner"
    counts = record["counts"]
    assert (counts["scored"], counts["rejected"], counts["drawn"]) == (12, 1, counts["flagged"])
    assert f"Record:   {OUTPUT}/runs/night.json" in committed.stdout
    again = invoke("commit", OUTPUT, "night")
    assert again.exit_code == 2 and "of which OUTPUT has nothing staged" in again.output


def test_commit_of_an_image_that_has_changed_since_publishes_nothing(store, monkeypatch):
    score_elsewhere(monkeypatch)
    folder = ObjectFolder(f"{ROOT}/xrays/images")
    first = next(folder.objects()).name
    folder.write(first, folder.read(first))
    committed = invoke("commit", OUTPUT, "night")
    assert committed.exit_code == 2
    assert "where 1 of 13 images are not, or have changed since" in committed.output
    assert not published()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--preset", "dataflow-cpu"], (32, "float32", 1)),
        (["--preset", "dataflow-gpu"], (512, "mixed_float16", 2)),
        (
            ["--preset", "dataflow-gpu", "--batch-size", "64", "--precision", "float32"]
            + ["--decode-threads", "3"],
            (64, "float32", 3),
        ),
    ],
    ids=["cpu", "gpu", "given"],
)
def test_score_preset_says_what_this_machine_cannot_know(monkeypatch, options, expected):
    asked = []

    def hand_over(score_options, *_):
        asked.append(score_options)
        return HandedOver("night", Handover.SUBMITTED)

    monkeypatch.setattr(run, "score_manifest", hand_over)
    arguments = ["--manifest", "all.csv", "--output", "gs://my-bucket/results", *options]
    result = invoke("score", *arguments, "--", "--runner=DataflowRunner")
    assert result.stdout == (
        "Run night: its job is submitted. When that has ended, publish with:"
        " prescreen commit gs://my-bucket/results night\n"
    )
    (found,) = asked
    assert (found.batch_size, found.precision, found.decode_threads) == expected
    assert (found.preset, found.beam_args) == (options[1], ("--runner=DataflowRunner",))
