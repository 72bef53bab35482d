"""Reading the bytes of one image, wherever it is."""

import http
from decimal import Decimal

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from model.reading import SourceFile, check_size, read_file, read_whole
from pipeline.uris import has_scheme
from schemas.rejects import ImageError, Reason


def read_source(uri: str) -> SourceFile:
    """Reads the file that a checked manifest names.

    Args:
      uri: A local path, or a URL of any scheme that Beam's FileSystems know.

    Raises:
      ImageError: There is no such file, it is not a regular one, it may not be
        read, reading fails, or it is larger than `model.reading.MAX_BYTES`.
    """
    return _read_remote(uri) if has_scheme(uri) else read_file(uri)


def _read_remote(uri: str) -> SourceFile:
    try:
        # Not match, which would take brackets in a name for a pattern.
        found = FileSystems.get_filesystem(uri).metadata(uri)
        check_size(found.size_in_bytes)
        with FileSystems.open(uri, compression_type=CompressionTypes.UNCOMPRESSED) as file:
            data = read_whole(file)
    except ImageError:
        raise
    except Exception as error:  # every file system has errors of its own
        if _is_missing(error):
            raise ImageError(Reason.NOT_FOUND, "no file at the uri") from error
        raise ImageError(Reason.READ_ERROR, type(error).__name__) from error
    # Exact: a float of seconds times 1e9 is not.
    modified_ns = int(Decimal(repr(found.last_updated_in_seconds)) * 10**9)
    return SourceFile(data, str(modified_ns))


def _is_missing(error: Exception) -> bool:
    causes = [error]
    if isinstance(error, BeamIOError):
        causes += (error.exception_details or {}).values()
    return any(
        isinstance(cause, FileNotFoundError)
        or getattr(cause, "code", None) == http.HTTPStatus.NOT_FOUND
        for cause in causes
    )
