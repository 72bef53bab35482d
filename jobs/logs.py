"""Loading the libraries so that they are quick, and quiet in what the operator reads."""

import datetime
import json
import logging
import os
import sys
import tempfile

from model.standard_error import standard_error_to


def load_tensorflow(*, as_json: bool = False) -> None:
    """Imports TensorFlow and Beam's inference without the lines that say nothing.

    TensorFlow prints some from C++ before its log can be set up, so only the file
    descriptor can hold them back; where the import fails they are shown after all.

    Args:
      as_json: Whether the libraries' warnings are lines of JSON.
    """
    import model  # noqa: F401  # sets what TensorFlow reads of the environment

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if as_json:
        logging.getLogger().handlers[0].setFormatter(_JsonFormatter())
    logging.getLogger().addFilter(_says_something)
    with tempfile.TemporaryFile() as log:
        try:
            with standard_error_to(log):
                import tensorflow  # noqa: F401
        except ImportError:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        now = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
        return json.dumps(
            {
                "time": now.isoformat(timespec="milliseconds"),
                "level": record.levelname.lower(),
                "event": "log",
                "logger": record.name,
                "message": record.getMessage(),
            }
        )


def _says_something(record: logging.LogRecord) -> bool:
    # Beam 2.77 warns so on every platform where its optional model manager, which
    # needs PyTorch, is absent.
    return "Resource module is not available" not in record.getMessage()
