"""The page of `web`, of Gradio's components, and how it is served."""

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import fastapi
import gradio as gr
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.web_view import Sample, Shown, notice, show_error, show_failure, show_image, take_upload
from model.card import model_card
from model.predictor import Predictor
from model.reading import MAX_BYTES
from schemas.rejects import ImageError, Reason

_log = logging.getLogger(__name__)

_TEMPLATES = Path(__file__).parent / "templates"

_HEADERS = {
    # The browser itself refuses to ask anybody else. Gradio writes scripts and styles into
    # its page, and compiles templates there.
    "Content-Security-Policy": "default-src 'self';"
    " script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self';"
    " form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def build_app(
    predictor: Predictor, samples: Sequence[Sample], uploads: Path, *, debug: bool = False
) -> fastapi.FastAPI:
    """Returns the web application.

    Args:
      predictor: Predicts each image; one at a time, so that memory is bounded.
      samples: Phantoms to click.
      uploads: Where Gradio puts what is uploaded; must be `GRADIO_TEMP_DIR` already.
      debug: Whether an unexpected error is logged with its stack trace.
    """
    page = _build_page(_Handlers(predictor, samples, uploads, debug))
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(_SetHeaders)
    gr.mount_gradio_app(
        app,
        page,
        path="",
        theme=_theme(),
        head=_head(),
        max_file_size=MAX_BYTES,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )
    # Else Gradio would take any path of this machine for an upload: it checks only pages that
    # it has launched itself.
    page.has_launched = True
    return app


class _Handlers:
    """What happens on the page; each method returns what its outputs show."""

    def __init__(self, predictor: Predictor, samples: Sequence[Sample], uploads: Path, debug: bool):
        self.predictor, self.samples = predictor, samples
        self._uploads, self._debug = uploads.resolve(), debug

    def predict_upload(self, file: dict, with_overlays: bool):
        """Predicts an uploaded file, which is gone when this returns; empties its field."""
        return *self._predict(lambda: self._take(file), "Uploaded image", with_overlays), None

    def predict_sample(self, index: int, with_overlays: bool):
        """Predicts a phantom."""
        sample = self.samples[index]
        return self._predict(lambda: sample.data, sample.name, with_overlays)

    def _predict(self, read: Callable[[], bytes], name: str, with_overlays: bool):
        shown = self._show(read, name)
        return shown.result, gr.HTML(shown.overlays, visible=with_overlays and bool(shown.overlays))

    def _show(self, read: Callable[[], bytes], name: str) -> Shown:
        try:
            return show_image(self.predictor, read(), name)
        except ImageError as error:
            return show_error(error)
        except Exception as error:
            # Not its text, which may quote the file.
            _log.error("web: no prediction: %s", type(error).__name__, exc_info=self._debug)
            return show_failure()

    def _take(self, file: dict) -> bytes:
        path = Path(os.path.realpath(file["path"]))
        if self._uploads not in path.parents:
            raise ImageError(Reason.NOT_FOUND, "it is none that was uploaded")
        return take_upload(path)


def _build_page(handlers: _Handlers) -> gr.Blocks:
    info = handlers.predictor.info
    with gr.Blocks(title="prescreen", analytics_enabled=False, fill_width=True) as page:
        _html(notice(info), elem_id="notice")
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                _html("<h1>One chest X-ray</h1>", elem_id="title")
                upload = gr.File(label="A chest X-ray: PNG, JPEG or DICOM", height=140)
                samples = gr.Dataset(
                    label="Or a phantom: a drawing, not an X-ray",
                    components=[gr.HTML(render=False)],
                    samples=[[_thumbnail(sample)] for sample in handlers.samples],
                    type="index",
                    elem_id="samples",
                )
                gradcam = gr.Checkbox(
                    label="Show Grad-CAM", info="Of what is flagged. Attention, not localisation."
                )
                result = _html("")
                overlays = _html("", visible=False)
            with gr.Column(scale=2, min_width=320, elem_id="card"):
                gr.Markdown(model_card(info))
        one_at_a_time = {"concurrency_limit": 1, "concurrency_id": "predict"}
        hidden = {"api_visibility": "private"}
        # Without Gradio's own reading of the file, which would leave another behind.
        upload.upload(
            handlers.predict_upload,
            [upload, gradcam],
            [result, overlays, upload],
            preprocess=False,
            **one_at_a_time,
            **hidden,
        )
        samples.click(
            handlers.predict_sample,
            [samples, gradcam],
            [result, overlays],
            **one_at_a_time,
            **hidden,
        )
        gradcam.change(lambda shown: gr.HTML(visible=shown), gradcam, overlays, **hidden)
    return page


def _head() -> str:
    # Gradio's own parameter for style keeps rules from what is around the page's parts.
    style, script = ((_TEMPLATES / f"web.{kind}").read_text("utf-8") for kind in ("css", "js"))
    return f"<style>{style}</style><script>{script}</script>"


def _theme() -> gr.themes.Base:
    # Without a font that is fetched, and with contrast enough for small print.
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return theme.set(
        body_text_color_subdued="#545d68",
        body_text_color_subdued_dark="#a8b0b9",
        block_info_text_color="#545d68",
        block_info_text_color_dark="#a8b0b9",
    )


def _html(value: str, **options) -> gr.HTML:
    return gr.HTML(value, js_on_load=None, apply_default_css=False, **options)


def _thumbnail(sample: Sample) -> str:
    return f'<img src="data:image/jpeg;base64,{sample.thumbnail}" alt="{sample.name}">'


class _SetHeaders:
    """Adds headers to each answer."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)
