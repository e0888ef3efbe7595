"""What a segment is (liver, tumour, neither) and how that is written for DICOM: terminology codes and names.

A role is recognised by the segment's terminology, else by its English name. What the user says in the table goes before
both and is kept as a tag of the segment, which is saved with it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import slicer
import vtk

LIVER, TUMOUR, NEITHER = "liver", "tumour", "neither"
ROLES = (LIVER, TUMOUR, NEITHER)
ROLE_TAG = "WeakTumourSeg.Role"
LABEL_TAG = "WeakTumourSeg.Label"  # of a segment that a run made: its value in the label map

# SNOMED CT codes as in DICOM's lists of segmentation types.
_LIVER_CODES = {"10200004"}
_TUMOUR_CODES = {
    "4147007",  # mass
    "52988006",  # lesion
    "108369006",  # neoplasm
    "86049000",  # neoplasm, primary
    "14799000",  # neoplasm, secondary
    "25370001",  # hepatocellular carcinoma
}
_SEPARATORS = re.compile(r"[\W_]+")
_TUMOUR_NAME = re.compile(
    r"\b(tumou?rs?|lesions?|metastas[ie]s|mets?|hcc|ccc|icc|crlm|mass(es)?|nodules?|neoplasms?|carcinomas?|cancers?"
    r"|adenomas?|gtv)\d*\b"
)
_LIVER_NAME = re.compile(r"\b(liver|hepatic parenchyma)\b")
# Its two halves make up the liver together.
_HALF_OF_LIVER = re.compile(r"\b(left|right)( liver)? lobe\b")
# Parts of a liver and what lies in or near it are not the liver.
_BESIDES = r"vessels?|veins?|artery|arteries|portal|vena|ducts?|cysts?|necrosis|gallbladder|background"
_BESIDES_TUMOURS = re.compile(rf"\b({_BESIDES})\b")
_NOT_WHOLE_LIVER = re.compile(rf"\b({_BESIDES}|segments?|lobes?)\b")
# What a name says is left out of the segment ("liver without tumours") is not what it is.
_LEFT_OUT = re.compile(
    r"\b(without|minus|excluding|excl|except)\b.*|\bnon (tumou?r|lesion)(al|ous)?\b|\btumou?r free\b"
)


@dataclass(frozen=True)
class Code:
    """One coded term: scheme, code value and meaning, each empty where there is none."""

    scheme: str = ""
    value: str = ""
    meaning: str = ""


@dataclass(frozen=True)
class Terminology:
    """Category, type and place of a segment, as far as the labels of this module need them."""

    category: Code
    type: Code
    region: Code = Code()

    @staticmethod
    def parse(text: str) -> Terminology | None:
        """From the text in a segment's tag; None where it is not one."""
        parts = [Code(*part.split("^")) if part.count("^") == 2 else None for part in text.split("~")]
        if len(parts) != 7 or parts[1] is None or parts[2] is None:
            return None
        return Terminology(parts[1], parts[2], parts[5] or Code())

    def serialize(self) -> str:
        """As the text in a segment's tag."""
        return slicer.vtkSlicerTerminologiesModuleLogic.SerializeTerminologyEntry(
            "Segmentation category and type - DICOM master list",
            *(self.category.value, self.category.scheme, self.category.meaning),
            *(self.type.value, self.type.scheme, self.type.meaning),
            *("", "", ""),
            "Anatomic codes - DICOM master list",
            *(self.region.value, self.region.scheme, self.region.meaning),
            *("", "", ""),
        )

    def toJson(self) -> dict[str, dict[str, str]]:
        """As in labels.json."""
        return {name: vars(code) for name, code in (("category", self.category), ("type", self.type))}


_LIVER = Code("SCT", "10200004", "Liver")
TERMINOLOGY = {
    LIVER: Terminology(Code("SCT", "123037004", "Anatomical Structure"), _LIVER),
    TUMOUR: Terminology(
        Code("SCT", "49755003", "Morphologically Altered Structure"), Code("SCT", "4147007", "Mass"), _LIVER
    ),
    NEITHER: Terminology(Code("SCT", "85756007", "Tissue"), Code("SCT", "85756007", "Tissue")),
}


def segmentTag(segment: slicer.vtkSegment, name: str) -> str:
    """The value of a segment's tag; empty where it has none."""
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""


def removeTag(segment: slicer.vtkSegment, name: str) -> None:
    """Without a word to who observes the segment where there is no such tag."""
    if segment.HasTag(name):
        segment.RemoveTag(name)


def terminologyOf(segment: slicer.vtkSegment) -> Terminology | None:
    return Terminology.parse(segmentTag(segment, segment.GetTerminologyEntryTagName()))


def recognisedRole(segment: slicer.vtkSegment) -> str:
    """The role by terminology, else by name."""
    terminology = terminologyOf(segment)
    code = terminology.type.value if terminology else ""
    if code in _TUMOUR_CODES:
        return TUMOUR
    if code in _LIVER_CODES:
        return LIVER
    return _roleByName(segment.GetName() or "")


def _plain(name: str) -> str:
    return _SEPARATORS.sub(" ", name).lower()


def _roleByName(text: str) -> str:
    name = _LEFT_OUT.sub("", _plain(text))
    if _TUMOUR_NAME.search(name):
        return TUMOUR
    if _LIVER_NAME.search(name) and not _NOT_WHOLE_LIVER.search(_HALF_OF_LIVER.sub("", name)):
        return LIVER
    return NEITHER


def roleOf(segment: slicer.vtkSegment) -> str:
    """The role that the user chose, else the recognised one."""
    chosen = segmentTag(segment, ROLE_TAG)
    return chosen if chosen in ROLES else recognisedRole(segment)


def roleInResult(segment: slicer.vtkSegment) -> str:
    """As `roleOf`, for a segment of a result: one drawn by hand is a tumour, unless its name says otherwise.

    The Segment Editor gives a new segment the terminology of the one before it, which may be the liver's.
    """
    if segmentTag(segment, ROLE_TAG) in ROLES or segmentTag(segment, LABEL_TAG):
        return roleOf(segment)
    byName = _roleByName(segment.GetName() or "")
    if byName == NEITHER and not _BESIDES_TUMOURS.search(_plain(segment.GetName() or "")):
        return TUMOUR
    return byName


def setRole(segment: slicer.vtkSegment, role: str | None) -> None:
    """Choose a role; None goes back to the recognised one."""
    if role is None or role == recognisedRole(segment):
        removeTag(segment, ROLE_TAG)
    elif role in ROLES:
        segment.SetTag(ROLE_TAG, role)
    else:
        raise ValueError(f"role must be one of {', '.join(ROLES)}, not {role!r}")


def terminologyFor(segment: slicer.vtkSegment, role: str) -> Terminology:
    """What a carried-over segment is to be called: its own terminology where it says the role, else the role's."""
    own = terminologyOf(segment)
    codes = {LIVER: _LIVER_CODES, TUMOUR: _TUMOUR_CODES}.get(role, set())
    return own if own is not None and own.type.value in codes else TERMINOLOGY[role]


def segmentsOf(segmentationNode: slicer.vtkMRMLSegmentationNode) -> list[tuple[str, slicer.vtkSegment]]:
    """(id, segment) in the order of the segmentation."""
    segmentation = segmentationNode.GetSegmentation()
    ids = [segmentation.GetNthSegmentID(index) for index in range(segmentation.GetNumberOfSegments())]
    return [(segmentId, segmentation.GetSegment(segmentId)) for segmentId in ids]
