"""Peers are called as they are told they will be, and believed only where they did the work."""

import csv
import os
import shlex
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.peers import Peer, PeerJob
from schemas.errors import InputError
from schemas.findings import FINDINGS, score_column

COLUMNS = [score_column(finding) for finding in FINDINGS]
PROGRAM = """
    import csv, json, os, pathlib, sys
    import pyarrow as pa, pyarrow.parquet as pq
    given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    with open(given["--manifest"], newline="") as file:
        ids = [row["image_id"] for row in csv.DictReader(file)]
    columns = {{"image_id": ids, **{{name: [0.25] * len(ids) for name in {columns}}}}}
    pq.write_table(pa.table(columns), pathlib.Path(given["--output"]) / "part.parquet")
    {more}
    print("chatter")
    print(json.dumps({{"images": len(ids), "score_s": 1.5, "batch": given["--batch-size"],
                      "colour": os.environ["COLOUR"]}}))
"""


@pytest.fixture
def job(tmp_path) -> PeerJob:
    """Three images, listed backwards, and a folder."""
    manifest = tmp_path / "images.csv"
    with open(manifest, "w", newline="") as file:
        csv.writer(file).writerows([("image_id", "uri"), *(("c", "/c"), ("b", "/b"), ("a", "/a"))])
    environment = {**os.environ, "COLOUR": "grey"}
    return PeerJob(manifest, 3, "bundle", 8, tmp_path, environment)


@pytest.fixture
def peer(tmp_path):
    """Makes a peer of a program, to which a line is added."""

    def make(more: str = "") -> Peer:
        path = tmp_path / "some peer.py"
        path.write_text(textwrap.dedent(PROGRAM).format(columns=COLUMNS, more=more))
        return Peer(shlex.join([sys.executable, str(path)]))

    return make


def test_peer_is_given_the_job_and_its_time_is_taken(peer, job):
    one = peer()
    stage = one.stage(job)

    assert (stage.name, stage.images) == ("some peer", 3)
    assert stage.work() == {"some peer": 1.5}
    assert one.facts == {"images": 3, "score_s": 1.5, "batch": "8", "colour": "grey"}


def test_peer_scores_are_compared_by_id(peer, job, tmp_path):
    own = tmp_path / "own" / "run_id=r1"
    own.mkdir(parents=True)
    scores = np.full((3, 15), 0.25, np.float32)
    scores[1, 4] = 0.375
    columns = {"image_id": ["a", "b", "c"], **dict(zip(COLUMNS, scores.T, strict=True))}
    pq.write_table(pa.table(columns), own / "part-0.parquet")
    one = peer()
    one.score(job)

    assert one.largest_difference(tmp_path / "own") == 0.125


def test_peer_that_lost_a_row_is_refused(peer, job, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    columns = {"image_id": ["a", "b"], **{name: [0.25] * 2 for name in COLUMNS}}
    pq.write_table(pa.table(columns), own / "part-0.parquet")
    one = peer()
    one.score(job)

    with pytest.raises(InputError, match="from some peer: other images than the manifest's"):
        one.largest_difference(own)


@pytest.mark.parametrize(
    ("more", "received"),
    [
        ("sys.exit(3)", "exit code 3"),
        ("ids = ids[:2]", "2 of 3 images"),
        ("print = lambda line: None", "no JSON of images and score_s in its last line"),
        ("json.dumps = lambda facts: '{}'", "no JSON of images and score_s in its last line"),
    ],
)
def test_peer_that_does_not_do_what_it_must_is_refused(peer, job, more, received):
    with pytest.raises(InputError) as caught:
        peer(more).score(job)
    assert str(caught.value) == (
        "--peer must be a command that scores all images and prints what it took, as"
        f" benchmarks/peers/README.md says. Received from some peer: {received}."
    )


@pytest.mark.parametrize(
    ("command", "name"), [("/no/such/nothing.py --fast", "--fast"), ("", "nothing")]
)
def test_peer_that_is_not_there_is_refused(command, name):
    with pytest.raises(InputError, match=f"Received from {name}: no program of that name"):
        Peer(command)
