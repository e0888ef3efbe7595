"""The table of tumours: what the run computed, and what became of it by hand.

The computed figures are an attribute of the result segmentation, a hand edit is a tag of its segment; both are saved
with the scene. A segment counts as edited while its voxels differ from those that the run put there, so that undoing
every edit brings the computed verdict back.
"""

from __future__ import annotations

import json
import textwrap
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import geometry, roles
from .scene_export import segmentInWorld

RESULT_ATTRIBUTE = "WeakTumourSeg.Result"
LABEL_TAG = roles.LABEL_TAG
_DIGEST_TAG = "WeakTumourSeg.Digest"
_EDITED_TAG = "WeakTumourSeg.Edited"
EDITED = "edited_by_hand"
_SAME_PLACE_MM = 0.05


@dataclass(frozen=True)
class Measures:
    """Of one segment in the world: centroid RAS mm, None where nothing is drawn."""

    volumeMm3: float
    diameterMm: float
    centroidRAS: tuple[float, float, float] | None


@dataclass(frozen=True)
class TumourRow:
    """One tumour. What is not known is None, as is the segment of a tumour outside the CT.

    computed: the run's own figures, empty for a tumour drawn by hand.
    """

    segmentId: str | None
    name: str
    volumeMm3: float | None
    diameterMm: float | None
    p50Mm: float | None
    p95Mm: float | None
    visibilityCT: float | None
    verdict: str
    edited: bool
    warnings: tuple[str, ...] = ()
    computed: dict[str, Any] = field(default_factory=dict)


def measure(segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str) -> Measures:
    """Volume, diameter of the sphere of that volume, and centroid, from the segment's label map."""
    from weaktumour.labels import equivalent_diameter

    image = segmentInWorld(segmentationNode, segmentId)
    toWorld = geometry.imageToWorld(image)
    index = np.argwhere(geometry.imageArray(image))[:, ::-1]
    if not len(index):
        return Measures(0.0, 0.0, None)
    volume = len(index) * float(abs(np.linalg.det(toWorld[:3, :3])))
    centroid = geometry.transformPoints(toWorld, index.mean(0) + image.GetExtent()[::2])
    return Measures(volume, equivalent_diameter(volume), tuple(float(value) for value in centroid))


def _digest(segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str) -> dict[str, Any]:
    """Which voxels are set: their pattern, and the place of its corner in the segmentation's own coordinates (mm).

    Not the index of that corner, which Slicer chooses anew when a scene is saved and loaded.
    """
    image = slicer.vtkOrientedImageData()
    slicer.vtkSlicerSegmentationsModuleLogic.GetSegmentBinaryLabelmapRepresentation(
        segmentationNode, segmentId, image, False
    )
    value = segmentationNode.GetSegmentation().GetSegment(segmentId).GetLabelValue()
    index = np.argwhere(geometry.imageArray(image) == value)
    if not len(index):
        return {"voxels": 0, "pattern": 0, "corner": [0.0, 0.0, 0.0]}
    first = index.min(0)
    corner = geometry.transformPoints(geometry.imageToWorld(image), first[::-1] + image.GetExtent()[::2])
    pattern = zlib.crc32((index - first).astype(np.int32).tobytes())
    return {"voxels": len(index), "pattern": pattern, "corner": corner.tolist()}


def _same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    shape = ("voxels", "pattern")
    return all(first[name] == second[name] for name in shape) and np.allclose(
        first["corner"], second["corner"], atol=_SAME_PLACE_MM
    )


def markComputed(segmentationNode: slicer.vtkMRMLSegmentationNode) -> None:
    """Remember the voxels of every segment as those of the run."""
    for segmentId, segment in roles.segmentsOf(segmentationNode):
        segment.SetTag(_DIGEST_TAG, json.dumps(_digest(segmentationNode, segmentId)))


def updateEdited(segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str) -> bool:
    """Measure a segment again after an edit; returns whether it now differs from what the run put there."""
    segment = segmentationNode.GetSegmentation().GetSegment(segmentId)
    if segment is None:
        return False
    computed = roles.segmentTag(segment, _DIGEST_TAG)
    if computed and _same(json.loads(computed), _digest(segmentationNode, segmentId)):
        roles.removeTag(segment, _EDITED_TAG)
        return False
    text = json.dumps(_edited(segmentationNode, segmentId))
    if text != roles.segmentTag(segment, _EDITED_TAG):
        segment.SetTag(_EDITED_TAG, text)
    return True


def updateAllEdited(segmentationNode: slicer.vtkMRMLSegmentationNode) -> None:
    """Compare every tumour with what the run put there, and measure those that differ."""
    for segmentId, segment in roles.segmentsOf(segmentationNode):
        if roles.roleInResult(segment) == roles.TUMOUR:
            updateEdited(segmentationNode, segmentId)


def isEdited(segment: slicer.vtkSegment) -> bool:
    """Whether a tumour differed from what the run put there when that was last looked at."""
    return segment.HasTag(_EDITED_TAG)


def _edited(segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str) -> dict[str, Any]:
    found = measure(segmentationNode, segmentId)
    return {"volume_mm3": found.volumeMm3, "diameter_mm": found.diameterMm, "centroid_ras_mm": found.centroidRAS}


def resultContent(segmentationNode: slicer.vtkMRMLSegmentationNode) -> dict[str, Any]:
    """What the run computed; empty where no run made the segmentation."""
    return json.loads(segmentationNode.GetAttribute(RESULT_ATTRIBUTE) or "{}")


def rows(segmentationNode: slicer.vtkMRMLSegmentationNode | None) -> list[TumourRow]:
    """A row for each tumour that has a segment, in the segmentation's order, those drawn by hand included; then one
    for each that lies outside the CT. Changes nothing.
    """
    if segmentationNode is None:
        return []
    computed = {str(tumour["label"]): tumour for tumour in resultContent(segmentationNode).get("tumours", [])}
    segments = roles.segmentsOf(segmentationNode)
    made = [
        _row(segmentationNode, segmentId, segment, computed)
        for segmentId, segment in segments
        if roles.roleInResult(segment) == roles.TUMOUR
    ]
    drawn = {roles.segmentTag(segment, LABEL_TAG) for _segmentId, segment in segments}
    # One with a volume had a segment, which somebody has deleted.
    made += [
        _rowOutside(figures)
        for label, figures in computed.items()
        if label not in drawn and not figures.get("volume_mm3")
    ]
    return made


def _rowOutside(figures: dict[str, Any]) -> TumourRow:
    return TumourRow(
        segmentId=None,
        name=figures.get("name", ""),
        volumeMm3=None,
        diameterMm=None,
        p50Mm=None,
        p95Mm=None,
        visibilityCT=None,
        verdict="outside_ct",
        edited=False,
        warnings=tuple(figures.get("warnings", ())),
        computed=figures,
    )


def _row(
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    segmentId: str,
    segment: slicer.vtkSegment,
    computed: dict[str, dict[str, Any]],
) -> TumourRow:
    label = roles.segmentTag(segment, LABEL_TAG)
    figures = computed.get(label, {})
    editedText = roles.segmentTag(segment, _EDITED_TAG)
    edited = bool(editedText) or not figures
    shown = figures
    if edited:
        shown = json.loads(editedText) if editedText else _edited(segmentationNode, segmentId)
    return TumourRow(
        segmentId=segmentId,
        name=segment.GetName(),
        volumeMm3=shown.get("volume_mm3"),
        diameterMm=shown.get("diameter_mm"),
        p50Mm=None if edited else figures.get("p50_mm"),
        p95Mm=None if edited else figures.get("p95_mm"),
        visibilityCT=figures.get("visibility_ct"),
        verdict=EDITED if edited else figures.get("verdict", "not_assessed"),
        edited=edited,
        warnings=tuple(figures.get("warnings", ())),
        computed=figures,
    )


# -- words ----------------------------------------------------------------------------------------------------------
def verdictText(verdict: str) -> str:
    return {
        "localised": _("localised"),
        "approximate": _("approximate"),
        "cannot_be_localised": _("cannot be localised"),
        "outside_ct": _("outside the CT"),
        "not_assessed": _("not assessed"),
        EDITED: _("edited by hand"),
    }.get(verdict, verdict)


# Background and text of the verdict, each pair readable by itself, whatever theme surrounds it; the words say the same.
VERDICT_COLOURS = {
    "localised": ("#1b5e20", "#ffffff"),
    "approximate": ("#ffd54f", "#000000"),
    "cannot_be_localised": ("#b71c1c", "#ffffff"),
    "outside_ct": ("#4a148c", "#ffffff"),
}


UNKNOWN = "-"
COLUMNS_OF_UNCERTAINTY = (3, 4)  # hidden while nothing is known
VERDICT_COLUMN = 5
_TOOLTIP_WIDTH = 90  # characters


def columnTitles() -> list[str]:
    return [
        _("Tumour"),
        _("Volume\nml"),
        _("Diam.\nmm"),
        _("p50 / p95\nmm"),
        _("Visibility\nin CT"),
        _("Verdict"),
    ]


def columnToolTips() -> list[str]:
    return [
        "",
        "",
        _("Of the sphere with this volume."),
        _("In 50 and 95 of 100 simulated cases like this, the centre lies within these distances of the place shown."),
        _("How well the CT shows the tumour: 0 not at all, 1 clearly."),
        _("How far the place can be trusted; each cell says why."),
    ]


def cells(row: TumourRow) -> list[str]:
    """The texts of a row, in the order of `columnTitles`."""
    uncertainty = f"{_number(row.p50Mm, 1)} / {_number(row.p95Mm, 1)}"
    return [
        row.name,
        _number(row.volumeMm3, 1, 1e-3),
        _number(row.diameterMm, 1),
        uncertainty if (row.p50Mm, row.p95Mm) != (None, None) else UNKNOWN,
        _number(row.visibilityCT, 2),
        verdictText(row.verdict),
    ]


def tooltip(row: TumourRow) -> str:
    """What the run had computed, and its warnings."""
    if not row.computed:
        return _("Drawn by hand; no run computed it.")
    computed = row.computed
    lines = [
        _("Computed: {verdict}, {volume} ml, diameter {diameter} mm.").format(
            verdict=verdictText(computed.get("verdict", "not_assessed")),
            volume=_number(computed.get("volume_mm3"), 1, 1e-3),
            diameter=_number(computed.get("diameter_mm"), 1),
        )
    ]
    if computed.get("p95_mm") is not None:
        lines.append(
            _("p50 and p95 of its place as computed: {p50} and {p95} mm.").format(
                p50=_number(computed.get("p50_mm"), 1), p95=_number(computed["p95_mm"], 1)
            )
        )
    visibility = [computed.get(f"visibility_{modality}") for modality in ("mr", "ct")]
    if visibility != [None, None]:
        lines.append(
            _("Visibility, 0 none to 1 clear: {mr} in the MRI, {ct} in the CT.").format(
                mr=_number(visibility[0], 2), ct=_number(visibility[1], 2)
            )
        )
    return "\n".join([*lines, *row.warnings])


def verdictToolTip(row: TumourRow) -> str:
    """The verdict in words: the engine's reason for it, the figures, what the region means, what it is not for."""
    lines = [
        _meaning(row),
        *_regionMeaning(row),
        tooltip(row),
        _("For research use only; not for diagnosis or treatment."),
    ]
    lines = "\n".join(lines).split("\n")
    return "\n".join(textwrap.fill(line, _TOOLTIP_WIDTH) for line in lines)


def _meaning(row: TumourRow) -> str:
    if row.edited and not row.computed:
        return _("Nothing is known of how far this place can be trusted.")
    if row.edited:
        return _("Edited by hand: what the run said of its place no longer holds.")
    return row.computed.get("verdict_reason") or {
        "localised": _("The place shown is close to the tumour's."),
        "approximate": _("The tumour lies near the place shown; look for other signs of it and mind the margin."),
        "cannot_be_localised": _("Neither image tells where the tumour is; the place shown may be far off."),
        "outside_ct": _("The tumour lies outside the CT."),
    }.get(
        row.verdict,
        _(
            "How far this place can be trusted has not been assessed; for that, choose the uncertainty under Advanced "
            "and let the run come to its end."
        ),
    )


def _regionMeaning(row: TumourRow) -> list[str]:
    verdict, p95 = row.computed.get("verdict"), row.computed.get("p95_mm")
    if p95 is None:
        return []
    if verdict == "cannot_be_localised":
        return [_("No 95 % position region is drawn: it would claim that the place is known.")]
    if row.edited:
        return [_("Its 95 % position region belongs to the computed place; it is hidden while the tumour differs.")]
    return [
        _(
            "The outline round it, the 95 % position region, holds every point within {p95} mm of the computed tumour: "
            "where it may lie if its centre is that far off."
        ).format(p95=_number(p95, 1))
    ]


def _number(value: float | None, digits: int, factor: float = 1.0) -> str:
    return UNKNOWN if value is None else f"{value * factor:.{digits}f}"
