"""What the name of a file says of its content; nothing is read."""

import re

DICOM_EXTENSIONS = (".dcm", ".dicom")
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", *DICOM_EXTENSIONS)
"""What a file's name must end in, in either case, to be listed for its name."""

_EXTENSION = re.compile(r"\.[^./]*[^0-9./][^./]*$")
"""Of digits alone is none: archives call files by a UID, such as 1.2.840.10008.42."""


def is_image(path: str) -> bool:
    """Returns whether a file is an image by its name."""
    return path.lower().endswith(IMAGE_EXTENSIONS)


def is_dicom_name(path: str) -> bool:
    """Returns whether a file is DICOM by its name."""
    return path.lower().endswith(DICOM_EXTENSIONS)


def is_dicomdir(path: str) -> bool:
    """Returns whether a file is the directory of a set of DICOM files, by its name."""
    return path.rpartition("/")[2].upper() == "DICOMDIR"


def has_no_extension(path: str) -> bool:
    """Returns whether only its content can tell what a file is."""
    return _EXTENSION.search(path.rpartition("/")[2]) is None
