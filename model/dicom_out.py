"""Objects for the reading room: an overlay as a Secondary Capture, the flags as a report.

Both name the image that they are about, carry its patient and study, and say wherever a viewer
shows it that they are research output. The report follows TID 1500, a group a finding.

What highdicom and pydicom raise, log or warn of can quote a patient. So neither sees a text of
the image: these are put in at the end, as bytes.
"""

import datetime
import io
import logging
import uuid
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from highdicom import sr
from highdicom.coding_schemes import CodingSchemeIdentificationItem
from highdicom.sc import SCImage
from PIL import Image
from pydicom import Dataset, dcmwrite
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from pydicom.uid import JPEGBaseline8Bit

from model.dicom_header import silenced
from model.dicom_source import ALSO_KNOWN, OF_IMAGES, PATIENT_AND_STUDY, SourceHeader
from schemas.finding_codes import FINDING_CODES, PRIVATE_SCHEME, SCORE, THRESHOLD, ConceptCode

logging.getLogger("highdicom").setLevel(logging.CRITICAL + 1)
warnings.filterwarnings("ignore", module=r"highdicom\b")

_MAKER = "prescreen"
_RESEARCH = "RESEARCH OUTPUT, NOT FOR DIAGNOSIS"
_NO_PLACE = "The colours show attention, they do not localise."
_NO_PROBABILITY = (
    "Findings are labels of ChestX-ray14, mined from the text of reports, and no diagnoses. Scores"
    " are the network's own and no probabilities; flagged is what reaches its threshold."
)
_CAPTURES, _REPORTS = 9001, 9002
"""Series numbers, above what a study has of its own."""

_EMPTY_WHERE_UNKNOWN = (*PATIENT_AND_STUDY, "PatientOrientation")

_NAMESPACE = uuid.UUID("8f6c1d0e-4b0a-5a52-9c35-6f2d0c1f7a11")
_LONG_STRING, _SHORT_TEXT = 64, 1024
"""Most characters of a value of LO and of ST."""


@dataclass(frozen=True, slots=True)
class FlaggedFinding:
    """A finding above its threshold.

    Attributes:
      finding: One of the 14.
      score, threshold: 0 to 1.
      overlay: JPEG file of mode `RGB`; None where it was not drawn.
    """

    finding: str
    score: float
    threshold: float
    overlay: bytes | None


@dataclass(frozen=True, slots=True)
class Producer:
    """What made the objects of a run.

    Attributes:
      run_id: Of the run.
      title: Of the model.
      statement: What it may be used for.
      model_id: Its version.
      software_version: Of this project.
      made: When the run began, in this machine's time: the same for each attempt at it.
    """

    run_id: str
    title: str
    statement: str
    model_id: str
    software_version: str
    made: datetime.datetime


@dataclass(frozen=True, slots=True)
class DicomObject:
    """A file to be: the UIDs of its study and of itself, and its content."""

    study: str
    uid: str
    data: bytes


def make_objects(
    header: SourceHeader, flagged: Sequence[FlaggedFinding], producer: Producer
) -> list[DicomObject]:
    """Returns a Secondary Capture an overlay, and at last a report of all that is flagged.

    The same arguments give the same bytes; run, image and finding alone decide on the UIDs.

    Args:
      header: Of the image.
      flagged: Highest score first; at least one.
      producer: Named in each object.
    """
    with silenced():
        drawn = [finding for finding in flagged if finding.overlay]
        captures = [
            _object(header, _capture(header, finding, number, producer), OF_IMAGES)
            for number, finding in enumerate(drawn, 1)
        ]
        return [*captures, _object(header, _report(header, flagged, producer), ())]


def _capture(
    header: SourceHeader, finding: FlaggedFinding, number: int, producer: Producer
) -> Dataset:
    width, height = Image.open(io.BytesIO(finding.overlay)).size
    capture = SCImage(
        # Compressed twice it would lose twice: what highdicom encodes is replaced below.
        pixel_array=np.zeros((height, width, 3), np.uint8),
        photometric_interpretation="YBR_FULL_422",
        bits_allocated=8,
        transfer_syntax_uid=JPEGBaseline8Bit,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        study_instance_uid=header.study,
        series_instance_uid=_uid("captures", producer.run_id, header.sop_instance),
        series_number=_CAPTURES,
        sop_instance_uid=_uid("capture", producer.run_id, header.sop_instance, finding.finding),
        instance_number=number,
        series_description="Attention maps: RESEARCH, not for diagnosis",
        **_equipment(producer),
    )
    del capture.PatientOrientation
    capture.PixelData = encapsulate([finding.overlay])
    capture["PixelData"].VR = "OB"
    capture.ConversionType = "WSD"
    capture.DateOfSecondaryCapture = capture.ContentDate
    capture.TimeOfSecondaryCapture = capture.ContentTime
    capture.LossyImageCompression = "01"
    capture.LossyImageCompressionMethod = "ISO_10918_1"
    ratio = width * height * 3 / len(finding.overlay)
    capture.LossyImageCompressionRatio = f"{ratio:.2f}"
    source = _reference(header)
    source.PurposeOfReferenceCodeSequence = [
        sr.CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    capture.SourceImageSequence = [source]
    label = finding.finding.replace("_", " ")
    capture.DerivationDescription = (
        f"{_RESEARCH}. Activation map of {label} in colour over the shrunken image, with a caption."
        f" {_NO_PLACE}"
    )
    capture.ImageComments = (
        f"{_RESEARCH}. {label}: score {finding.score:.3f}, threshold {finding.threshold:.3f}."
        f" {_NO_PLACE} Model: {_about(producer)}"
    )
    return capture


def _report(header: SourceHeader, flagged: Iterable[FlaggedFinding], producer: Producer) -> Dataset:
    observer = sr.DeviceObserverIdentifyingAttributes(
        uid=_uid("device", producer.model_id),
        name=_ascii(producer.title),
        manufacturer_name=_MAKER,
        model_name=producer.model_id,
    )
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(
                observer_type=codes.DCM.Device, observer_identifying_attributes=observer
            )
        ),
        procedure_reported=codes.LN.XRUnspecifiedBodyRegion,
        imaging_measurements=[_group(header, finding, producer) for finding in flagged],
    )
    # TID 1500 may be extended.
    remark = f"{_RESEARCH}. {_NO_PROBABILITY} Model: {_about(producer)}"
    content[0].ContentSequence.append(
        sr.TextContentItem(
            name=codes.DCM.Comment,
            value=remark,
            relationship_type=sr.RelationshipTypeValues.CONTAINS,
        )
    )
    report = sr.ComprehensiveSR(
        evidence=[_evidence(header)],
        content=content[0],
        series_instance_uid=_uid("reports", producer.run_id, header.sop_instance),
        series_number=_REPORTS,
        sop_instance_uid=_uid("report", producer.run_id, header.sop_instance),
        instance_number=1,
        is_complete=True,
        is_final=False,
        is_verified=False,
        coding_schemes=[
            CodingSchemeIdentificationItem(PRIVATE_SCHEME, name="Findings and scores of prescreen")
        ],
        series_description="Scores above threshold: RESEARCH, not for diagnosis",
        **_equipment(producer),
    )
    return report


def _group(
    header: SourceHeader, finding: FlaggedFinding, producer: Producer
) -> sr.MeasurementsAndQualitativeEvaluations:
    numbers = ((SCORE, finding.score), (THRESHOLD, finding.threshold))
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=_uid("finding", producer.run_id, header.sop_instance, finding.finding),
            identifier=finding.finding,
        ),
        finding_type=_concept(FINDING_CODES[finding.finding]),
        algorithm_id=sr.AlgorithmIdentification(
            name=_ascii(producer.title),
            version=producer.model_id,
            parameters=[_RESEARCH],
            manufacturer=_MAKER,
        ),
        measurements=[
            sr.Measurement(
                name=_concept(code), value=round(float(number), 6), unit=codes.UCUM.NoUnits
            )
            for code, number in numbers
        ],
        source_images=[sr.SourceImageForMeasurementGroup(header.sop_class, header.sop_instance)],
    )


def _concept(code: ConceptCode) -> sr.CodedConcept:
    return sr.CodedConcept(code.value, code.scheme, code.meaning)


def _equipment(producer: Producer) -> dict:
    """Returns what every object says of who made it, and when."""
    return {
        "manufacturer": _MAKER,
        "manufacturer_model_name": _ascii(producer.title)[:_LONG_STRING],
        "software_versions": [producer.software_version, producer.model_id],
        "content_date": producer.made.date(),
        "content_time": producer.made.time(),
        "series_date": producer.made.date(),
        "series_time": producer.made.time(),
        "content_qualification": "RESEARCH",
    }


def _evidence(header: SourceHeader) -> Dataset:
    """Returns the image as far as highdicom may know it."""
    evidence = Dataset()
    evidence.SOPClassUID = header.sop_class
    evidence.SOPInstanceUID = header.sop_instance
    evidence.StudyInstanceUID = header.study
    evidence.SeriesInstanceUID = header.series
    for keyword in PATIENT_AND_STUDY:
        setattr(evidence, keyword, "")
    return evidence


def _reference(header: SourceHeader) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID = header.sop_class
    reference.ReferencedSOPInstanceUID = header.sop_instance
    return reference


def _object(header: SourceHeader, made: Dataset, also: Iterable[str]) -> DicomObject:
    """Returns the file of an object, with what it takes over from the image."""
    made.InstanceCreationDate, made.InstanceCreationTime = made.ContentDate, made.ContentTime
    for library in made.ContributingEquipmentSequence:
        library.ContributionDateTime = f"{made.ContentDate}{made.ContentTime}"
    if header.character_set:
        made.SpecificCharacterSet = list(header.character_set)
    # Says that the bytes below are in it already, so that they are written as they are.
    made.set_original_encoding(False, True, header.encodings)
    empty = _EMPTY_WHERE_UNKNOWN
    if "BodyPartExamined" not in header.values:
        empty += ("Laterality",)  # or a paired one may be meant
    for keyword in (*PATIENT_AND_STUDY, *ALSO_KNOWN, *also):
        value = header.values.get(keyword, b"")
        if value or keyword in empty:
            value += b" " * (len(value) % 2)
            tag, vr = tag_for_keyword(keyword), dictionary_VR(keyword)
            made[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    stream = io.BytesIO()
    dcmwrite(stream, made, implicit_vr=False, little_endian=True, enforce_file_format=True)
    return DicomObject(header.study, str(made.SOPInstanceUID), stream.getvalue())


def _uid(*parts: str) -> str:
    """Returns a UID that the parts decide: PS3.5 B.2, a UUID as a number."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, chr(0).join(parts)).int}"


def _about(producer: Producer) -> str:
    return _ascii(f"{producer.title}. {producer.statement}")[:_SHORT_TEXT]


def _ascii(text: str) -> str:
    """Returns a text as every character set has it, and every value may hold it."""
    plain = text.encode("ascii", "replace").decode()
    return "".join(
        letter if letter.isprintable() and letter not in "\\~" else "?" for letter in plain
    )
