"""The request to stop: seen at once, and nothing is given after it."""

from pipeline.stopping import STOP, Stop


def test_stop_is_requested_until_it_is_reset():
    stop = Stop()
    assert stop.requested is False
    stop.request()
    stop.request()
    assert stop.requested is True
    stop.reset()
    assert stop.requested is False
    assert STOP.requested is False


def test_stop_not_requested_gives_all_results():
    assert list(Stop().until_requested(iter("abc"))) == ["a", "b", "c"]


def test_stop_requested_before_takes_no_result():
    stop, results = Stop(), iter("abc")
    stop.request()
    assert list(stop.until_requested(results)) == []
    assert next(results) == "a"


def test_stop_requested_meanwhile_gives_nothing_more():
    stop, given = Stop(), []
    for result in stop.until_requested("abcdef"):
        given.append(result)
        if result == "c":
            stop.request()
    assert given == ["a", "b", "c"]
