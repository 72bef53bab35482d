"""Objects for the reading room: what they take over, what they say, and who accepts them."""

import dataclasses
import datetime
import io
import logging
import shutil
import subprocess
import warnings

import highdicom
import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread, uid
from pydicom.encaps import generate_frames
from pydicom.sr.codedict import codes

from model.dicom_out import FlaggedFinding, Producer, make_objects
from model.dicom_source import read_source_header
from schemas.finding_codes import FINDING_CODES, PRIVATE_SCHEME, SCORE, THRESHOLD
from schemas.findings import ABNORMAL_FINDINGS
from schemas.rejects import ImageError, Reason
from scripts.dicom_files import dicom_file

CANARY = "Zephyrine"
UIDS = {"SOPInstanceUID": "1.2.5", "StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.4"}
HEADER = {
    **UIDS,
    "PatientName": f"{CANARY}^Anna",
    "PatientID": "P 17",
    "IssuerOfPatientID": "Ward",
    "PatientBirthDate": "19500131",
    "PatientSex": "F",
    "StudyDate": "20261126",
    "StudyTime": "101112.5",
    "StudyID": "S1",
    "AccessionNumber": "A1",
    "ReferringPhysicianName": "Doe^Jo",
    "StudyDescription": "Thorax",
    "BodyPartExamined": "CHEST",
    "PatientOrientation": ["L", "F"],
    "BurnedInAnnotation": "NO",
}
PRODUCER = Producer(
    run_id="r1",
    title="Phantom-trained demonstration",
    statement="Trained on phantoms.",
    model_id="0123456789ab",
    software_version="0.1.0",
    made=datetime.datetime(2026, 11, 27, 1, 2, 3),
)
NUMBERS = {"Pleural_Thickening": (0.8125, 0.5), "Edema": (0.75, 0.25), "Mass": (0.625, 0.125)}


def source(**attributes):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what writes wrong values
        return dicom_file(np.zeros((8, 8), np.uint8), **{**HEADER, **attributes})


def jpeg(size=(300, 200)):
    stream = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert("RGB").save(stream, "JPEG", quality=85)
    return stream.getvalue()


def flagged(drawn=("Pleural_Thickening", "Edema")):
    return [
        FlaggedFinding(name, *numbers, jpeg() if name in drawn else None)
        for name, numbers in NUMBERS.items()
    ]


def made_of(**attributes):
    return make_objects(read_source_header(source(**attributes)), flagged(), PRODUCER)


@pytest.fixture(scope="module")
def made():
    """Two captures and a report of an image whose header says all that is taken over."""
    return made_of()


@pytest.fixture(scope="module")
def read(made):
    return [dcmread(io.BytesIO(one.data)) for one in made]


# What is taken over


def test_objects_have_patient_and_study_of_the_image(read):
    kept = {name: HEADER[name] for name in HEADER if name not in UIDS}
    of_images = ("BodyPartExamined", "PatientOrientation", "BurnedInAnnotation")
    for dataset in read[:2]:
        assert {name: dataset[name].value for name in kept} == kept
        assert "Laterality" not in dataset
    assert {name: read[2][name].value for name in kept if name not in of_images} == {
        name: kept[name] for name in kept if name not in of_images
    }
    assert not [name for name in of_images if name in read[2]]
    assert {dataset.StudyInstanceUID for dataset in read} == {"1.2.3"}


def test_objects_of_a_bare_header_guess_nothing():
    bare = dict.fromkeys(set(HEADER) - set(UIDS))
    capture, report = (dcmread(io.BytesIO(one.data)) for one in made_of(**bare)[1:])
    for dataset in (capture, report):
        for name in ("PatientName", "PatientID", "PatientSex", "StudyDate", "AccessionNumber"):
            assert dataset[name].is_empty, name
        for name in ("BurnedInAnnotation", "IssuerOfPatientID", "SpecificCharacterSet"):
            assert name not in dataset
    assert capture["PatientOrientation"].is_empty
    assert capture["Laterality"].is_empty


@pytest.mark.parametrize(
    ("terms", "name"),
    [
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 144", "Люксембург^Анна"),
        ("ISO_IR 192", "Zoë^山田"),
        ("GB18030", "王^小东"),
    ],
)
def test_objects_keep_a_name_in_another_character_set_byte_for_byte(terms, name):
    header = read_source_header(source(SpecificCharacterSet=terms, PatientName=name))
    for one in make_objects(header, flagged(), PRODUCER):
        assert header.values["PatientName"] in one.data
        dataset = dcmread(io.BytesIO(one.data))
        assert dataset.PatientName == name
        assert dataset.SpecificCharacterSet == terms


def test_objects_say_de_identified_only_with_the_method():
    unknown = made_of(PatientIdentityRemoved="YES")[0]
    assert "PatientIdentityRemoved" not in dcmread(io.BytesIO(unknown.data))
    known = made_of(PatientIdentityRemoved="YES", DeidentificationMethod=["by hand", "twice"])[0]
    dataset = dcmread(io.BytesIO(known.data))
    assert dataset.PatientIdentityRemoved == "YES"
    assert dataset.DeidentificationMethod == ["by hand", "twice"]


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: None} for name in UIDS),
        {"StudyInstanceUID": "1.2.."},
        {"StudyInstanceUID": ".."},
        {"SeriesInstanceUID": "1.02"},
        {"SOPInstanceUID": "1." + "2" * 63},
        {"SOPInstanceUID": CANARY},
        {"PatientBirthDate": CANARY},
        {"PatientBirthDate": "20260230"},
        {"StudyTime": "2460"},
        {"PatientSex": "X"},
        {"PatientID": "x" * 65},
        {"AccessionNumber": "x" * 17},
        {"StudyID": "a\nb"},
        {"PatientName": "a^b^c^d^e^f"},
        {"PatientName": "a=b=c=d"},
        {"PatientOrientation": "L"},
        {"BurnedInAnnotation": "MAYBE"},
        {"SpecificCharacterSet": CANARY.upper()},
        {"SpecificCharacterSet": ["ISO_IR 192", "ISO 2022 IR 87"]},
    ],
    ids=lambda wrong: "-".join(map(str, *wrong.items()))[:40],
)
def test_read_source_header_against_the_standard_raises_and_quotes_nothing(wrong):
    with pytest.raises(ImageError) as caught:
        read_source_header(source(**wrong))
    assert caught.value.reason == Reason.INVALID_HEADER
    (name,) = wrong
    assert caught.value.detail.startswith(name)
    assert CANARY.casefold() not in str(caught.value).casefold()


def test_read_source_header_text_outside_its_character_set_raises():
    cyrillic = source(SpecificCharacterSet="ISO_IR 144", PatientName="Анна")
    for name in (b"          ", b"ISO_IR 192"):
        with pytest.raises(ImageError, match="PatientName is not in its character set"):
            read_source_header(cyrillic.replace(b"ISO_IR 144", name))


# What is said


def test_capture_holds_the_overlay_as_it_is(read):
    for dataset in read[:2]:
        (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
        assert frame.removesuffix(b"\0") == jpeg().removesuffix(b"\0")
        pixels = np.asarray(Image.open(io.BytesIO(jpeg())))
        assert dataset.file_meta.TransferSyntaxUID == uid.JPEGBaseline8Bit
        assert (dataset.Rows, dataset.Columns, dataset.SamplesPerPixel) == pixels.shape
        assert dataset.PhotometricInterpretation == "YBR_FULL_422"
        assert dataset.LossyImageCompression == "01"
        assert dataset.LossyImageCompressionMethod == "ISO_10918_1"
        assert float(dataset.LossyImageCompressionRatio) == round(180_000 / len(jpeg()), 2)


def test_capture_refers_to_the_image_and_says_what_it_is(read):
    first, second, _ = read
    assert first.SOPClassUID == uid.SecondaryCaptureImageStorage
    assert first.Modality == "OT"
    assert first.ConversionType == "WSD"
    assert first.ImageType == ["DERIVED", "SECONDARY", "OTHER"]
    (reference,) = first.SourceImageSequence
    assert reference.ReferencedSOPClassUID == uid.ComputedRadiographyImageStorage
    assert reference.ReferencedSOPInstanceUID == "1.2.5"
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert [dataset.InstanceNumber for dataset in (first, second)] == [1, 2]
    assert first.ImageComments == (
        "RESEARCH OUTPUT, NOT FOR DIAGNOSIS. Pleural Thickening: score 0.812, threshold 0.500."
        " The colours show attention, they do not localise."
        " Model: Phantom-trained demonstration. Trained on phantoms."
    )


def test_every_object_is_marked_as_research_and_names_its_maker(read):
    for dataset in read:
        assert "RESEARCH, not for diagnosis" in dataset.SeriesDescription
        assert dataset.ContentQualification == "RESEARCH"
        assert (dataset.Manufacturer, dataset.ManufacturerModelName) == (
            "prescreen",
            "Phantom-trained demonstration",
        )
        assert dataset.SoftwareVersions == ["0.1.0", "0123456789ab"]
        assert (dataset.ContentDate, dataset.ContentTime) == ("20261127", "010203")
    report = read[2]
    flags = (report.CompletionFlag, report.VerificationFlag, report.PreliminaryFlag)
    assert flags == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")


def test_report_read_back_by_highdicom_has_all_that_is_flagged(made):
    report = highdicom.sr.srread(io.BytesIO(made[2].data))
    assert isinstance(report, highdicom.sr.ComprehensiveSR)
    assert report.get_evidence() == [
        ("1.2.3", "1.2.4", "1.2.5", str(uid.ComputedRadiographyImageStorage))
    ]
    groups = report.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == list(NUMBERS)
    for group, (name, (score, threshold)) in zip(groups, NUMBERS.items(), strict=True):
        kind = group.finding_type
        assert (kind.value, kind.scheme_designator, kind.meaning) == FINDING_CODES[name]
        found = {
            measured.name.value: (measured.value, measured.unit.value)
            for measured in group.get_measurements()
        }
        assert found == {SCORE.value: (score, "1"), THRESHOLD.value: (threshold, "1")}
        (image,) = group.source_images
        assert image.referenced_sop_instance_uid == "1.2.5"
    (observer,) = report.content.get_observer_contexts()
    device = observer.observer_identifying_attributes
    assert (device.name, device.model_name) == (PRODUCER.title, PRODUCER.model_id)
    (remark,) = (
        item.value for item in report.content[0].ContentSequence if item.name == codes.DCM.Comment
    )
    assert remark.startswith("RESEARCH OUTPUT, NOT FOR DIAGNOSIS. Findings are labels")
    assert remark.endswith("Model: Phantom-trained demonstration. Trained on phantoms.")


def test_make_objects_again_gives_the_same_bytes(made):
    assert made_of() == made


def test_uids_differ_by_run_image_and_finding_alone(made):
    header = read_source_header(source())
    other_run = dataclasses.replace(PRODUCER, run_id="r2")
    other_image = read_source_header(source(SOPInstanceUID="1.2.6"))
    sets = [
        {one.uid for one in make_objects(of, flagged(), by)}
        for of, by in ((header, PRODUCER), (header, other_run), (other_image, PRODUCER))
    ]
    assert len(set.union(*sets)) == 9
    assert sets[0] == {one.uid for one in made}
    fewer = make_objects(header, flagged(drawn=("Edema",)), PRODUCER)
    assert [one.uid for one in fewer] == [made[1].uid, made[2].uid]
    for one in made:
        assert one.uid.startswith("2.25.")
        assert len(one.uid) <= 64


def test_title_in_other_letters_or_too_long_is_made_to_fit():
    producer = dataclasses.replace(PRODUCER, title="Größe \\ " + "x" * 80)
    header = read_source_header(source(SpecificCharacterSet="ISO_IR 144"))
    *_, report = (
        dcmread(io.BytesIO(one.data)) for one in make_objects(header, flagged(), producer)
    )
    assert report.ManufacturerModelName == ("Gr??e ? " + "x" * 80)[:64]


# Who accepts it


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="needs dciodvfy of dicom3tools")
@pytest.mark.parametrize("bare", [False, True])
def test_dciodvfy_finds_no_error(tmp_path, bare):
    header = dict.fromkeys(set(HEADER) - set(UIDS)) if bare else {}
    for number, one in enumerate(made_of(**header)):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(one.data)
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        assert not [
            line for line in said.stderr.splitlines() if line.startswith(("Error", "Abort"))
        ]
        assert ("SCImage", "SCImage", "ComprehensiveSR")[number] in said.stderr.split()


def test_finding_codes_are_those_of_the_dictionary():
    public = {
        "Cardiomegaly": codes.SCT.Cardiomegaly,
        "Edema": codes.SCT.PulmonaryEdema,
        "Effusion": codes.SCT.PleuralEffusion,
        "Fibrosis": codes.SCT.Fibrosis,
        "Infiltration": codes.DCM.Infiltrate,
        "Mass": codes.SCT.Mass,
        "Nodule": codes.SCT.Nodule,
        "Pneumothorax": codes.SCT.Pneumothorax,
    }
    assert tuple(FINDING_CODES) == ABNORMAL_FINDINGS
    for finding, code in FINDING_CODES.items():
        assert len(code.value) <= 16
        if finding in public:
            known = public[finding]
            assert code == (known.value, known.scheme_designator, known.meaning)
        else:
            assert code[1:] == (PRIVATE_SCHEME, finding.replace("_", " "))


def test_making_objects_says_nothing_of_the_patient(caplog):
    caplog.set_level(logging.DEBUG)
    one_word = {"PatientName": CANARY, "ReferringPhysicianName": CANARY}
    data = source(**one_word)
    caplog.clear()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        objects = make_objects(read_source_header(data), flagged(), PRODUCER)
    assert all(CANARY.encode() in one.data for one in objects)
    assert CANARY not in caplog.text
    assert "1.2.5" not in caplog.text
    assert not [warning for warning in warned if CANARY in str(warning.message)]
