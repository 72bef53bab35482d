"""What a manifest's uris mean: absolute or relative to its folder, file or archive member."""

import hashlib
import os
import re

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_ARCHIVE_ENDS = (".tar", ".tar.gz", ".tgz")
_ARCHIVE_END = re.compile(rf"(?:{'|'.join(map(re.escape, _ARCHIVE_ENDS))})(?=#)", re.IGNORECASE)


def has_scheme(uri: str) -> bool:
    """Returns whether `uri` begins as `gs://` does, and so is no local path."""
    return _SCHEME.match(uri) is not None


def absolute_path(uri: str) -> str:
    """Returns a local path made absolute; what has a scheme stays as it is."""
    return uri if has_scheme(uri) else os.path.abspath(uri)


def split_member(uri: str) -> tuple[str, str | None]:
    """Returns the file that `uri` names, and the member of it where that is a tar archive."""
    end = _ARCHIVE_END.search(uri)
    return (uri[: end.end()], uri[end.end() + 1 :]) if end else (uri, None)


def is_archive(uri: str) -> bool:
    """Returns whether `uri` is that of a tar archive, by its ending."""
    return uri.lower().endswith(_ARCHIVE_ENDS)


def is_gzipped(archive: str) -> bool:
    """Returns whether a tar archive is compressed, by its ending."""
    return not archive.lower().endswith(".tar")


def is_streamed(uri: str) -> bool:
    """Returns whether `uri` is a member that only reading its archive from the start leads to.

    That of a plain local archive is read alone, at its place.
    """
    archive, member = split_member(uri)
    return member is not None and (is_gzipped(archive) or has_scheme(archive))


def manifest_folder(uri: str) -> str:
    """Returns the folder that a manifest's relative uris start from, absolute."""
    if has_scheme(uri):
        return uri.rpartition("/")[0]
    return os.path.dirname(os.path.abspath(uri))


def resolve_uri(uri: str, folder: str) -> str:
    """Returns `uri` made absolute against a manifest's folder.

    What has a scheme stays as it is. Local paths are normalised, without resolving
    symbolic links. A member of an archive (`images.tar#member`) keeps its name.
    """
    if has_scheme(uri):
        return uri
    path, member = split_member(uri)
    if path.startswith("/") or not has_scheme(folder):
        resolved = os.path.normpath(os.path.join(folder, path))
    else:
        resolved = _join_remote(folder, path)
    return resolved if member is None else f"{resolved}#{member}"


def image_id_of(uri: str, folder: str) -> str:
    """Returns the id of an image whose manifest gives none; two uris never share one.

    That is the path relative to the manifest's folder where the image lies inside
    it, else the uri as given: never the base name alone.
    """
    inside = folder.rstrip("/") + "/"
    resolved = resolve_uri(uri, folder)
    return resolved.removeprefix(inside) if resolved.startswith(inside) else uri


def relative_uri(path: str, folder: str) -> str:
    """Returns the uri by which a manifest in `folder` names `path`, relative if it can."""
    relative = image_id_of(path, folder)
    return relative if resolve_uri(relative, folder) == path else path


def redacted_id(uri: str) -> str:
    """Returns what names an image without telling its uri: 16 hex digits of its SHA-256."""
    return hashlib.sha256(uri.encode(errors="surrogateescape")).hexdigest()[:16]


def _join_remote(folder: str, path: str) -> str:
    """Joins without touching what an object's name may hold, such as `//`."""
    parts = folder.split("/")
    for part in path.split("/"):
        if part == "..":
            parts = parts[: max(3, len(parts) - 1)]  # scheme and bucket stay
        elif part != ".":
            parts.append(part)
    return "/".join(parts)
