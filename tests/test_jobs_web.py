"""The command `web`: its page in a browser, what it leaves on disk, and how it ends."""

import json
import os
import shutil
import signal
import stat
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from jobs import web
from jobs.cli import cli
from model import predictor as predictor_module
from model.phantoms import draw_phantom
from model.predictor import Predictor
from tests.browser import Browser
from tests.fakes import FakeScorer, make_bundle

PATIENT = "MUELLER_HANS"


def invoke(*arguments):
    return CliRunner().invoke(cli, ["web", *map(str, arguments)])


@pytest.fixture
def gradio():
    return pytest.importorskip("gradio", reason="needs the extra web: no gradio")


@pytest.fixture
def fake_network(monkeypatch):
    monkeypatch.setattr(predictor_module, "load_bundle_info", lambda folder: make_bundle())
    monkeypatch.setattr(predictor_module, "build_scorer", lambda settings: FakeScorer())


# The command


def test_web_without_its_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(web.importlib.util, "find_spec", lambda name: None)
    result = invoke()
    assert result.exit_code == 2
    assert result.output == ("Error: prescreen web needs Gradio: pip install 'prescreen[web]'\n")


def test_web_at_a_port_that_is_taken_says_so(monkeypatch):
    monkeypatch.setattr(web.importlib.util, "find_spec", lambda name: True)
    with web._listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        result = invoke("--port", port)
    assert result.exit_code == 2
    assert f"Received: 127.0.0.1, {port}: Address already in use." in result.output


@pytest.mark.parametrize(("host", "warns"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_web_warns_where_others_can_reach_it(capsys, host, warns):
    with web._listen(host, 0) as listener:
        assert listener.getsockname()[0] == host
        web._warn_if_open(listener)
    said = capsys.readouterr().err
    assert (
        said.startswith("Warning: whoever reaches 0.0.0.0 can use this page") if warns else not said
    )


def test_web_binds_to_loopback_unless_told_otherwise():
    (host,) = [option for option in web.web_command.params if option.name == "host"]
    assert host.default == "127.0.0.1"


def test_web_ends_on_sigterm_and_leaves_nothing(gradio, fake_network, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen = []

    def serve(app, listener):
        (folder,) = tmp_path.iterdir()
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        seen.append(stat.S_IMODE(folder.stat().st_mode))
        (folder / "digest").mkdir()
        (folder / "digest" / f"{PATIENT}.png").touch()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.setattr(web, "serve", serve)
    before = signal.getsignal(signal.SIGTERM)
    result = invoke("--port", 0)
    assert (result.exit_code, seen) == (0, [0o700]), result.output
    assert result.output.startswith("Open http://127.0.0.1:")
    assert result.output.endswith("/ in a browser. Control-C ends it.\nStopped.\n")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before


def test_old_uploads_are_removed_and_young_ones_kept(tmp_path):
    for name, age_s in (("old", 700), ("young", 500)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "image").touch()
        os.utime(tmp_path / name / "image", (0, time.time() - age_s))
    web.remove_older(tmp_path, time.time() - 600)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["image"]
    assert (tmp_path / "young" / "image").exists()


def test_web_ends_quietly_while_a_page_is_open(gradio, fake_network, monkeypatch, capfd, caplog):
    def end_when_open(listener):
        with urllib.request.urlopen(f"{web._url(listener)}gradio_api/heartbeat/s") as stream:
            stream.readline()
            os.kill(os.getpid(), signal.SIGTERM)
            stream.read()

    serve = web.serve

    def serve_a_page(app, listener):
        threading.Thread(target=end_when_open, args=(listener,), daemon=True).start()
        serve(app, listener)

    monkeypatch.setattr(web, "serve", serve_a_page)
    monkeypatch.setattr("jobs.web_view.draw_samples", list)
    assert web.web_command.main(["--port", "0"], standalone_mode=False) is None
    said = capfd.readouterr().err
    assert said.startswith("Open http://127.0.0.1:") and said.endswith("ends it.\nStopped.\n")
    assert [record.getMessage() for record in caplog.records if "uvicorn" in record.name] == []


# The page


@contextmanager
def served(predictor, uploads, monkeypatch):
    """Serves the page in a thread; gives its address."""
    import uvicorn

    from jobs.web_page import build_app
    from jobs.web_view import draw_samples

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(uploads))
    app = build_app(predictor, draw_samples()[:2], uploads)
    with web._listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield web._url(listener)
        finally:
            server.should_exit = True
            thread.join()


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def browser(tmp_path):
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs a browser: no chromium on PATH")
    browser = Browser(chromium, tmp_path / "profile")
    yield browser
    browser.close()


def test_web_page_predicts_an_upload_and_keeps_nothing(
    gradio, browser, demo_scorer, monkeypatch, tmp_path
):
    monkeypatch.setattr(predictor_module, "build_scorer", lambda settings: demo_scorer)
    good, broken = tmp_path / f"{PATIENT}.png", tmp_path / f"{PATIENT}_2.png"
    Image.fromarray(draw_phantom(5, 12, 512).pixels).save(good)
    broken.write_bytes(good.read_bytes()[:5000])
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    with served(Predictor(), uploads, monkeypatch) as url:
        browser.open(url)
        browser.wait_for("document.querySelector('input[type=file]')")
        browser.choose_file("input[type=file]", good)
        browser.wait_for("document.querySelectorAll('.result tbody tr').length == 15")
        text = browser.value("document.body.innerText")
        assert "Above threshold: Pneumothorax, Effusion, Cardiomegaly." in text
        assert "Research prototype, not for diagnosis." in text
        assert "Trained on synthetic phantoms" in text and "Excluded use" in text
        assert browser.value("document.querySelectorAll('.bar.flagged').length") == 3
        assert browser.value("document.querySelectorAll('.sheet img').length") == 0
        assert files_in(uploads) == []

        browser.value("document.querySelector('input[type=checkbox]').click() ?? 0")
        browser.wait_for("document.querySelectorAll('.sheet img').length == 3")
        assert browser.value("[...document.images].every(i => i.naturalWidth > 0)")

        browser.value("document.querySelector('#samples button').click() ?? 0")
        browser.wait_for("document.body.innerText.includes('Phantom 1, drawn with Cardiomegaly')")

        browser.choose_file("input[type=file]", broken)
        browser.wait_for("document.querySelector('.alarm')")
        assert browser.value("document.querySelector('.alarm').innerText") == (
            "This file could not be used: truncated, the PNG ends before its IEND chunk."
            " Copy it anew from where it came."
        )
        assert browser.value("document.querySelectorAll('.sheet img').length") == 0
        assert PATIENT not in browser.value("document.documentElement.outerHTML")
        assert files_in(uploads) == []
        assert [request for request in browser.requests if not request.startswith(url)] == []
        assert "error" not in "".join(browser.console).lower()


@pytest.fixture
def page(gradio, fake_network, monkeypatch, tmp_path):
    """The address of a page with the fake network and a limit of 1,000 bytes, and its folder."""
    from jobs import web_page

    monkeypatch.setattr(web_page, "MAX_BYTES", 1000)
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    with served(Predictor("no bundle"), uploads, monkeypatch) as url:
        yield url, uploads


def post(url: str, content: bytes, kind: str):
    return urllib.request.urlopen(urllib.request.Request(url, content, {"Content-Type": kind}))


def test_web_page_reads_and_removes_no_file_but_an_upload(page, tmp_path):
    url, uploads = page
    secret = tmp_path / f"{PATIENT}.png"
    Image.fromarray(draw_phantom(5, 12, 64).pixels).save(secret)
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    body = {"data": [file, True], "fn_index": 0, "session_hash": "s"}
    post(f"{url}gradio_api/queue/join", json.dumps(body).encode(), "application/json")
    with urllib.request.urlopen(f"{url}gradio_api/queue/data?session_hash=s") as answers:
        (done,) = (line for line in answers if b"process_completed" in line)
    answer = json.loads(done.removeprefix(b"data: "))
    assert answer["success"] is False
    assert PATIENT not in done.decode()
    assert secret.exists() and files_in(uploads) == []


def test_web_page_refuses_what_is_over_the_limit_and_keeps_nothing_of_it(page):
    url, uploads = page
    parts = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="MUELLER_HANS.png"',
        b"Content-Type: image/png",
        b"",
        bytes(1001),
        b"--x--\r\n",
    )
    with pytest.raises(urllib.error.HTTPError) as error:
        post(f"{url}gradio_api/upload", b"\r\n".join(parts), "multipart/form-data; boundary=x")
    assert error.value.code == 413
    assert error.value.read() == b"File size exceeded maximum allowed size of 1000 bytes."
    assert files_in(uploads) == []


def test_web_page_lets_the_browser_ask_nobody_else(page):
    with urllib.request.urlopen(page[0]) as answer:
        policy = answer.headers["Content-Security-Policy"]
        content = answer.read().decode()
    assert policy.startswith("default-src 'self'; script-src 'self' ")
    assert "http" not in policy and "*" not in policy
    assert '"analytics_enabled":false' in content


def test_web_page_says_that_the_server_failed_without_the_words_of_the_error(
    gradio, fake_network, caplog, tmp_path
):
    from jobs.web_page import _Handlers

    handlers = _Handlers(Predictor("no bundle"), [], tmp_path, debug=False)
    handlers.predictor.predict = lambda *_, **__: int(f"/{PATIENT}.png")
    (tmp_path / "image").touch()
    shown, overlays, field = handlers.predict_upload({"path": str(tmp_path / "image")}, True)
    assert "the server failed" in shown and PATIENT not in shown
    assert (overlays.visible, overlays.value, field) == (False, "", None)
    assert [record.getMessage() for record in caplog.records] == ["web: no prediction: ValueError"]
    assert not (tmp_path / "image").exists()
