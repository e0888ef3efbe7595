"""Looking at a result: centre on a tumour, blend, checkerboard, before and after, outline or fill.

Works on the MRML nodes of whatever slice views there are, so that it needs no layout.
"""

from __future__ import annotations

import numpy as np
import slicer
from slicer.i18n import tr as _

from weaktumour.errors import InputError

from . import geometry, tumour_table
from .scene_import import (
    FIXED_ROLE,
    KIND_ATTRIBUTE,
    MOVING_ROLE,
    MOVING_SEGMENTATION_ROLE,
    ResultNodes,
    resultSegmentations,
)

CHECKERBOARD = "checkerboard"
_SQUARE_MM = 30.0


def _nodes(className: str) -> list[slicer.vtkMRMLNode]:
    scene = slicer.mrmlScene
    return [scene.GetNthNodeByClass(index, className) for index in range(scene.GetNumberOfNodesByClass(className))]


def _showInSlices(background: object, foreground: object, opacity: float) -> None:
    for composite in _nodes("vtkMRMLSliceCompositeNode"):
        composite.SetBackgroundVolumeID(background.GetID())
        composite.SetForegroundVolumeID(foreground.GetID() if foreground is not None else None)
        composite.SetForegroundOpacity(opacity)


def centreOn(segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str) -> tuple[float, float, float] | None:
    """Put the middle of all slice views on a segment's centroid; returns it (RAS mm), None where nothing is drawn."""
    centroid = tumour_table.measure(segmentationNode, segmentId).centroidRAS
    if centroid is not None:
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *centroid, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
    return centroid


def blend(result: ResultNodes, opacity: float, registered: bool = True) -> None:
    """The CT with the MRI over it: registered, or as it was before. opacity: 0 CT alone, 1 MRI alone."""
    mr = result.registeredMR if registered else result.segmentation.GetNodeReference(MOVING_ROLE)
    showOverCT(result, mr, opacity)


def showOverCT(result: ResultNodes, mr: slicer.vtkMRMLScalarVolumeNode | None, opacity: float) -> None:
    """An image over the result's CT in all slice views. Raises InputError where one of them is gone."""
    ct = result.segmentation.GetNodeReference(FIXED_ROLE)
    if ct is None or mr is None:
        raise InputError(_("An image of this result is no longer in the scene."))
    _showInSlices(ct, mr, opacity)


def fitViews() -> None:
    """All of what lies in the background of the slice views; needs the application."""
    slicer.util.setSliceViewerLayers(fit=True)


def showSegmentation(result: ResultNodes, registered: bool) -> None:
    """The result, or the MRI's own segmentation; never both, nor another run's: two livers would mislead."""
    for other in resultSegmentations():
        _setShown(other, registered and other is result.segmentation)
    _setShown(result.segmentation.GetNodeReference(MOVING_SEGMENTATION_ROLE), not registered)


def _setShown(segmentation: slicer.vtkMRMLSegmentationNode | None, shown: bool) -> None:
    display = segmentation.GetDisplayNode() if segmentation is not None else None
    if display is not None:
        display.SetVisibility(shown)


def showCheckerboard(result: ResultNodes) -> slicer.vtkMRMLScalarVolumeNode:
    """Squares of CT and registered MRI in turn, as displayed; the node is not saved. Returns it."""
    ct = result.segmentation.GetNodeReference(FIXED_ROLE)
    if ct is None or result.registeredMR is None:
        raise InputError(_("An image of this result is no longer in the scene."))
    removeCheckerboard()
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", _("CT / MRI checkerboard"))
    node.SetAttribute(KIND_ATTRIBUTE, CHECKERBOARD)
    node.SetSaveWithScene(False)
    node.SetAndObserveImageData(geometry.plainImage(checkerboard(ct, result.registeredMR)))
    node.SetIJKToRASMatrix(geometry.arrayToMatrix(geometry.ijkToNode(ct)))
    node.SetAndObserveTransformNodeID(ct.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevel(255, 127.5)
    node.GetDisplayNode().SetSaveWithScene(False)
    _showInSlices(node, None, 0.0)
    showSegmentation(result, True)
    return node


def removeCheckerboard() -> None:
    for node in _nodes("vtkMRMLScalarVolumeNode"):
        if node.GetAttribute(KIND_ATTRIBUTE) == CHECKERBOARD:
            slicer.mrmlScene.RemoveNode(node)


def checkerboard(ct: slicer.vtkMRMLScalarVolumeNode, mr: slicer.vtkMRMLScalarVolumeNode) -> np.ndarray:
    """(k, j, i) uint8 grey values on the CT's grid, in cubes of about 30 mm; mr must be on the same grid."""
    first, second = _greyValues(ct), _greyValues(mr)
    spacing = np.array(ct.GetSpacing())
    squares = [
        np.floor(np.arange(count) * step / _SQUARE_MM + 1e-6).astype(int)
        for count, step in zip(first.shape[::-1], spacing, strict=True)
    ]
    i, j, k = squares
    odd = (k[:, None, None] + j[None, :, None] + i[None, None, :]) % 2 == 1
    first[odd] = second[odd]
    return first


def _greyValues(node: slicer.vtkMRMLScalarVolumeNode) -> np.ndarray:
    """(k, j, i) uint8 as the display node's window makes them, or between the 1st and 99th percentile."""
    voxels = slicer.util.arrayFromVolume(node)
    display = node.GetDisplayNode()
    if display is not None and display.GetWindow() > 0:
        low, high = display.GetLevel() - display.GetWindow() / 2, display.GetLevel() + display.GetWindow() / 2
    else:
        low, high = np.percentile(voxels[::2, ::4, ::4], (1, 99))
    scaled = (voxels.astype(np.float32) - low) * (255.0 / max(high - low, 1e-6))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def setOutline(segmentationNode: slicer.vtkMRMLSegmentationNode, outlineOnly: bool) -> None:
    """Segments in the slice views as outlines, or filled as well."""
    display = segmentationNode.GetDisplayNode()
    if display is not None:
        display.SetVisibility2DOutline(True)
        display.SetVisibility2DFill(not outlineOnly)


def isOutline(segmentationNode: slicer.vtkMRMLSegmentationNode) -> bool:
    """Whether its segments are shown as outlines only."""
    display = segmentationNode.GetDisplayNode()
    return display is not None and not display.GetVisibility2DFill()


def neighbour(segmentIds: list[str], current: str | None, step: int) -> str | None:
    """The tumour that follows (step 1) or goes before (-1), round and round; the first one from nowhere."""
    if not segmentIds:
        return None
    if current not in segmentIds:
        return segmentIds[0 if step > 0 else -1]
    return segmentIds[(segmentIds.index(current) + step) % len(segmentIds)]
