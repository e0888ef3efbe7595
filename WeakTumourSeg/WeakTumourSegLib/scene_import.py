"""A result folder of the worker -> new nodes beside the CT.

The segmentation and the registered MRI use the CT's own IJKToRAS under the CT's parent transform, so that they stay
with the CT; the label map is taken over voxel by voxel and never resampled. The transform maps world points of the CT
to world points of the MRI as they stood at the run. Nothing that was in the scene is changed.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util.numpy_support import numpy_to_vtk

from weaktumour.errors import InputError

from . import geometry, roles, tumour_table
from .scene_export import FIRST_TUMOUR_VALUE, RunInputs, SegmentLabel

if TYPE_CHECKING:
    import SimpleITK as sitk

# Attributes and references that tie the nodes of a run together; they are saved with the scene.
RUN_ATTRIBUTE = "WeakTumourSeg.Run"
KIND_ATTRIBUTE = "WeakTumourSeg.Kind"
MOVING_TO_WORLD_ATTRIBUTE = "WeakTumourSeg.MovingToWorld"
NUMBER_ATTRIBUTE = "WeakTumourSeg.Number"  # of the run, as it stands in the names of its nodes
SOURCES_ATTRIBUTE = "WeakTumourSeg.Sources"  # {value in the label maps: id of the segment on the MRI}
COMPUTED_ATTRIBUTE = "WeakTumourSeg.ComputedTumours"  # the voxels that the run called tumour, see `computedTumours`
LABEL_TAG, RESULT_ATTRIBUTE = tumour_table.LABEL_TAG, tumour_table.RESULT_ATTRIBUTE
SEGMENTATION, TRANSFORM, REGISTERED_MR, SHOWN = "segmentation", "transform", "registeredMR", "shown"
FOUND_ON_MR, REPORT, PROBABILITY, REGIONS = "foundOnMR", "report", "probability", "regions"
FIXED_ROLE, MOVING_ROLE, MOVING_SEGMENTATION_ROLE = "spatialFixed", "spatialMoving", "weakTumourSegMRSegmentation"
_SAME_PLACE_MM = 0.01


@dataclass(frozen=True)
class ResultNodes:
    """What one run left in the scene. What a user deleted is None; so are probability and regions (see
    `assessment`, `position_regions`) where no tumour was assessed.
    """

    runId: str
    segmentation: slicer.vtkMRMLSegmentationNode
    transform: slicer.vtkMRMLTransformNode | None
    registeredMR: slicer.vtkMRMLScalarVolumeNode | None
    probability: slicer.vtkMRMLScalarVolumeNode | None = None
    regions: slicer.vtkMRMLSegmentationNode | None = None


# -- results to nodes -----------------------------------------------------------------------------------------------
def importResult(
    folder: Path, runId: str, inputs: RunInputs, movingToWorld: np.ndarray, labels: Sequence[SegmentLabel] = ()
) -> ResultNodes:
    """Make the nodes of a run. On any error none is left.

    movingToWorld: nodeToWorld of the MRI at the time of the run. labels: what was exported; colours and terminology
    are taken from there where a value is in it. Raises InputError where the folder does not fit the CT.
    """
    result = readResult(folder)
    suffix = _number(runId)
    with allOrNothing() as add:
        segmentation = add(
            "vtkMRMLSegmentationNode",
            _("{ct} liver and tumours {run}").format(ct=inputs.ct.GetName(), run=suffix),
            ofRun(runId, SEGMENTATION),
        )
        voxels = _fillSegmentation(segmentation, folder, "ct_labels.nii.gz", inputs.ct, labels)
        sources = {label.value: label.segmentId for label in labels}
        segmentation.SetAttribute(NUMBER_ATTRIBUTE, suffix)
        keepContent(segmentation, result)
        _keepComputedTumours(segmentation, voxels)
        tumour_table.markComputed(segmentation)
        transform = add(
            "vtkMRMLTransformNode",
            _("{ct} to {mr} {run}").format(ct=inputs.ct.GetName(), mr=inputs.mr.GetName(), run=suffix),
            ofRun(runId, TRANSFORM),
        )
        readTransform(folder / "transform.h5", transform)
        transform.SetAttribute(MOVING_TO_WORLD_ATTRIBUTE, json.dumps(np.asarray(movingToWorld).tolist()))
        registered = add(
            "vtkMRMLScalarVolumeNode",
            _("{mr} registered {run}").format(mr=inputs.mr.GetName(), run=suffix),
            ofRun(runId, REGISTERED_MR),
        )
        _fillRegisteredMR(registered, folder / "mr_on_ct.nii.gz", inputs)
        mrSegmentation = inputs.mrSegmentation
        if (folder / "mr_labels.nii.gz").is_file():
            mrSegmentation = add(
                "vtkMRMLSegmentationNode",
                _("{mr} liver and tumours found {run}").format(mr=inputs.mr.GetName(), run=suffix),
                ofRun(runId, FOUND_ON_MR),
            )
            _fillSegmentation(mrSegmentation, folder, "mr_labels.nii.gz", inputs.mr, labels)
            placeBeside(mrSegmentation, inputs.mr)
            found = roles.segmentsOf(mrSegmentation)
            sources = {int(roles.segmentTag(segment, LABEL_TAG)): segmentId for segmentId, segment in found}
        # Not by order: the user may delete, add and move segments of the MRI later.
        segmentation.SetAttribute(SOURCES_ATTRIBUTE, json.dumps(sources))
        keepReport(folder / "report.html", runId, suffix, inputs.ct, add)
        for node in (segmentation, transform, registered):
            _tieToInputs(node, inputs, mrSegmentation)
            placeBeside(node, inputs.ct)
    return ResultNodes(runId, segmentation, transform, registered)


def _number(runId: str) -> str:
    """The run's number in the names of its nodes: one more than there are runs in the scene."""
    runs = {node.GetAttribute(RUN_ATTRIBUTE) for node in nodesOfKind(SEGMENTATION)} - {runId}
    return f"({len(runs) + 1})"


def readResult(folder: Path) -> dict[str, Any]:
    """result.json of a result folder."""
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def keepContent(segmentation: slicer.vtkMRMLSegmentationNode, result: Mapping[str, Any]) -> None:
    """Of result.json, what the table and the messages show; the rest stays in the file."""
    kept = {
        "tumours": result["tumours"],
        "run": result["run"],
        "warnings": result["warnings"],
        "software": result["software"],
        "settings": {name: result["settings"].get(name) for name in ("preset", "device", "seed", "stages")},
        "timings_s": {"total": result["timings_s"].get("total")},
    }
    segmentation.SetAttribute(RESULT_ATTRIBUTE, json.dumps(kept))


def _keepComputedTumours(segmentation: slicer.vtkMRMLSegmentationNode, voxels: np.ndarray) -> None:
    """voxels: (k, j, i) label map of the result."""
    tumours = voxels >= FIRST_TUMOUR_VALUE
    occupied = np.argwhere(tumours)
    if not len(occupied):
        return
    low, high = occupied.min(0), occupied.max(0) + 1
    bits = zlib.compress(np.packbits(tumours[tuple(map(slice, low, high))]).tobytes())
    kept = {"size": tumours.shape, "low": low.tolist(), "high": high.tolist(), "bits": base64.b64encode(bits).decode()}
    segmentation.SetAttribute(COMPUTED_ATTRIBUTE, json.dumps(kept))


def computedTumours(segmentation: slicer.vtkMRMLSegmentationNode, size: Sequence[int]) -> np.ndarray:
    """(k, j, i) bool on the CT's grid of that size: where the run put tumours, whatever became of their segments since.

    False everywhere where that is not known: results of former versions, another size.
    """
    voxels = np.zeros(tuple(size), bool)
    try:
        kept = json.loads(segmentation.GetAttribute(COMPUTED_ATTRIBUTE) or "{}")
        if kept.get("size") != list(voxels.shape):
            return voxels
        box = voxels[tuple(map(slice, kept["low"], kept["high"]))]
        bits = np.frombuffer(zlib.decompress(base64.b64decode(kept["bits"])), np.uint8)
        box[...] = np.unpackbits(bits, count=box.size).reshape(box.shape)
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error, binascii.Error):
        voxels[...] = False
    return voxels


@contextmanager
def allOrNothing() -> Iterator[Any]:
    """Yields add(className, name, attributes, fill) -> node; when the block raises, all nodes that it added are taken
    out.

    Attributes, and what fill(node) does, are there before the scene says that the node is: selectors go by them.
    """
    scene = slicer.mrmlScene
    before = {scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())}

    def add(
        className: str,
        name: str,
        attributes: Mapping[str, str] | None = None,
        fill: Callable[[slicer.vtkMRMLNode], None] = lambda node: None,
    ) -> slicer.vtkMRMLNode:
        node = scene.CreateNodeByClass(className)
        node.UnRegister(None)
        node.SetName(scene.GenerateUniqueName(name))
        for key, value in (attributes or {}).items():
            node.SetAttribute(key, value)
        fill(node)
        return scene.AddNode(node)

    try:
        yield add
    except BaseException:
        added = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
        for node in added:  # display and storage nodes too
            if node.GetID() not in before and scene.IsNodePresent(node):
                scene.RemoveNode(node)
        raise


def ofRun(runId: str, kind: str) -> dict[str, str]:
    return {RUN_ATTRIBUTE: runId, KIND_ATTRIBUTE: kind}


def _tieToInputs(
    node: slicer.vtkMRMLNode, inputs: RunInputs, mrSegmentation: slicer.vtkMRMLSegmentationNode | None
) -> None:
    node.SetNodeReferenceID(FIXED_ROLE, inputs.ct.GetID())
    node.SetNodeReferenceID(MOVING_ROLE, inputs.mr.GetID())
    if mrSegmentation is not None:
        node.SetNodeReferenceID(MOVING_SEGMENTATION_ROLE, mrSegmentation.GetID())


def placeBeside(node: slicer.vtkMRMLNode, other: slicer.vtkMRMLNode) -> None:
    """Put a node where another one is in the subject hierarchy (its study)."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    otherItem = hierarchy.GetItemByDataNode(other)  # 0: none, as where no application makes the items
    parent = hierarchy.GetItemParent(otherItem) if otherItem else hierarchy.GetSceneItemID()
    item = hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, parent)
    else:
        hierarchy.CreateItem(parent, node)


# -- report ---------------------------------------------------------------------------------------------------------
def keepReport(path: Path, runId: str, suffix: str, beside: slicer.vtkMRMLNode, add: Any) -> None:
    """The run's page as a text in the scene, so that it is there wherever the scene is loaded; a new page replaces the
    run's former one.
    """
    if not path.is_file():
        return
    nodes = nodesOfKind(REPORT, runId)
    # Not hidden: Slicer's save dialog leaves out what it does not list, and the user may want to delete it.
    node = nodes[0] if nodes else None
    if node is None:
        node = add("vtkMRMLTextNode", _("WeakTumourSeg report {run}").format(run=suffix), ofRun(runId, REPORT))
        placeBeside(node, beside)
    node.SetText(path.read_text(encoding="utf-8"))


def reportOf(segmentationNode: slicer.vtkMRMLSegmentationNode | None) -> str:
    """The report's page (HTML) of the run that made a segmentation; empty where there is none."""
    if resultOf(segmentationNode) is None:
        return ""
    nodes = nodesOfKind(REPORT, segmentationNode.GetAttribute(RUN_ATTRIBUTE))
    return (nodes[0].GetText() or "") if nodes else ""


# -- segmentation ---------------------------------------------------------------------------------------------------
def _fillSegmentation(
    node: slicer.vtkMRMLSegmentationNode,
    folder: Path,
    file: str,
    volume: slicer.vtkMRMLScalarVolumeNode,
    labels: Sequence[SegmentLabel],
) -> np.ndarray:
    """The label map (k, j, i) that was taken over."""
    _lieOn(node, volume)
    described = {label.value: label for label in (*_labelsOf(folder / "labels.json"), *labels)}
    # The MRI may have been moved since: its labels go by its voxels.
    voxels = _readOn(folder / file, volume, samePlace=file != "mr_labels.nii.gz")
    _addSegments(node, voxels, volume, described)
    return voxels


def _lieOn(node: slicer.vtkMRMLSegmentationNode, volume: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Geometry, parent transform and display of a segmentation that belongs to a volume."""
    node.CreateDefaultDisplayNodes()
    # The parent first: the reference geometry is that of the volume as seen from there.
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)


def _addSegments(
    node: slicer.vtkMRMLSegmentationNode,
    voxels: np.ndarray,
    volume: slicer.vtkMRMLScalarVolumeNode,
    described: Mapping[int, SegmentLabel],
) -> None:
    """A segment for each value of a label map (k, j, i) on the volume's grid."""
    occupied = np.argwhere(voxels)
    if not len(occupied):
        return
    # One label map for all segments, of the size that they need: small, and quick to edit.
    low, high = occupied.min(0), occupied.max(0) + 1
    box = np.ascontiguousarray(voxels[low[0] : high[0], low[1] : high[1], low[2] : high[2]])
    image = geometry.orientedImage(box, geometry.ijkToNode(volume), tuple(low[::-1]))
    for value in (int(value) for value in np.unique(box) if value):
        label = described.get(value) or _unnamed(value)
        segment = slicer.vtkSegment()
        segment.SetName(label.name)
        segment.SetColor(*label.colour)
        segment.SetLabelValue(value)
        segment.SetTag(segment.GetTerminologyEntryTagName(), label.terminology.serialize())
        segment.SetTag(LABEL_TAG, str(value))
        segment.AddRepresentation(binaryLabelmap(), image)
        segmentId = f"{label.role}_{value}"
        node.GetSegmentation().AddSegment(segment, segmentId)
        if label.role == roles.LIVER:  # tumours are looked for inside it
            node.GetDisplayNode().SetSegmentOpacity2DFill(segmentId, 0.3)


def binaryLabelmap() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def _labelsOf(path: Path) -> list[SegmentLabel]:
    """labels.json of a result."""
    entries = json.loads(path.read_text(encoding="utf-8"))["labels"]
    return [
        SegmentLabel(
            int(entry["value"]),
            str(entry["name"]),
            str(entry["role"]),
            tuple(channel / 255 for channel in entry["colour"]),
            roles.TERMINOLOGY.get(str(entry["role"]), roles.TERMINOLOGY[roles.NEITHER]),
        )
        for entry in entries
    ]


def _unnamed(value: int) -> SegmentLabel:
    return SegmentLabel(
        value,
        _("Label {value}").format(value=value),
        roles.NEITHER,
        (0.5, 0.7, 0.5),
        roles.TERMINOLOGY[roles.NEITHER],
    )


# -- images ---------------------------------------------------------------------------------------------------------
def _readOn(path: Path, volume: slicer.vtkMRMLScalarVolumeNode, samePlace: bool = True) -> np.ndarray:
    """The voxels (k, j, i) of a file, which must be those of a volume; samePlace: and lie where that lies now."""
    import SimpleITK as sitk

    image = readImage(path)
    size = geometry.sizeOf(volume)
    last = [count - 1 for count in size]
    if tuple(image.GetSize()) != size or (samePlace and not _samePlace(image, volume, [0, 0, 0], last)):
        raise InputError(
            _('The volume "{name}" was changed or moved during the run; run again.').format(name=volume.GetName())
        )
    return sitk.GetArrayFromImage(image)


def readImage(path: Path) -> sitk.Image:
    """An image of a result. Raises InputError where it cannot be read."""
    import SimpleITK as sitk

    try:
        return sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise InputError(_("The result's {file} cannot be read; run again.").format(file=path.name)) from error


def _samePlace(image: sitk.Image, volume: slicer.vtkMRMLScalarVolumeNode, *corners: list[int]) -> bool:
    toWorld = geometry.RAS_TO_LPS @ geometry.ijkToWorld(volume)
    return all(
        np.allclose(
            image.TransformIndexToPhysicalPoint(corner),
            geometry.transformPoints(toWorld, np.array(corner)),
            atol=_SAME_PLACE_MM,
        )
        for corner in corners
    )


def _fillRegisteredMR(node: slicer.vtkMRMLScalarVolumeNode, path: Path, inputs: RunInputs) -> None:
    voxels = _readOn(path, inputs.ct)
    node.SetAndObserveImageData(geometry.plainImage(voxels))
    node.SetIJKToRASMatrix(geometry.arrayToMatrix(geometry.ijkToNode(inputs.ct)))
    node.SetAndObserveTransformNodeID(inputs.ct.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    _displayAs(node, inputs.mr)


def _displayAs(node: slicer.vtkMRMLScalarVolumeNode, other: slicer.vtkMRMLScalarVolumeNode) -> None:
    """With the window of another volume."""
    source, target = other.GetDisplayNode(), node.GetDisplayNode()
    if source is not None and target is not None:
        target.SetAutoWindowLevel(source.GetAutoWindowLevel())
        target.SetWindowLevel(source.GetWindow(), source.GetLevel())


def readVolume(path: Path, node: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLScalarVolumeNode:
    """Fill a new volume node from a file, and return it."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    toLPS = np.eye(4)
    toLPS[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    toLPS[:3, 3] = image.GetOrigin()
    node.SetAndObserveImageData(geometry.plainImage(sitk.GetArrayFromImage(image)))
    node.SetIJKToRASMatrix(geometry.arrayToMatrix(geometry.RAS_TO_LPS @ toLPS))
    node.CreateDefaultDisplayNodes()
    return node


def readSegmentation(
    path: Path, labelsJson: Path, volume: slicer.vtkMRMLScalarVolumeNode, node: slicer.vtkMRMLSegmentationNode
) -> slicer.vtkMRMLSegmentationNode:
    """Fill a new segmentation node from a label map on the grid of a volume, and return it."""
    import SimpleITK as sitk

    _lieOn(node, volume)
    described = {label.value: label for label in _labelsOf(labelsJson)}
    _addSegments(node, sitk.GetArrayFromImage(sitk.ReadImage(str(path))), volume, described)
    return node


# -- transform ------------------------------------------------------------------------------------------------------
def readTransform(path: Path, node: slicer.vtkMRMLTransformNode) -> None:
    """Put a displacement field file (fixed -> moving, LPS mm) on a node, as its transform from parent (RAS)."""
    import SimpleITK as sitk

    try:
        field = sitk.DisplacementFieldTransform(sitk.ReadTransform(str(path))).GetDisplacementField()
    except RuntimeError as error:
        raise InputError(_("The result's {file} cannot be read; run again.").format(file=path.name)) from error
    node.SetAndObserveTransformFromParent(gridTransform(field))


def gridTransform(field: sitk.Image) -> slicer.vtkOrientedGridTransform:
    """An LPS displacement field image as a grid transform of RAS points."""
    import SimpleITK as sitk

    displacement = np.array(sitk.GetArrayViewFromImage(field), np.float64)  # (k, j, i, 3) LPS mm
    displacement[..., :2] *= -1.0  # to RAS
    image = vtk.vtkImageData()
    image.SetDimensions(field.GetSize())
    image.SetSpacing(field.GetSpacing())
    image.SetOrigin(geometry.transformPoints(geometry.RAS_TO_LPS, np.array(field.GetOrigin())))
    scalars = numpy_to_vtk(displacement.reshape(-1, 3), deep=True)
    scalars.SetName("displacement")
    image.GetPointData().SetScalars(scalars)
    directions = np.eye(4)
    directions[:3, :3] = geometry.RAS_TO_LPS[:3, :3] @ np.reshape(field.GetDirection(), (3, 3))
    transform = slicer.vtkOrientedGridTransform()
    transform.SetInterpolationModeToLinear()
    transform.SetDisplacementGridData(image)
    transform.SetGridDirectionMatrix(geometry.arrayToMatrix(directions))
    return transform


# -- what is in the scene -------------------------------------------------------------------------------------------
def nodesOfKind(kind: str, runId: str | None = None) -> list[slicer.vtkMRMLNode]:
    """What runs left in the scene, of one run or of all."""
    scene = slicer.mrmlScene
    nodes = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
    return [
        node
        for node in nodes
        if node.GetAttribute(KIND_ATTRIBUTE) == kind and runId in (None, node.GetAttribute(RUN_ATTRIBUTE))
    ]


def resultSegmentations() -> list[slicer.vtkMRMLSegmentationNode]:
    """The segmentations of all runs in the scene, oldest first."""
    return nodesOfKind(SEGMENTATION)


def resultOf(segmentationNode: slicer.vtkMRMLSegmentationNode | None) -> ResultNodes | None:
    """The nodes of the run that made a segmentation; None where no run did."""
    if segmentationNode is None or segmentationNode.GetAttribute(KIND_ATTRIBUTE) != SEGMENTATION:
        return None
    runId = segmentationNode.GetAttribute(RUN_ATTRIBUTE)

    def first(kind: str) -> Any:
        return next(iter(nodesOfKind(kind, runId)), None)

    return ResultNodes(
        runId, segmentationNode, first(TRANSFORM), first(REGISTERED_MR), first(PROBABILITY), first(REGIONS)
    )


# -- show registered ------------------------------------------------------------------------------------------------
def showRegistered(result: ResultNodes) -> slicer.vtkMRMLScalarVolumeNode:
    """A copy of the MRI that the result transform carries onto the CT; the MRI itself stays where it is.

    The copy lies under a copy of what stood above the MRI at the run, and that under the result transform. Called
    again, it returns the copy that is there.
    """
    shown = [node for node in nodesOfKind(SHOWN, result.runId) if node.IsA("vtkMRMLScalarVolumeNode")]
    if shown:
        return shown[0]
    moving = result.segmentation.GetNodeReference(MOVING_ROLE)
    if moving is None or result.transform is None:
        raise InputError(_("The MRI or the transform of this result is no longer in the scene."))
    movingToWorld = np.array(json.loads(result.transform.GetAttribute(MOVING_TO_WORLD_ATTRIBUTE)))
    with allOrNothing() as add:
        tags = ofRun(result.runId, SHOWN)
        parent = add("vtkMRMLTransformNode", _("{mr} at the run").format(mr=moving.GetName()), tags)
        parent.SetMatrixTransformToParent(geometry.arrayToMatrix(movingToWorld))
        parent.SetAndObserveTransformNodeID(result.transform.GetID())
        clone = add("vtkMRMLScalarVolumeNode", _("{mr} shown registered").format(mr=moving.GetName()), tags)
        clone.SetAndObserveImageData(moving.GetImageData())  # shared: a volume's voxels are not edited here
        clone.SetIJKToRASMatrix(geometry.arrayToMatrix(geometry.ijkToNode(moving)))
        clone.SetAndObserveTransformNodeID(parent.GetID())
        clone.CreateDefaultDisplayNodes()
        _displayAs(clone, moving)
        for node in (parent, clone):
            placeBeside(node, result.segmentation)
    return clone
