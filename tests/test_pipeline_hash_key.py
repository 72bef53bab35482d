"""The key: made once, for its owner's eyes alone, and never told."""

import hashlib
import hmac
import os

import pytest

from pipeline.hash_key import load_hash_key
from schemas.errors import InputError

SECRET = "00ff" * 16


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "key"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


def refusal_of(path):
    with pytest.raises(InputError) as caught:
        load_hash_key(str(path))
    message = str(caught.value)
    assert "\n" not in message and SECRET not in message and SECRET[:8] not in message
    return message


def test_hash_key_that_is_not_there_is_made_for_its_owner_alone(tmp_path):
    before = os.umask(0)
    try:
        first, second = (load_hash_key(str(tmp_path / "key")) for _ in range(2))
    finally:
        os.umask(before)
    assert (first.is_new, second.is_new) == (True, False)
    assert first.secret == second.secret
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "key").read_text()) == 65
    assert load_hash_key(str(tmp_path / "other")).secret != first.secret


def test_hashed_is_the_hmac_that_other_tools_give(key_file):
    expected = hmac.digest(bytes.fromhex(SECRET), "Müller 7".encode(), hashlib.sha256).hex()
    assert load_hash_key(str(key_file)).hashed("Müller 7") == expected[:32]


def test_hash_key_does_not_show_its_secret(key_file):
    key = load_hash_key(str(key_file))
    assert repr(key) == "HashKey(is_new=False)"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o666])
def test_hash_key_that_others_may_touch_is_refused(key_file, mode):
    key_file.chmod(mode)
    assert f"with mode {mode:o}. chmod 600 it" in refusal_of(key_file)


@pytest.mark.parametrize("content", ["", SECRET[:-1], SECRET + "0", SECRET[:-1] + "g", "é" * 32])
def test_hash_key_of_another_form_is_refused_without_telling_it(key_file, content):
    key_file.write_text(content)
    assert "must hold 64 hex digits" in refusal_of(key_file)


def test_hash_key_that_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "must be a file. Received" in refusal_of(tmp_path / "pipe")
    assert "(Is a directory)" in refusal_of(tmp_path)
    assert "(No such file or directory)" in refusal_of(tmp_path / "no folder" / "key")
    assert "must be a local file" in refusal_of("gs://bucket/key")
