"""Standard error: one line is dropped, all others come through, whatever happens."""

import os

import pytest

from model.standard_error import standard_error_without


def test_standard_error_without_drops_that_line_and_writes_the_rest(capfd):
    with standard_error_without(b"INFO: hello"):
        os.write(2, b"before\nINFO: hello\nafter\n")
        assert capfd.readouterr().err == ""
    assert capfd.readouterr().err == "before\nafter\n"


def test_standard_error_without_after_an_error_still_writes_the_rest(capfd):
    with pytest.raises(ValueError, match="broken"), standard_error_without(b"INFO: hello"):
        os.write(2, b"why\n")
        raise ValueError("broken")
    os.write(2, b"and more\n")
    assert capfd.readouterr().err == "why\nand more\n"
