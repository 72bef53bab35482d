"""The command `web`: one X-ray at a time, in a browser."""

import contextlib
import importlib.util
import ipaddress
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click

from jobs import command
from jobs.command import Command
from jobs.logs import load_tensorflow
from jobs.options import model_option, precision_option, thresholds_option, tta_option
from schemas.errors import InputError

_ABANDONED_AFTER_S = 600
"""An upload that nobody reads waits that long at most: its browser went away."""

_SWEEP_EVERY_S = 60


@click.command("web", cls=Command, context_settings={"show_default": True})
@model_option
@thresholds_option
@tta_option
@precision_option
@click.option(
    "--host",
    default="127.0.0.1",
    metavar="ADDRESS",
    help="Address to serve at; any but one of loopback lets others in, without a password.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7860,
    metavar="N",
    help="Port to serve at; 0 for one that is free.",
)
def web_command(bundle: str | None, host: str, port: int, **options):
    """Shows in a browser what a model says of one uploaded X-ray.

    Scores as bars beside their thresholds, and Grad-CAM of what is flagged, as predict
    gives them. Needs the extra web. Nothing that is uploaded is kept.
    """
    _check_extra()
    with _stopped_by_signals(), _listen(host, port) as listener, _private_folder() as folder:
        _warn_if_open(listener)
        load_tensorflow()
        from jobs.web_page import build_app
        from jobs.web_view import draw_samples
        from model.predictor import Predictor

        app = build_app(
            Predictor(bundle, **options),
            draw_samples(),
            folder,
            debug=click.get_current_context().meta[command.__name__],
        )
        click.echo(f"Open {_url(listener)} in a browser. Control-C ends it.", err=True)
        serve(app, listener)


def serve(app, listener: socket.socket) -> None:
    """Serves until a signal comes."""
    import uvicorn

    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    # A page that is still open waits for news; that it is cut off at the end is no error.
    logging.getLogger("uvicorn.error").addFilter(lambda _: not server.should_exit)
    server.run(sockets=[listener])


def _check_extra() -> None:
    if importlib.util.find_spec("gradio") is None:
        raise InputError("prescreen web needs Gradio: pip install 'prescreen[web]'")


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Makes SIGTERM end the block as Control-C does, so that what is on disk is removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("Stopped.", err=True)
    finally:
        signal.signal(signal.SIGTERM, before)


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket that connections wait at until they are served."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family)
    except OSError as error:
        raise InputError(
            "--host and --port must be an address of this machine that is free to serve at."
            f" Received: {host}, {port}: {error.strerror.partition(' (')[0]}. Name another."
        ) from error


def _warn_if_open(listener: socket.socket) -> None:
    address = listener.getsockname()[0]
    if not ipaddress.ip_address(address).is_loopback:
        click.echo(
            f"Warning: whoever reaches {address} can use this page, without a password and"
            " unencrypted. Leave --host out to serve this machine alone.",
            err=True,
        )


def _url(listener: socket.socket) -> str:
    address, port = listener.getsockname()[:2]
    return f"http://[{address}]:{port}/" if ":" in address else f"http://{address}:{port}/"


@contextlib.contextmanager
def _private_folder() -> Iterator[Path]:
    """Gives Gradio a folder that nobody else can read, and leaves nothing of it."""
    with tempfile.TemporaryDirectory(prefix="prescreen-web-") as name, _swept(Path(name)):
        # Gradio reads it when it makes the page.
        os.environ["GRADIO_TEMP_DIR"] = name
        yield Path(name)


@contextlib.contextmanager
def _swept(folder: Path) -> Iterator[None]:
    """Removes uploads that were broken off, or are waited for by nobody."""
    ended = threading.Event()

    def sweep() -> None:
        while not ended.wait(_SWEEP_EVERY_S):
            remove_older(folder, time.time() - _ABANDONED_AFTER_S)

    thread = threading.Thread(target=sweep, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def remove_older(folder: Path, time_s: float) -> None:
    """Removes files in `folder` that were last written before a time, as seconds of the epoch."""
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.stat().st_mtime < time_s:
                path.unlink()
