"""Names in place of names: ids hashed under a key that only its owner can read.

The same key gives the same id every night, so that tables join; without it nobody can try out
which id a known patient has, as with a plain hash.
"""

import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass, field

from pipeline.uris import has_scheme
from schemas.errors import InputError

_KEY_BYTES = 32
_ID_DIGITS = 32
_FORM = re.compile(rb"[0-9a-fA-F]{%d}\n?" % (2 * _KEY_BYTES))


@dataclass(frozen=True)
class HashKey:
    """A key, which is neither printed nor written anywhere but in its file.

    Attributes:
      is_new: Whether the file was made just now.
    """

    secret: bytes = field(repr=False)
    is_new: bool

    def hashed(self, text: str) -> str:
        """Returns the first 32 hex digits of the HMAC-SHA256 of a text's UTF-8."""
        data = text.encode(errors="surrogateescape")
        return hmac.new(self.secret, data, hashlib.sha256).hexdigest()[:_ID_DIGITS]


def load_hash_key(path: str) -> HashKey:
    """Returns the key of a file, which is made where there is none.

    Args:
      path: Local; holds 64 hex digits.

    Raises:
      InputError: Others can read it, it holds something else, or it cannot be read or made.
    """
    if has_scheme(path):
        raise InputError(
            f"hash-key must be a local file. Received: hash-key={path!r}. Copy it here, with"
            " chmod 600."
        )
    try:
        if is_new := not os.path.exists(path):
            _make(path)
        return HashKey(_read(path), is_new)
    except OSError as error:
        raise InputError(
            "hash-key must be a file that can be read, or made in its folder. Received:"
            f" hash-key={path!r} ({os.strerror(error.errno or 0)}). Check its permissions."
        ) from None


def _make(path: str) -> None:
    # Never for a moment readable by others; never in place of a file that has come meanwhile.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as file:
        file.write(secrets.token_hex(_KEY_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _read(path: str) -> bytes:
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise InputError(
                f"hash-key must be a file. Received: hash-key={path!r}, another thing."
            )
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InputError(
                "hash-key must be a file that only its owner can read. Received:"
                f" hash-key={path!r} with mode {stat.S_IMODE(status.st_mode):03o}."
                " chmod 600 it; or make another, if somebody may have read it."
            )
        content = file.read(4 * _KEY_BYTES)
    if not _FORM.fullmatch(content):
        raise InputError(
            f"hash-key must hold {2 * _KEY_BYTES} hex digits. Received: hash-key={path!r}, which"
            " holds something else. Name another file; one that is not there is made."
        )
    return bytes.fromhex(content.decode().strip())
