"""Uris: what a manifest names, made absolute, and the ids of images without one."""

import os

import pytest

from pipeline.uris import has_scheme, image_id_of, manifest_folder, resolve_uri


@pytest.mark.parametrize(
    "uri, expected",
    [("gs://b/a", True), ("S3+x.y-z://b", True), ("/gs://b", False), ("C:/a", False), ("", False)],
)
def test_has_scheme(uri, expected):
    assert has_scheme(uri) is expected


@pytest.mark.parametrize(
    "uri, folder",
    [("gs://b/f/m.csv", "gs://b/f"), ("/a/../b/m.csv", "/b"), ("x/m.csv", f"{os.getcwd()}/x")],
)
def test_manifest_folder(uri, folder):
    assert manifest_folder(uri) == folder


@pytest.mark.parametrize(
    "uri, resolved, image_id",
    [
        ("a.png", "/m/a.png", "a.png"),
        ("./x/../a//b.png", "/m/a/b.png", "a/b.png"),
        ("../a.png", "/a.png", "../a.png"),
        ("/m/x/a.png", "/m/x/a.png", "x/a.png"),
        ("/mm/a.png", "/mm/a.png", "/mm/a.png"),
        ("gs://b/x/../a.png", "gs://b/x/../a.png", "gs://b/x/../a.png"),
        ("a%20b#c?.png", "/m/a%20b#c?.png", "a%20b#c?.png"),
        ("x/../t.tar#a//../b.png", "/m/t.tar#a//../b.png", "t.tar#a//../b.png"),
        ("t.TGZ#a//b#c", "/m/t.TGZ#a//b#c", "t.TGZ#a//b#c"),
        (" a.png ", "/m/ a.png ", " a.png "),
    ],
)
def test_resolve_uri_against_a_local_folder(uri, resolved, image_id):
    assert (resolve_uri(uri, "/m"), image_id_of(uri, "/m")) == (resolved, image_id)


@pytest.mark.parametrize(
    "uri, resolved, image_id",
    [
        ("a.png", "gs://b/f/a.png", "a.png"),
        ("./x/../a.png", "gs://b/f/a.png", "a.png"),
        ("../../../a.png", "gs://b/a.png", "../../../a.png"),
        ("x//a.png", "gs://b/f/x//a.png", "x//a.png"),
        ("gs://b/f/g/a.png", "gs://b/f/g/a.png", "g/a.png"),
        ("/local/../a.png", "/a.png", "/local/../a.png"),
        ("t.tar.gz#../a.png", "gs://b/f/t.tar.gz#../a.png", "t.tar.gz#../a.png"),
    ],
)
def test_resolve_uri_against_a_remote_folder(uri, resolved, image_id):
    assert (resolve_uri(uri, "gs://b/f"), image_id_of(uri, "gs://b/f")) == (resolved, image_id)
