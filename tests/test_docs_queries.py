"""Every query of docs/queries.md answers its question on the output of real runs."""

import json
import re
import shutil
from pathlib import Path

import duckdb
import pandas as pd
import pytest

from model.bundle import demo_bundle_path, load_bundle_info
from model.thresholds import thresholds_to_json
from pipeline import run, scoring
from pipeline.rethreshold import RethresholdOptions, rethreshold_run
from pipeline.run import score_manifest
from pipeline.score_options import ScoreOptions
from tests.fakes import FakeScorer, make_thresholds, picture, write_picture

_TEXT = (Path(__file__).parents[1] / "docs/queries.md").read_text(encoding="utf-8")
_README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
_SECTIONS = {
    title: dict(reversed(re.findall(r"^```(.*?)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)))
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", _TEXT, re.MULTILINE | re.DOTALL)
}
QUESTIONS = [title for title in _SECTIONS if title != "First"]

STUDIES = [
    # image, patient, date, labels, what the network sees
    ("a1", "7", "2026-01-01", "Effusion|Mass", {"Effusion": 250, "Mass": 240}),
    ("a2", "7", "2026-02-01", "Effusion", {"Effusion": 245}),
    ("b1", "8", "2026-01-05", "No Finding", {"Effusion": 30, "Nodule": 230}),
    ("b2", "8", "2026-03-05", "Effusion", {"Effusion": 235, "Nodule": 250}),
    ("c1", "9", "2026-01-09", "", {"Hernia": 90}),
]


class Opposite(FakeScorer):
    """Another model, which takes high for low."""

    def score(self, images):
        return super().score(255 - images)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Three runs: a night, the same images by another model, and a night with a new image.

    The first has its flags from other thresholds than it was scored with: a fourth run.
    """
    folder = tmp_path_factory.mktemp("queries")
    rows = []
    for image, patient, date, labels, levels in STUDIES:
        write_picture(folder / f"{image}.png", picture(levels))
        rows.append(f"{image},{image}.png,{patient},PA,{date},{labels}")
    rows.append("lost,lost.png,7,AP,2026-01-02,")
    header = "image_id,uri,patient_id,view_position,study_date,labels"
    _score(folder, "draft", [header, *rows], FakeScorer(), thresholds=_half(folder))
    _rethreshold(folder, "draft", "night")
    _score(folder, "other", [header, *rows], Opposite())
    write_picture(folder / "c2.png", picture({"Mass": 250}))
    new = "c2,c2.png,9,PA,2026-04-09,Mass"
    _score(folder, "later", [header, *rows, new], FakeScorer(), only_new=True)
    return folder / "out"


def _score(folder, run_id, lines, scorer, **options):
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        scorer.install(patch)
        patch.setattr(run, "load_scorer", scoring.load_scorer)
        score_manifest(
            ScoreOptions(
                manifest=str(folder / "manifest.csv"),
                output=str(folder / "out"),
                bundle=demo_bundle_path(),
                run_id=run_id,
                reject_limit=1.0,
                **options,
            ),
            lambda event, **facts: None,
        )


def _half(folder):
    path = folder / "half.json"
    content = {"tta": "none", "findings": thresholds_to_json(make_thresholds(0.25))}
    path.write_text(json.dumps(content))
    return str(path)


def _rethreshold(folder, parent, run_id):
    values = load_bundle_info(demo_bundle_path()).thresholds["none"]
    path = folder / "bundle.json"
    path.write_text(json.dumps({"tta": "none", "findings": thresholds_to_json(values)}))
    record = folder / f"out/runs/{parent}.json"
    with pytest.MonkeyPatch.context() as patch:
        FakeScorer().install(patch)
        rethreshold_run(
            RethresholdOptions(str(record), str(path), run_id=run_id, no_report=True),
            lambda event, **facts: None,
        )


def _code(title, kind, output):
    return _SECTIONS[title][kind].replace("/results", str(output))


@pytest.fixture(scope="module")
def database(output):
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(_code("First", "sql", output))
        yield connection


@pytest.fixture(scope="module")
def tables(output):
    """What the pandas examples define first."""
    names = {}
    exec(_SECTIONS["First"]["python"].replace("/results", str(output)), names)
    return names


def _in_python(title, output, tables):
    names = dict(tables)
    exec(_code(title, "python", output), names)
    return names["answer"]


def _plain(answer: pd.DataFrame) -> list[list]:
    """Returns the rows in plain values, numbers cut to what all agree on."""

    def plain(value):
        if hasattr(value, "tolist"):
            value = value.tolist()
        if isinstance(value, float):
            return None if value != value else round(value, 6)
        return [plain(item) for item in value] if isinstance(value, list) else value

    return [[plain(value) for value in row] for row in answer.itertuples(index=False)]


@pytest.mark.parametrize("title", QUESTIONS)
def test_query_gives_the_same_answer_in_duckdb_and_pandas(title, output, database, tables):
    found = database.execute(_code(title, "sql", output)).df()
    expected = _in_python(title, output, tables)
    assert list(found.columns) == list(expected.columns)
    assert _plain(found.map(_as_date)) == _plain(expected)
    assert len(found)


def _as_date(value):
    return value.date() if isinstance(value, pd.Timestamp) else value


def test_views_leave_out_a_run_that_another_supersedes(output, database, tables):
    expected = [("later",), ("night",), ("other",)]
    for table in ("scores", "runs"):
        query = f"SELECT DISTINCT run_id FROM {table} ORDER BY run_id"
        assert database.execute(query).fetchall() == expected
        assert sorted(set(tables[table]["run_id"])) == [run_id for (run_id,) in expected]
    (newest,) = re.findall(
        r"^SELECT \* FROM read_parquet.*?= 1$", _README, re.MULTILINE | re.DOTALL
    )
    found = database.execute(newest.replace("/results", str(output))).df()
    assert set(found["run_id"]) == {"later", "other"} and found["image_id"].is_unique


def test_query_of_prevalence_counts_the_flags_of_each_night(output, database):
    found = database.execute(_code(QUESTIONS[0], "sql", output)).fetchall()
    assert [row for row in found if row[0] == "night"] == [
        ("night", "Effusion", 3, 0.6),
        ("night", "Nodule", 2, 0.4),
        ("night", "Mass", 1, 0.2),
    ]
    assert [row for row in found if row[0] == "later"] == [("later", "Mass", 1, 1.0)]


def test_query_of_changes_puts_the_largest_first(output, database):
    title = "Which patients have changed most?"
    found = database.execute(_code(title, "sql", output)).fetchall()
    sizes = [abs(change) for *_, change in found]
    assert [(row[0], row[1]) for row in found if row[0] == "9"] == [("9", "2026-04-09")]
    assert sizes == sorted(sizes, reverse=True) and len(found) == 3


@pytest.mark.spark
def test_query_gives_the_same_answer_in_spark(output, database):
    if shutil.which("java") is None:
        pytest.skip("needs java on PATH: install a JDK 17")
    sql = pytest.importorskip("pyspark.sql", reason="needs pyspark: docs/spark.md")
    spark = sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    spark = spark.config("spark.sql.session.timeZone", "UTC").getOrCreate()
    try:
        code = re.findall(r"^```python\n(for table.*?)^```$", _TEXT, re.MULTILINE | re.DOTALL)
        exec(code[0].replace("/results", str(output)), {"spark": spark})
        for title in QUESTIONS[:-1]:
            section = _SECTIONS[title]
            query = section.get("sql spark", section["sql"]).replace("/results", str(output))
            found = pd.DataFrame([row.asDict() for row in spark.sql(query).collect()])
            expected = database.execute(_code(title, "sql", output)).df().map(_as_date)
            assert list(found.columns) == list(expected.columns), title
            assert _plain(found) == _plain(expected), title
    finally:
        spark.stop()
