"""A plan tells what a run then does, and leaves no trace."""

import contextlib
import dataclasses
import json
import shutil
import tempfile

import pytest

from model.bundle import demo_bundle_path
from model.object_store import ObjectFolder
from pipeline import forecast, publishing, run, sampling, scoring
from pipeline.forecast import forecast_run
from pipeline.lock import RunLock
from pipeline.reckoning import PlanOptions
from pipeline.run import score_manifest
from pipeline.sampling import MeasureError
from pipeline.score_options import ScoreOptions
from pipeline.stopping import STOP
from schemas.errors import InputError
from tests.fakes import FakeScorer, tree, varied_picture, write_picture
from tests.gcs import BUCKET

IMAGES = 12


class Archive:
    """Some images, one file that is none, a manifest of them, and an OUTPUT."""

    def __init__(self, images, folder):
        self.images, self.folder, self.output = images, folder, str(folder / "out")
        self.files = {f"i{k:02d}": f"{k:02d}.png" for k in range(IMAGES)} | {"text": "text.png"}
        self.write()

    def write(self, **changes):
        """Writes the manifest, in which `changes` give images another file."""
        self.files |= changes
        rows = "".join(f"{name},{self.images / file}\n" for name, file in self.files.items())
        (self.folder / "manifest.csv").write_text("image_id,uri\n" + rows)

    def options(self, **changes) -> ScoreOptions:
        values = {
            "manifest": str(self.folder / "manifest.csv"),
            "output": self.output,
            "bundle": demo_bundle_path(),
            "gradcam_top": 1,
            "reject_limit": 1.0,
            "no_report": True,
        }
        return ScoreOptions(**values | changes)

    def plan(self, **changes):
        return forecast_run(PlanOptions(self.options(**changes), None, (), 0.0))


def use(patched):
    """Puts a scorer without a network everywhere, and makes samples small."""
    FakeScorer().install(patched)
    patched.setattr(run, "load_scorer", scoring.load_scorer)
    patched.setattr(sampling, "CPU_BATCH_SIZE", 4)
    STOP.reset()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """OUTPUT after a night; as a crash leaves it when all is scored; and when all is prepared."""
    folder = tmp_path_factory.mktemp("made")
    for number in range(IMAGES + 1):
        write_picture(folder / f"images/{number:02d}.png", varied_picture(number))
    (folder / "images/text.png").write_text("no picture")

    (folder / "night").mkdir()
    night = Archive(folder / "images", folder / "night")
    publish = publishing.publish

    def copy(name):
        shutil.copytree(night.output, folder / name / "out", ignore=lambda *_: ["lock"])

    def copy_and_publish(*args):
        copy("prepared")
        publish(*args)

    def copy_when_scored(event, **_):
        if event == "scored":
            copy("cut")

    with pytest.MonkeyPatch.context() as patched:
        use(patched)
        patched.setattr(publishing, "publish", copy_and_publish)
        score_manifest(night.options(run_id="night"), copy_when_scored)
    return folder


@pytest.fixture
def archive(made, tmp_path, monkeypatch):
    """Returns a function that gives the archive with a copy of one of those outputs, or none."""
    use(monkeypatch)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def make(output=None):
        if output:
            shutil.copytree(made / output / "out", tmp_path / "out")
        return Archive(made / "images", tmp_path)

    yield make
    STOP.reset()
    assert list(scratch.iterdir()) == []


@pytest.fixture
def counted(monkeypatch):
    """Returns a function that plans without measuring, and gives what is to be done."""
    count, kept, sampled = forecast.count_work, [], []

    def keep(*args):
        kept.append(count(*args))
        return kept[-1]

    def no_measuring(setup, sample, small, folder, on_step):
        sampled.append({row.image_id for row in sample.rows[: sample.distinct]})
        raise MeasureError("not measured")

    monkeypatch.setattr(forecast, "measure_sample", no_measuring)
    monkeypatch.setattr(forecast, "count_work", keep)

    def plan(archive, **changes):
        sampled.append(set())
        with contextlib.suppress(MeasureError):
            archive.plan(**changes)
        found = {name: value for name, value in dataclasses.asdict(kept[-1]).items() if value}
        return found, sampled[-1]

    return plan


def files(folder):
    """Returns all there is below a folder, with size and time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns)
    return found


# The whole plan


def test_plan_measures_what_a_run_then_does_and_makes_no_output(archive, made):
    here = archive()
    plan = here.plan(reject_limit=0.01)

    assert tree(here.folder) == ["manifest.csv"]
    assert plan["images"] | {"manifest": 13, "new": 13, "to_score": 13} == plan["images"]
    assert plan["sample"]["images"] == 13
    assert plan["sample"]["rejected_by_reason"] == {"not_an_image": 1}
    assert json.loads(json.dumps(plan)) == plan
    record = json.loads((made / "night/out/runs/night.json").read_text())
    for name in ("scored", "rejected", "flagged", "drawn", "overlays"):
        assert plan["expected"][name] == pytest.approx(record["counts"][name], abs=1), name
    sizes = dict.fromkeys(plan["disk_bytes"], 0)
    for file in record["files"]:
        sizes[file["path"].partition("/")[0]] += file["size_bytes"]
    for kind in ("scores", "rejects", "gradcam", "worklist"):
        assert plan["disk_bytes"][kind] == pytest.approx(sizes[kind], rel=0.15), kind
    seconds = plan["seconds"]
    assert seconds["all"] == pytest.approx(sum(seconds.values()) - seconds["all"])
    assert all(plan["rates"][name] > 0 for name in ("decode", "inference", "score"))


def test_plan_of_images_that_are_all_rejected_is_refused(archive):
    here = archive()
    here.files.clear()
    here.write(a="gone", b="gone too", c="text.png")

    with pytest.raises(InputError, match="of 3 images, all rejected .not_found 2, not_an_image 1"):
        here.plan()


def test_plan_of_a_job_that_fails_says_why(archive, monkeypatch):
    def fail(self, images):
        raise RuntimeError("no such device")

    monkeypatch.setattr(FakeScorer, "score", fail)
    with pytest.raises(MeasureError, match="could not be scored .*no such device.*would fail too"):
        archive().plan()


def test_plan_that_is_stopped_ends_without_a_run(archive):
    STOP.request()

    with pytest.raises(MeasureError, match="The plan was stopped. Nothing was written."):
        archive().plan()


# What is to be done


def test_plan_tells_new_stale_and_skipped_images_as_only_new_does(archive, counted):
    here = archive("night")
    here.write(i03="12.png", i12="12.png")
    before = files(here.folder / "out")

    found, sampled = counted(here, only_new=True)

    assert found == {"manifest": 14, "new": 1, "changed": 1, "skipped": 12}
    assert sampled == {"i03", "i12"}
    assert files(here.folder / "out") == before


def test_plan_without_only_new_tells_what_is_scored_again(archive, counted):
    here = archive("night")

    assert counted(here)[0] == {"manifest": 13, "again": 13}
    other = counted(here, redact_uris=True, only_new=True)[0]
    assert other == {"manifest": 13, "other_settings": 13}


def test_plan_does_without_files_of_runs_that_hold_nothing(archive, counted):
    here = archive("night")
    (here.folder / "out/scores/run_id=night/part-00000.parquet").unlink()

    assert counted(here)[0] == {"manifest": 13, "new": 12, "again": 1}
    with pytest.raises(InputError, match="published runs must be as they were published"):
        counted(here, only_new=True)


def test_plan_of_a_resume_keeps_what_is_staged(archive, counted):
    here = archive("cut")
    before = files(here.folder / "out")
    plan = here.plan(resume=True)

    assert (plan["images"]["kept"], plan["images"]["to_score"]) == (13, 0)
    assert (plan["resumes"], plan["held_by"], plan["sample"]) == ("night", None, None)
    assert counted(here)[0] == {"manifest": 13, "new": 13}
    assert files(here.folder / "out") == before
    with pytest.raises(InputError, match="begun and not finished. Go on with it by --resume"):
        counted(here, run_id="night")
    with RunLock(here.folder / "out/_staging/night/lock"):
        assert "process" in here.plan(resume=True)["held_by"]


def test_plan_of_a_resume_scores_what_a_broken_part_held(archive, counted):
    here = archive("cut")
    (part,) = (here.folder / "out/_staging/night/scores").glob("*.parquet")
    part.write_bytes(part.read_bytes()[:-9])

    assert counted(here, resume=True)[0] == {"manifest": 13, "new": 12, "kept": 1}
    assert part.exists()


def test_plan_counts_a_commit_that_the_next_start_finishes(archive, counted):
    here = archive("prepared")
    before = files(here.folder / "out")

    assert here.plan(resume=True) == {
        "finishes_first": ["night"],
        "published_already": "night",
    }
    here.write(more="12.png")
    found, _ = counted(here, only_new=True, resume=True)
    assert found == {"manifest": 14, "new": 1, "skipped": 13}
    assert files(here.folder / "out") == before


def test_plan_of_retried_rejects_counts_these_alone(archive, counted):
    here = archive("night")
    record = str(here.folder / "out/runs/night.json")

    assert counted(here, retry_rejects=record)[0] == {"manifest": 1, "again": 1}


def test_plan_of_an_output_that_cannot_hold_runs_is_refused(archive):
    here = archive()
    with pytest.raises(InputError, match="--output must be a folder"):
        here.plan(output=here.options().manifest)


def test_plan_on_a_store_reads_alone(archive, counted, made, store):
    here, root = archive(), ObjectFolder(f"gs://{BUCKET}")
    for name in ("night", "cut"):
        output = made / name / "out"
        root.upload((output / file, f"{name}/{file}") for file in tree(output))
    here.write(i12="12.png")
    names = [found.name for found in root.objects("")]
    store.requests.clear()

    here.output = f"gs://{BUCKET}/night"
    assert counted(here, only_new=True)[0] == {"manifest": 14, "new": 1, "skipped": 13}
    here.output = f"gs://{BUCKET}/cut"
    assert counted(here, resume=True)[0] == {"manifest": 14, "new": 1, "kept": 13}
    assert {method for method, _ in store.requests} == {"GET"}
    assert [found.name for found in root.objects("")] == names
