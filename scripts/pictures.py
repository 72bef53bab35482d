"""The pictures of the README: parts of a report of phantoms, and one of its overlays.

Usage: python -m scripts.pictures OUTPUT/runs/ID.json FOLDER, as `make pictures` calls it;
needs a `chromium` on PATH.
"""

import argparse
import base64
import io
import json
import shutil
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from PIL import Image

from tests.browser import Browser

_WIDTH = 1100
_PARTS = {
    "report": ("header", "#drift ~ p:nth-of-type(2)"),
    "worklist": ("#worklist", ".sheet li"),
}
"""By picture, the elements of the page that it begins above and ends below."""

_MOST_BYTES = 200_000
_MARGIN = 12


def main() -> None:
    """Writes `report.webp`, `worklist.webp` and `overlay.jpg`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    output, run_id = given.run.parents[1], json.loads(given.run.read_bytes())["run_id"]
    given.folder.mkdir(parents=True, exist_ok=True)
    for name, picture in _photograph(output / f"report/run_id={run_id}.html").items():
        _write(given.folder / f"{name}.webp", picture)
    _write(given.folder / "overlay.jpg", _first_overlay(output, run_id))


def _photograph(page: Path) -> dict[str, bytes]:
    """Returns the parts of a page as WebP."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("pictures need a browser. Received: no chromium on PATH. Install one.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(chromium, Path(profile))
        try:
            browser.call(
                "Emulation.setDeviceMetricsOverride",
                **{"width": _WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False},
            )
            browser.open(page)
            return {name: _clip(browser, *ends) for name, ends in _PARTS.items()}
        finally:
            browser.close()


def _clip(browser: Browser, first: str, last: str) -> bytes:
    edge = "document.querySelector('{}').getBoundingClientRect().{} + scrollY"
    top = max(browser.value(edge.format(first, "top")) - _MARGIN, 0)
    bottom = browser.value(edge.format(last, "bottom")) + _MARGIN
    clip = {"x": 0, "y": top, "width": _WIDTH, "height": bottom - top, "scale": 1}
    shot = browser.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    packed = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(shot["data"]))) as picture:
        picture.convert("RGB").save(packed, "WEBP", quality=80, method=6)
    return packed.getvalue()


def _first_overlay(output: Path, run_id: str) -> bytes:
    """Returns the first overlay of the worklist, as it was published."""
    with pq.ParquetFile(output / f"worklist/run_id={run_id}.parquet") as worklist:
        overlays = worklist.read(columns=["overlays"])["overlays"].to_pylist()
    name = next(name for names in overlays for name in names if name)
    return (output / name).read_bytes()


def _write(path: Path, data: bytes) -> None:
    if len(data) > _MOST_BYTES:
        raise SystemExit(f"a picture must have at most {_MOST_BYTES} bytes. Received: {path.name}.")
    path.write_bytes(data)
    print(f"{path}: {len(data):,} bytes")


if __name__ == "__main__":
    main()
