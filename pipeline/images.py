"""Reading and decoding images ahead of the network."""

import hashlib

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows

from model.preprocessing import prepare
from pipeline.elements import ImageFacts, LoadedImage, RejectedImage
from pipeline.manifest import ManifestRow
from pipeline.read_ahead import ReadAhead
from pipeline.source import read_source
from schemas.rejects import ImageError

LOADED = "loaded"
REJECTED = "rejected"


class LoadImages(beam.PTransform):
    """Manifest rows in; loaded images and rejected ones out.

    A retry reads the files again. Tags keep both outputs in the stage that scores,
    so that no pixel is ever stored between stages.

    Args:
      threads: Threads that read and decode, a worker.
      read_ahead: Images under way, a worker; at least a batch, or the decoders
        stand still while the network runs.
    """

    def __init__(self, *, threads: int, read_ahead: int):
        super().__init__()
        self._threads = threads
        self._read_ahead = read_ahead

    def expand(self, rows):
        dofn = LoadImageDoFn(self._threads, self._read_ahead)
        return rows | beam.ParDo(dofn).with_outputs(REJECTED, main=LOADED)


class LoadImageDoFn(beam.DoFn):
    """Keeps a bounded number of images under way in threads."""

    def __init__(self, threads: int, read_ahead: int):
        self._threads = threads
        self._read_ahead = read_ahead
        self._loaded = Metrics.counter("prescreen", "images_loaded")
        self._rejected = Metrics.counter("prescreen", "images_rejected_at_load")

    def setup(self):
        self._ahead = ReadAhead(load_image, threads=self._threads, depth=self._read_ahead)

    def process(self, row: ManifestRow):
        for image in self._ahead.put(row):
            yield self._tagged(image, image)

    def finish_bundle(self):
        for image in self._ahead.drain():
            yield self._tagged(image, GlobalWindows.windowed_value(image))

    def teardown(self):
        self._ahead.close()

    def _tagged(self, image, output):
        if isinstance(image, RejectedImage):
            self._rejected.inc()
            return beam.pvalue.TaggedOutput(REJECTED, output)
        self._loaded.inc()
        return output


def load_image(row: ManifestRow) -> LoadedImage | RejectedImage:
    """Reads and decodes the image of a manifest row; a bad one comes back rejected."""
    source = None
    try:
        source = read_source(row.uri)
        image = prepare(source.data)
    except ImageError as error:
        size_bytes = len(source.data) if source else None
        return RejectedImage(row, error, size_bytes, source.version if source else None)
    facts = ImageFacts(
        width=image.width,
        height=image.height,
        size_bytes=len(source.data),
        source_version=source.version,
        content_sha256=hashlib.sha256(source.data).hexdigest(),
        mean_intensity=float(image.pixels.mean()),
        std_intensity=float(image.pixels.std()),
    )
    return LoadedImage(row, facts, image.pixels)
