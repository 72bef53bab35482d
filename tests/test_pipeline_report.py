"""The report of a run: what is in it, what never is, and what becomes of a run without it."""

import base64
import dataclasses
import hashlib
import io
import json
import shutil
from html.parser import HTMLParser

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from model.bundle import demo_bundle_path
from pipeline import commit, report_tables, run
from pipeline.archive import score_archive
from pipeline.commit import ReportError, commit_run
from pipeline.layout import RunPaths
from pipeline.report import make_report
from pipeline.report_tables import published_tables, read_examples, read_scores
from pipeline.run import score_manifest
from pipeline.score_options import ScoreOptions
from pipeline.stopping import STOP
from pipeline.verification import verify_run
from schemas.findings import FINDINGS
from schemas.tables import REJECTS_SCHEMA, scores_schema
from tests.browser import Browser
from tests.fakes import (
    LOCAL,
    FakeScorer,
    make_facts,
    make_job,
    make_settings,
    manifest_row,
    picture,
    reject_of,
    scores_of,
    stage,
    tree,
    write_picture,
)

SCRIPT = "<script>alert(1)</script>"
QUOTED = '"><img src=x onerror=alert(1)>&amp;'
REPORT = "report/run_id=r1.html"

LEVELS = {
    SCRIPT: {"Mass": 250, "Edema": 240},
    "second": {"Mass": 200, "Pleural_Thickening": 140},
    "healthy": {"No Finding": 255, "Mass": 20},
}

_VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """The tags, texts and cells of a page whose tags all must be closed in order."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.texts, self._open = [], [], [], []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if data.strip() and "style" not in self._open:
            self.texts.append(" ".join(data.split()))

    @property
    def text(self):
        return " ".join(self.texts)

    def having(self, tag, name):
        return [value for found, key, value in self.attributes if (found, key) == (tag, name)]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The output folder and the record of a run that made a report; one id is hostile."""
    folder = tmp_path_factory.mktemp("published")
    images = [
        (name, write_picture(folder / f"secret/{number}.png", picture(levels)))
        for number, (name, levels) in enumerate(LEVELS.items())
    ]
    images += [(name, folder / "secret/no.png") for name in (QUOTED, "gone")]
    job = make_job(folder / "out", [manifest_row(*image) for image in images])
    with pytest.MonkeyPatch.context() as monkeypatch:
        FakeScorer().install(monkeypatch)
        score_archive(job, LOCAL)
        record = commit_run(job, make_settings(top=2, report=True), LOCAL, make_facts())
    return folder / "out", record


@pytest.fixture
def page(published):
    output, _ = published
    return Page((output / REPORT).read_text(encoding="utf-8"))


def report_of(output, record, earlier=None):
    return make_report(record, published_tables(RunPaths(output, "r1"), record), earlier)


def test_commit_run_publishes_the_report_and_lists_it_with_its_digest(published):
    output, record = published
    content = (output / REPORT).read_bytes()
    assert [file for file in record["files"] if file["path"].startswith("report")] == [
        {
            "path": REPORT,
            "size_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "rows": None,
        }
    ]
    assert sorted(record["timings_s"]) == ["draw", "report", "score", "write"]
    assert record["drift"] is None
    assert verify_run(output / "runs/r1.json").problems == []


def test_verify_run_report_that_is_changed_or_missing_is_named(published, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(published[0], output)
    (output / REPORT).write_bytes(b"x")
    [problem] = verify_run(output / "runs/r1.json").problems
    assert problem.path == REPORT and problem.what.startswith("has 1 bytes, and had ")
    (output / REPORT).unlink()
    [problem] = verify_run(output / "runs/r1.json").problems
    assert (problem.path, problem.what) == (REPORT, "is missing")


def test_report_says_what_the_model_is_and_what_for_before_all_else(page):
    said = "Research prototype, not for diagnosis. Model: Fake network. For tests. Run r1"
    assert said in page.text[:250]


def test_report_states_the_counts_and_that_they_are_the_manifest(page):
    tiles = (
        "In the manifest 5 Scored 3 Rejected 2 Skipped 0 Flagged 2 On the worklist 2"
        " 3 scored + 2 rejected + 0 skipped = 5, which are the 5 of the manifest. Nothing is"
        " missing. Flag rate: 66.7% of the scored; 25.0% where the thresholds were measured."
    )
    assert tiles in page.text


def test_report_counts_that_do_not_add_up_are_said_to(published):
    output, record = published
    wrong = {**record, "counts": {**record["counts"], "manifest": 6}}
    text = Page(report_of(output, wrong).html).text
    assert "= 5, and the manifest has 6." in text and "Nothing is missing" not in text


def test_report_has_a_row_a_finding_with_threshold_flags_and_histogram(page):
    rows = page.text.split("Of the scored Atelectasis")[1]
    assert rows.startswith(" 0.500 0 0.0% Cardiomegaly 0.500 0 0.0%")
    for row in ("Mass 0.500 2 66.7%", "Edema 0.500 1 33.3%", "No Finding never flagged – –"):
        assert row in rows
    labels = page.having("svg", "aria-label")
    assert len(labels) == len(FINDINGS)
    assert labels[9] == "Mass: half of the scores below 0.80, nine tenths below 1.00"


def test_report_worklist_is_in_order_with_scores_beside_thresholds(page):
    sheet = page.text.split("most abnormal first.")[1].split("Findings")[0]
    first, second = sheet.index(f"1. {SCRIPT}"), sheet.index("2. second")
    assert first < second and "healthy" not in sheet
    assert "Mass , flagged 0.980 0.500 Edema , flagged 0.941 0.500" in sheet
    assert "Pleural Thickening , flagged 0.549 0.500 Atelectasis 0.000 0.500" in sheet


def pictures(page):
    """Returns the size of each picture by its alternative text."""
    pairs = zip(page.having("img", "alt"), page.having("img", "src"), strict=True)
    return {
        alt: Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))).size
        for alt, src in pairs
    }


def test_report_shows_the_image_beside_the_overlay(page):
    shown = pictures(page)
    assert list(shown) == [
        f"Image {SCRIPT}",
        f"Image {SCRIPT} with attention for Mass in colour",
        "Image second",
        "Image second with attention for Mass in colour",
    ]
    assert shown["Image second"] == (224, 224)
    assert max(shown["Image second with attention for Mass in colour"]) <= 384


def test_report_of_a_changed_or_lost_image_shows_its_overlay_alone(published, tmp_path):
    output, record = published
    folder = tmp_path / "moved"
    shutil.copytree(output.parent, folder)
    uris = {0: folder / "secret/0.png", 1: folder / "secret/none.png"}
    write_picture(uris[0], picture(9))
    scores = folder / "out/scores/run_id=r1/part-00000.parquet"
    table = pq.read_table(scores, partitioning=None)
    rows = table.to_pylist()
    for row in rows:
        number = list(LEVELS).index(row["image_id"])
        row["uri"] = str(uris.get(number, row["uri"]))
    pq.write_table(pa.Table.from_pylist(rows, table.schema), scores)
    shown = pictures(Page(report_of(folder / "out", record).html))
    assert list(shown) == [
        f"Image {SCRIPT} with attention for Mass in colour",
        "Image second with attention for Mass in colour",
    ]


def listed_as(folder, output, columns):
    """Returns the report's texts on its worklist, of which columns are replaced, or left out."""
    shutil.copytree(output, folder)
    worklist = folder / "worklist/run_id=r1.parquet"
    table = pq.read_table(worklist, partitioning=None)
    for name, values in columns.items():
        if values is None:
            table = table.drop_columns(name)
        else:
            at = table.schema.get_field_index(name)
            table = table.set_column(at, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, worklist)
    return folder


def test_report_marks_an_image_that_is_kept_apart_in_words_with_the_codes_that_do_so(
    published, tmp_path
):
    output, record = published
    codes = [["border"], ["lateral", "far_from_training", "odd_aspect"]]

    def sheet(name, **columns):
        html = report_of(listed_as(tmp_path / name, output, columns), record).html
        assert html.count('<p class="apart">') == html.count("Kept apart: ")
        return Page(html).text.split("most abnormal first.")[1].split("Findings")[0]

    gated = sheet("gated", quality=codes, gated=[False, True])
    assert "2. second Kept apart: lateral, far_from_training Mass" in gated
    assert gated.count("Kept apart: ") == 1 and "kept apart ranks behind all others:" in gated
    for other in (
        sheet("off", quality=codes, gated=[False, False]),
        sheet("before", quality=None, gated=None),
    ):
        assert "apart" not in other


def test_report_of_a_run_with_redacted_uris_shows_overlays_alone(tmp_path, monkeypatch):
    FakeScorer().install(monkeypatch)
    image = write_picture(tmp_path / "a.png", picture({"Mass": 200}))
    job = dataclasses.replace(
        make_job(tmp_path / "out", [manifest_row("a", image)]), redact_uris=True
    )
    score_archive(job, LOCAL)
    commit_run(job, make_settings(top=1, report=True), LOCAL, make_facts())
    page = Page((tmp_path / "out" / REPORT).read_text())
    assert list(pictures(page)) == ["Image a with attention for Mass in colour"]


def test_report_counts_images_by_quality_code(published, page):
    counts = published[1]["counts"]
    codes = " ".join(f"{code} {images}" for code, images in counts["quality"].items())
    assert counts["quality"] and f"Quality code Images {codes}" in page.text
    said = f"{counts['with_quality_code']} images carry a code of what speaks against them"
    assert said in page.text
    assert "not to be believed." in page.text  # no option `gate` in this record: nobody ranks last
    before = {**published[1], "counts": {k: v for k, v in counts.items() if k != "quality"}}
    assert "Quality code" not in report_of(published[0], before).html


def test_report_names_rejects_by_reason_with_examples(page):
    assert f"Reason Images Such as not_found 2 {QUOTED}, gone" in page.text


def test_report_markup_in_ids_is_text(published, page):
    html = (published[0] / REPORT).read_text(encoding="utf-8")
    assert "script" not in page.tags and SCRIPT not in html and QUOTED not in html
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert page.tags.count("img") == 4


def test_report_refers_to_nothing_outside_and_holds_no_path(published, page):
    html = (published[0] / REPORT).read_text(encoding="utf-8")
    for forbidden in ("http:", "https:", "url(", "@import", "secret", "manifest.csv", "file:"):
        assert forbidden not in html, forbidden
    assert all(src.startswith("data:image/jpeg;base64,") for src in page.having("img", "src"))
    assert all(link.startswith("#") for link in page.having("a", "href"))
    assert page.having("link", "href") == ["data:,"]
    names = {name for _, name, _ in page.attributes}
    assert not names & {"srcset", "action", "background", "poster", "xlink:href", "style"}


def test_report_is_built_for_keyboard_and_screen_readers(page):
    assert page.having("html", "lang") == ["en"]
    assert [page.tags.count(tag) for tag in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    ids = {value for _, name, value in page.attributes if name == "id"}
    assert {link[1:] for link in page.having("a", "href")} <= ids
    assert page.tags.count("th") == len(page.having("th", "scope"))
    regions = [value for tag, name, value in page.attributes if (tag, name) == ("div", "role")]
    assert len(regions) == len(page.having("div", "tabindex")) == html_tables(page)


def html_tables(page):
    """Returns how many tables stand in a region of their own: all but those of the worklist."""
    return page.tags.count("table") - 2


def test_report_fails_publishes_nothing_and_is_left_out_by_the_next_attempt(tmp_path, monkeypatch):
    job = make_job(tmp_path / "out", [manifest_row("a")])
    stage(job.paths, "scores", "0000", [scores_of("a")])
    before = tree(job.paths.staging)
    with monkeypatch.context() as broken:
        broken.setattr(commit, "make_report", lambda *_: 1 / 0)
        with pytest.raises(ReportError) as caught:
            commit_run(job, make_settings(report=True), LOCAL, make_facts())
    assert str(caught.value) == (
        "The report of run r1 could not be made (ZeroDivisionError: division by zero). Nothing was"
        " published; what was scored is kept. Go on with --resume --run-id r1, and with"
        " --no-report to publish without it."
    )
    assert set(before) <= set(tree(job.paths.staging)) and not (tmp_path / "out/runs").exists()
    record = commit_run(job, make_settings(), LOCAL, make_facts())
    assert record["counts"]["scored"] == 1
    assert not any(name.startswith("report") for name in tree(tmp_path / "out"))


def test_report_of_a_run_that_scored_nothing_says_so(tmp_path):
    job = make_job(tmp_path / "out", [manifest_row("a")])
    stage(job.paths, "rejects", "0000", [reject_of("a")])
    commit_run(job, make_settings(report=True), LOCAL, make_facts())
    text = Page((tmp_path / "out" / REPORT).read_text()).text
    assert "No image is on the worklist." in text and "No image was scored." in text
    assert "corrupt 1 a" in text


# What is read of the tables


def write_scores(folder, count):
    """Writes two parts with so many images each, whose score of Mass is 0.005, 0.015, ..."""
    files = []
    for part in range(2):
        row = scores_of("")
        rows = [
            {**row, "image_id": f"{part}-{k}", "score_Mass": at / 100, "mean_intensity": at}
            for k, at in enumerate(np.arange(count) + 0.5)
        ]
        files.append(folder / f"part-{part}.parquet")
        pq.write_table(pa.Table.from_pylist(rows, scores_schema()), files[-1])
    return files


THRESHOLDS = dict.fromkeys([name for name in FINDINGS if name != "No Finding"], 0.5)


def test_read_scores_counts_all_rows_and_draws_some(tmp_path, monkeypatch):
    monkeypatch.setattr(report_tables, "MOST_SAMPLED", 30)
    monkeypatch.setattr(report_tables, "_ROWS_AT_ONCE", 7)
    counts, drawn = read_scores(write_scores(tmp_path, 100), THRESHOLDS)
    assert counts.histograms["Mass"].tolist() == [4] * 50
    assert counts.histograms["Edema"].tolist() == [200] + [0] * 49
    assert counts.flagged["Mass"] == 100 and counts.flagged["Edema"] == 0
    assert all(len(values) == 30 for values in drawn.numbers.values())
    assert drawn.flags["Mass"].tolist() == (drawn.numbers["Mass"] >= 0.5).tolist()
    np.testing.assert_allclose(drawn.numbers["Mass"] * 100, drawn.numbers["mean_intensity"], 1e-5)
    assert len(np.unique(drawn.numbers["mean_intensity"])) > 20


def test_read_scores_few_rows_are_all_taken_in_order(tmp_path):
    _, drawn = read_scores(write_scores(tmp_path, 3), THRESHOLDS)
    assert drawn.numbers["mean_intensity"].tolist() == [0.5, 1.5, 2.5] * 2


def test_read_scores_carried_columns_are_categories_and_patients(tmp_path):
    rows = [
        {**scores_of(""), "image_id": name, "patient_id": patient, "site": site}
        for name, patient, site in (
            ("a", "7", "x"),
            ("b", "7", None),
            ("c", None, "y"),
            ("d", None, "y"),
        )
    ]
    path = tmp_path / "part.parquet"
    pq.write_table(pa.Table.from_pylist(rows, scores_schema(("patient_id", "site"))), path)
    _, drawn = read_scores([path], THRESHOLDS)
    assert {name: values.tolist() for name, values in drawn.categories.items()} == {
        "site": ["x", "(none)", "y", "y"]
    }
    assert drawn.patients[0] == drawn.patients[1]
    assert len(set(drawn.patients.tolist())) == 3


def test_read_examples_are_the_first_five_ids_of_each_reason(tmp_path):
    names = [f"r{k:02d}" for k in range(20)]
    path = tmp_path / "part.parquet"
    rows = [reject_of(name) for name in reversed(names)]
    pq.write_table(pa.Table.from_pylist(rows, REJECTS_SCHEMA), path)
    assert read_examples([path, path]) == {"corrupt": ["r00", "r00", "r01", "r01", "r02"]}


# Nights in turn


@pytest.fixture(scope="module")
def nights(tmp_path_factory):
    """Records of nights of 120 images each: all alike but one, and one without a report."""
    folder = tmp_path_factory.mktemp("nights")
    records = {}
    with pytest.MonkeyPatch.context() as monkeypatch:
        FakeScorer().install(monkeypatch)
        monkeypatch.setattr(run, "load_scorer", lambda _: None)
        STOP.reset()
        for number, name in enumerate(("first", "alike", "bright", "silent")):
            rng = np.random.default_rng(number)
            rows = ["image_id,uri,site,study_date"]
            for k in range(120):
                levels = rng.integers(70, 131, len(FINDINGS)) * (1.1 if name == "bright" else 1)
                pixels = picture(dict(zip(FINDINGS, levels.astype(int), strict=True)))
                write_picture(folder / f"{name}/{k}.png", pixels)
                rows.append(f"{name}{k},{name}/{k}.png,{'ab'[k % 2]},2026-11-2{number}")
            manifest = folder / f"{name}.csv"
            manifest.write_text("\n".join(rows) + "\n")
            options = ScoreOptions(
                manifest=str(manifest),
                output=str(folder / "out"),
                bundle=demo_bundle_path(),
                run_id=name,
                carry=("site",),
                gradcam_limit=2,
                no_report=name == "silent",
            )
            records[name] = score_manifest(options, lambda event, **facts: None)
            backdate(folder / f"out/runs/{name}.json", number)
    return folder / "out", records


def backdate(path, day):
    """Lets a run have begun at that day, so that one is earlier than the next."""
    record = json.loads(path.read_text())
    record["started_at"] = f"2026-11-{day + 1:02d}T04:29:00+00:00"
    path.write_text(json.dumps(record))


def test_score_manifest_compares_with_the_newest_earlier_run(nights):
    _, records = nights
    assert records["first"]["drift"] is None
    assert records["alike"]["drift"] == {
        "against": "first",
        "compared": True,
        "obstacle": None,
        "alarms": [],
    }
    drift = records["bright"]["drift"]
    assert (drift["against"], drift["compared"]) == ("alike", True)
    alarms = {(alarm["name"], alarm["statistic"]) for alarm in drift["alarms"]}
    assert {("mean_intensity", "PSI"), ("mean_intensity", "KS")} <= alarms
    assert not [name for name, _ in alarms if name in ("site", "study_date", "labels")]
    for alarm in drift["alarms"]:
        assert abs(alarm["value"]) > alarm["limit"] > 0


def test_score_manifest_without_a_report_compares_with_nothing(nights):
    output, records = nights
    assert records["silent"]["drift"] is None and "report" not in records["silent"]["timings_s"]
    assert tree(output / "report") == [
        f"run_id={name}.html" for name in ("alike", "bright", "first")
    ]


def test_report_names_alarms_and_what_is_normal(nights):
    output, records = nights
    page = Page((output / "report/run_id=bright.html").read_text())
    (alarm,) = (
        found
        for found in records["bright"]["drift"]["alarms"]
        if (found["name"], found["statistic"]) == ("mean_intensity", "KS")
    )
    said = f"mean_intensity: KS {alarm['value']:.3f}, normal is up to {alarm['limit']:.3f}"
    assert "Against run alike of " in page.text and said in page.text
    assert "120 images scored then, 120 now." in page.text
    assert "left out: study_date." in page.text
    calm = Page((output / "report/run_id=alike.html").read_text())
    assert "All is within normal variation." in calm.text and "Alarm" not in calm.text


def test_report_in_a_browser_is_quiet_asks_for_nothing_and_fits_a_phone(nights, tmp_path):
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs a browser: no chromium on PATH")
    path = nights[0] / "report/run_id=bright.html"
    browser = Browser(chromium, tmp_path / "profile")
    try:
        colours = []
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.call("Emulation.setEmulatedMedia", features=features)
            browser.call(
                "Emulation.setDeviceMetricsOverride",
                **{"width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": False},
            )
            browser.open(path)
            colours.append(browser.value("getComputedStyle(document.body).backgroundColor"))
            assert browser.value("document.documentElement.scrollWidth <= window.innerWidth")
            assert browser.value("[...document.images].every(i => i.naturalWidth > 0)")
        assert colours == ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]
        assert browser.requests == [path.as_uri()] * 2
        assert browser.console == []
    finally:
        browser.close()
