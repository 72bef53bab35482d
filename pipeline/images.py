"""Reading and decoding images ahead of the network."""

import dataclasses
import functools
import hashlib

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.transforms.window import GlobalWindows

from model.preprocessing import prepare
from model.quality import image_quality
from model.reading import SourceFile
from pipeline.budget import Budget
from pipeline.elements import ImageFacts, LoadedImage, ReadImage, RejectedImage, Shard, row_of
from pipeline.manifest import ManifestRow
from pipeline.read_ahead import ReadAhead, TimedOut
from pipeline.shard_reader import images_of
from pipeline.source import read_source
from pipeline.stopping import STOP
from pipeline.watch import Watch
from schemas.quality import gate_error
from schemas.rejects import ImageError, Stage

LOADED = "loaded"
REJECTED = "rejected"

READS_AT_ONCE = 32
"""Threads of a worker that read: a store answers each of them after tens of milliseconds."""

MOST_READ_BYTES = 512 * 2**20
"""What they hold of files that are not decoded yet; one larger than that comes alone."""

READS_RETRIED = "reads_retried"
"""The counter of attempts after the first, in Beam's namespace `prescreen`."""


@dataclasses.dataclass(frozen=True)
class Checks:
    """How an image is judged beside its pixels.

    Attributes:
      view_at: Where the view position stands among the carried values; None where the
        manifest has none.
      rejects: Whether an image that is not to be believed is rejected.
    """

    view_at: int | None = None
    rejects: bool = False

    def view_of(self, row: ManifestRow) -> str | None:
        """Returns what the manifest calls the view of an image, if anything."""
        return None if self.view_at is None else row.carried[self.view_at]


class LoadImages(beam.PTransform):
    """Manifest rows and shards of them in; loaded images and rejected ones out.

    A retry reads the files again. Tags keep both outputs in the stage that scores,
    so that no pixel is ever stored between stages. Images come in order, but for those
    that a slow store holds up; one that takes over a minute is rejected. After a
    request to stop (`pipeline.stopping`) no row is taken in and no image given.

    Many are read at once, and a few of them decoded: a store is slow to answer, while
    decoding needs a processor, and memory for a whole image.

    Args:
      threads: Threads that decode at once, a worker.
      read_ahead: Images under way, a worker; at least a batch, or the decoders
        stand still while the network runs.
      checks: How images are judged.
    """

    def __init__(self, *, threads: int, read_ahead: int, checks: Checks = Checks()):
        super().__init__()
        self._threads = threads
        self._read_ahead = read_ahead
        self._checks = checks

    def expand(self, rows):
        dofn = LoadImageDoFn(self._threads, self._read_ahead, self._checks)
        return rows | beam.ParDo(dofn).with_outputs(REJECTED, main=LOADED)


class LoadImageDoFn(beam.DoFn):
    """Keeps a bounded number of images under way in threads."""

    def __init__(self, threads: int, read_ahead: int, checks: Checks = Checks()):
        self._threads = threads
        self._read_ahead = read_ahead
        self._checks = checks
        self._loaded = Metrics.counter("prescreen", "images_loaded")
        self._rejected = Metrics.counter("prescreen", "images_rejected_at_load")
        self._retried = Metrics.counter("prescreen", READS_RETRIED)

    def setup(self):
        self._loader = ImageLoader(self._threads, self._checks)
        self._ahead = ReadAhead(
            self._loader,
            threads=min(max(READS_AT_ONCE, self._threads), self._read_ahead),
            depth=self._read_ahead,
        )

    def process(self, work: ManifestRow | Shard):
        for item, watch in STOP.until_requested(images_of(work, self._loader.bytes)):
            for image in STOP.until_requested(self._ahead.put(item, watch)):
                yield self._tagged(image)

    def finish_bundle(self):
        for image in STOP.until_requested(self._ahead.drain()):
            yield self._tagged(image, GlobalWindows.windowed_value)

    def teardown(self):
        self._ahead.close()

    def _tagged(self, image, wrap=lambda image: image):
        if isinstance(image, TimedOut):
            image = _rejected(row_of(image.item), image.error, image.watch)
        self._retried.inc(image.attempts - 1)
        if isinstance(image, RejectedImage):
            self._rejected.inc()
            return beam.pvalue.TaggedOutput(REJECTED, wrap(image))
        self._loaded.inc()
        return wrap(image)


class ImageLoader:
    """Reads and decodes images, in any number of threads of which few decode at once.

    Attributes:
      bytes: What the files that are not decoded yet may hold.
    """

    def __init__(self, decoders: int, checks: Checks = Checks()):
        """Makes a loader for threads to share.

        Args:
          decoders: How many of them decode at once.
          checks: How images are judged.
        """
        self.bytes = Budget(MOST_READ_BYTES)
        self._decoders = Budget(decoders)
        self._checks = checks

    def __call__(self, item: ManifestRow | ReadImage, watch: Watch) -> LoadedImage | RejectedImage:
        """Returns the image of a manifest row; a bad one comes back rejected.

        Args:
          item: Whose image, to be read here where it was not yet.
          watch: Told how far it is.
        """
        try:
            if isinstance(item, ManifestRow):
                make_room = functools.partial(self._make_room, watch)
                return self._decode(item, read_source(item.uri, watch, make_room), watch)
            if isinstance(item.source, ImageError):
                raise item.source
            return self._decode(item.row, item.source, watch)
        except ImageError as error:
            return _rejected(row_of(item), error, watch)
        finally:
            self.bytes.give_back(watch)
            self._decoders.give_back(watch)

    def _decode(self, row: ManifestRow, source: SourceFile, watch: Watch) -> LoadedImage:
        self._decoders.take(watch, 1)
        watch.begin(Stage.DECODE)
        image = prepare(source.data)
        view = self._checks.view_of(row)
        quality = image_quality(image.pixels, image.width, image.height, view, image.header_codes)
        if self._checks.rejects and (error := gate_error(quality)):
            raise error
        facts = ImageFacts(
            width=image.width,
            height=image.height,
            size_bytes=source.version.size_bytes,
            source_version=source.version.version,
            content_sha256=hashlib.sha256(source.data).hexdigest(),
            mean_intensity=float(image.pixels.mean()),
            std_intensity=float(image.pixels.std()),
            quality=quality,
        )
        return LoadedImage(row, facts, image.pixels, watch.attempts)

    def _make_room(self, watch: Watch, size_bytes: int) -> None:
        self.bytes.give_back(watch)  # what an attempt before has taken
        self.bytes.take(watch, size_bytes)
        watch.begin(Stage.READ)


def load_image(row: ManifestRow) -> LoadedImage | RejectedImage:
    """Returns the image of a manifest row, read and decoded alone; a bad one rejected."""
    return ImageLoader(decoders=1)(row, Watch())


def _rejected(row: ManifestRow, error: ImageError, watch: Watch) -> RejectedImage:
    version = watch.version
    return RejectedImage(
        row,
        error,
        size_bytes=version.size_bytes if version else None,
        source_version=version.version if version else None,
        attempts=watch.attempts,
    )
