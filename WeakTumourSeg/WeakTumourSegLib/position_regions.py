"""Where a tumour may lie: all points within its p95 radius of the tumour as computed, drawn as outlines.

The regions are a picture of a figure, no anatomy: they must never be taken for tumours, edited, trained on or
exported. So they are segments of a node of their own that is hidden from editors. Slicer gives such a node no place in
the subject hierarchy, through which DICOM export finds what it offers, and leaves it out of node selectors (MRI
segmentation, CT liver, Segment Editor). Beyond that it has no reference volume, which a DICOM segmentation needs, and
its segments have the role "neither" and get no terminology (Slicer's own for that is "Tissue"). It is saved with the
scene in one file (.mrb); Slicer's dialog for a scene in many files (.mrml) leaves hidden nodes out.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import slicer
from slicer.i18n import tr as _

from weaktumour.errors import InputError

from . import geometry, roles, scene_import, tumour_table
from .scene_import import NUMBER_ATTRIBUTE, REGIONS, RUN_ATTRIBUTE

_REGION_TAG = "WeakTumourSeg.RegionOf"  # the tumour's value in the label map
_VERDICTS = ("localised", "approximate")


# -- the set of points ----------------------------------------------------------------------------------------------
def withinDistance(mask: np.ndarray, spacing: Sequence[float], distanceMm: float) -> tuple[np.ndarray, np.ndarray]:
    """(voxels, margin): which voxels have their centre in a mask's voxels, or within a distance of the surface of them.

    mask: bool (k, j, i) on a lattice with axes at right angles; spacing: mm, along k, j, i. The lattice is widened by
    `margin` voxels at each end of k, j, i, so that nothing is cut off. Exact: a voxel is a box, not its centre.
    """
    margin = np.array([int(np.floor(distanceMm / step + 0.5)) for step in spacing])
    squared = np.where(np.pad(mask, [(count, count) for count in margin]), 0.0, np.inf)
    # The squared distance to a box is a sum over the axes: the nearest box is found along one axis after the other.
    for axis, step in enumerate(spacing):
        squared = _nearestAlong(squared, axis, int(margin[axis]), step)
    return squared <= distanceMm**2 * (1 + 1e-9), margin


def _nearestAlong(squared: np.ndarray, axis: int, most: int, step: float) -> np.ndarray:
    """The least over all voxels of a line of what is there plus the squared distance to that voxel's nearer face."""
    source, least = np.moveaxis(squared, axis, 0), np.moveaxis(squared.copy(), axis, 0)
    for count in range(1, min(most, len(source) - 1) + 1):
        cost = ((count - 0.5) * step) ** 2
        np.minimum(least[count:], source[:-count] + cost, out=least[count:])
        np.minimum(least[:-count], source[count:] + cost, out=least[:-count])
    return np.moveaxis(least, 0, axis)


# -- nodes ----------------------------------------------------------------------------------------------------------
def hasRegion(tumour: dict) -> bool:
    """Whether a tumour of result.json has one: none is drawn where the verdict is that its place is not known."""
    return bool(tumour.get("p95_mm")) and tumour.get("verdict") in _VERDICTS


def make(
    segmentation: slicer.vtkMRMLSegmentationNode, tumours: Sequence[dict], folder: Path, add: object
) -> slicer.vtkMRMLSegmentationNode | None:
    """The regions of a result, from the labels that the run wrote, not from what became of them by hand. None where no
    tumour has one.

    tumours: of result.json. add: of scene_import.allOrNothing. Raises InputError where the labels cannot be read.
    """
    import SimpleITK as sitk

    wanted = [tumour for tumour in tumours if hasRegion(tumour)]
    if not wanted:
        return None
    labels = scene_import.readImage(folder / "ct_labels.nii.gz")
    ijkToNode = latticeOf(segmentation, labels.GetSize())
    spacing = labels.GetSpacing()[::-1]  # in the world at the run, as p95
    voxels = sitk.GetArrayViewFromImage(labels)
    around = boundingBox(voxels > 0)  # of all labels: the rest of a large CT is not looked through for each tumour
    if around is None:
        return None
    start = np.array([part.start for part in around])
    segments = [_segment(tumour, segmentation, voxels[around], start, spacing, ijkToNode) for tumour in wanted]
    return _addNode(segmentation, [segment for segment in segments if segment is not None], add)


def latticeOf(segmentation: slicer.vtkMRMLSegmentationNode, size: Sequence[int]) -> np.ndarray:
    """(4, 4) voxel index of the CT -> the result's own coordinates, as when it was made: the CT may be gone.

    Raises InputError where the lattice has another size (voxels along i, j, k).
    """
    image = slicer.vtkOrientedImageData()
    name = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    text = segmentation.GetSegmentation().GetConversionParameter(name)
    slicer.vtkSegmentationConverter.DeserializeImageGeometry(text, image, False)
    if tuple(image.GetDimensions()) != tuple(size):
        raise InputError(_("The geometry of the result's segmentation was changed during the run; run again."))
    return geometry.imageToWorld(image)


def _segment(
    tumour: dict,
    segmentation: slicer.vtkMRMLSegmentationNode,
    voxels: np.ndarray,
    start: np.ndarray,
    spacing: Sequence[float],
    ijkToNode: np.ndarray,
) -> slicer.vtkSegment | None:
    """voxels: labels whose first voxel has the index `start` (k, j, i)."""
    mask = voxels == tumour["label"]
    box = boundingBox(mask)
    if box is None:
        return None
    region, margin = withinDistance(mask[box], spacing, tumour["p95_mm"])
    start = start + [part.start for part in box] - margin
    segment = slicer.vtkSegment()
    own = _tumourSegment(segmentation, tumour["label"])
    name = own.GetName() if own is not None else tumour.get("name", "")
    segment.SetName(_("{tumour}: 95 % position region").format(tumour=name))
    if own is not None:
        segment.SetColor(own.GetColor())
    segment.SetTag(_REGION_TAG, str(tumour["label"]))
    segment.SetTag(roles.ROLE_TAG, roles.NEITHER)  # its name would make it a tumour
    image = geometry.orientedImage(region.astype(np.uint8), ijkToNode, tuple(int(n) for n in start[::-1]))
    segment.AddRepresentation(scene_import.binaryLabelmap(), image)  # of its own: regions may overlap
    return segment


def boundingBox(mask: np.ndarray) -> tuple[slice, ...] | None:
    """The smallest box (k, j, i) that holds all of a mask; None where it is empty."""
    box = []
    for axis in range(mask.ndim):
        along = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        if not len(along):
            return None
        box.append(slice(int(along[0]), int(along[-1]) + 1))
    return tuple(box)


def _tumourSegment(segmentation: slicer.vtkMRMLSegmentationNode, label: int) -> slicer.vtkSegment | None:
    for _segmentId, segment in roles.segmentsOf(segmentation):
        if roles.segmentTag(segment, roles.LABEL_TAG) == str(label):
            return segment
    return None


def _addNode(
    result: slicer.vtkMRMLSegmentationNode, segments: Sequence[slicer.vtkSegment], add: object
) -> slicer.vtkMRMLSegmentationNode | None:
    if not segments:
        return None

    excluded = slicer.vtkMRMLSubjectHierarchyConstants.GetSubjectHierarchyExcludeFromTreeAttributeName()

    def fill(node: slicer.vtkMRMLSegmentationNode) -> None:
        # Before the scene says that it is there: who hears of it must find it hidden and whole.
        node.SetHideFromEditors(True)
        node.SetAttribute(excluded, "1")
        lattice = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
        value = result.GetSegmentation().GetConversionParameter(lattice)
        node.GetSegmentation().SetConversionParameter(lattice, value)
        for segment in segments:
            segmentId = f"region_{roles.segmentTag(segment, _REGION_TAG)}"
            node.GetSegmentation().AddSegment(segment, segmentId)

    ct = result.GetNodeReference(scene_import.FIXED_ROLE)
    name = _("{ct} position regions {run}").format(
        ct=ct.GetName() if ct is not None else _("CT"), run=result.GetAttribute(NUMBER_ATTRIBUTE) or ""
    )
    runId = result.GetAttribute(RUN_ATTRIBUTE)
    node = add("vtkMRMLSegmentationNode", name.strip(), scene_import.ofRun(runId, REGIONS), fill)
    node.SetAndObserveTransformNodeID(result.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    display = node.GetDisplayNode()
    display.SetVisibility2DFill(False)
    display.SetVisibility2DOutline(True)
    display.SetVisibility3D(False)
    for other in scene_import.nodesOfKind(REGIONS):  # one run's at a time
        if other.GetAttribute(RUN_ATTRIBUTE) != runId and other.GetDisplayNode() is not None:
            other.GetDisplayNode().SetVisibility(False)
    return node


# -- what is shown --------------------------------------------------------------------------------------------------
def show(result: slicer.vtkMRMLSegmentationNode | None, shown: bool) -> None:
    """The regions of one result, or none; never those of two runs.

    A tumour that was edited or deleted by hand has none: its region belongs to the place that the run computed.
    """
    runId = result.GetAttribute(RUN_ATTRIBUTE) if result is not None else None
    for node in scene_import.nodesOfKind(REGIONS):
        if node.GetDisplayNode() is None:
            continue
        isShown = shown and node.GetAttribute(RUN_ATTRIBUTE) == runId
        if isShown:
            _showSegments(node, _labelsAsComputed(result))
        node.GetDisplayNode().SetVisibility(isShown)


def _labelsAsComputed(result: slicer.vtkMRMLSegmentationNode) -> set[str]:
    return {
        roles.segmentTag(segment, roles.LABEL_TAG)
        for _segmentId, segment in roles.segmentsOf(result)
        if not tumour_table.isEdited(segment)
    }


def _showSegments(node: slicer.vtkMRMLSegmentationNode, labels: Collection[str]) -> None:
    display = node.GetDisplayNode()
    for segmentId, segment in roles.segmentsOf(node):
        shown = roles.segmentTag(segment, _REGION_TAG) in labels
        if bool(display.GetSegmentVisibility(segmentId)) is not shown:
            display.SetSegmentVisibility(segmentId, shown)


def removeOrphans() -> None:
    """Take away the regions of results that are no longer in the scene."""
    runs = {node.GetAttribute(RUN_ATTRIBUTE) for node in scene_import.resultSegmentations()}
    for node in scene_import.nodesOfKind(REGIONS):
        if node.GetAttribute(RUN_ATTRIBUTE) not in runs:
            slicer.mrmlScene.RemoveNode(node)
