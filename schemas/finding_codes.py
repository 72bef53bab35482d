"""What the 14 findings are called in DICOM's structured reports.

A public code stands where the code dictionary of pydicom 3.0 (`pydicom.sr.codedict`, made of
PS3.16) has one that plainly means the label; a test holds the table against it. Atelectasis,
consolidation, emphysema, hernia, thickening of the pleura and pneumonia have none there, or one
for something narrower such as plate-like atelectasis, and get a code of this project's own.

Either way a code says which label of ChestX-ray14 was flagged. Those labels were mined from the
text of reports, so that a flag is no statement that SNOMED's definition is met.
"""

from typing import NamedTuple

PRIVATE_SCHEME = "99PRESCREEN"
"""Coding scheme of this project, whose meanings are the labels."""


class ConceptCode(NamedTuple):
    """A code as DICOM has it.

    Attributes:
      value: Up to 16 characters.
      scheme: Who says what it means: `SCT` is SNOMED CT, `DCM` PS3.16.
      meaning: For people; up to 64 characters.
    """

    value: str
    scheme: str
    meaning: str


FINDING_CODES = {
    "Atelectasis": ConceptCode("ATELECTASIS", PRIVATE_SCHEME, "Atelectasis"),
    "Cardiomegaly": ConceptCode("287272002", "SCT", "Cardiomegaly"),
    "Consolidation": ConceptCode("CONSOLIDATION", PRIVATE_SCHEME, "Consolidation"),
    "Edema": ConceptCode("19242006", "SCT", "Pulmonary edema"),
    "Effusion": ConceptCode("60046008", "SCT", "Pleural effusion"),
    "Emphysema": ConceptCode("EMPHYSEMA", PRIVATE_SCHEME, "Emphysema"),
    "Fibrosis": ConceptCode("112674009", "SCT", "Fibrosis"),
    "Hernia": ConceptCode("HERNIA", PRIVATE_SCHEME, "Hernia"),
    "Infiltration": ConceptCode("112121", "DCM", "Infiltrate"),
    "Mass": ConceptCode("4147007", "SCT", "Mass"),
    "Nodule": ConceptCode("27925004", "SCT", "Nodule"),
    "Pleural_Thickening": ConceptCode("PLEURAL_THICK", PRIVATE_SCHEME, "Pleural Thickening"),
    "Pneumonia": ConceptCode("PNEUMONIA", PRIVATE_SCHEME, "Pneumonia"),
    "Pneumothorax": ConceptCode("36118008", "SCT", "Pneumothorax"),
}
"""One for each of `schemas.findings.ABNORMAL_FINDINGS`."""

SCORE = ConceptCode("SCORE", PRIVATE_SCHEME, "Score of the network, no probability")
THRESHOLD = ConceptCode("THRESHOLD", PRIVATE_SCHEME, "Threshold of the score")
"""What stands beside a flagged finding."""
