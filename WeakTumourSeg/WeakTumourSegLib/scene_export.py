"""MRML nodes -> files for the worker, in the world as it stands at the run.

A linear parent transform goes into the geometry of the exported copy (so a transform on the MRI *is* the initial
alignment); a non-linear one is refused. Segments become one label map on the MRI's grid: 1 liver, 2 and above one
tumour each. Everything a user can do wrong is an `InputError` with one sentence. The scene is read, never changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import slicer
from slicer.i18n import tr as _

from weaktumour.errors import InputError

from . import geometry, roles

LIVER_VALUE, FIRST_TUMOUR_VALUE, LARGEST_VALUE = 1, 2, 255
# Of a segmentation's volume, inside the volume that it is said to belong to.
_LEAST_INSIDE = 0.5
# An MRI may hold negative values, but not air at -1000 HU.
_AIR_BELOW = -800.0


@dataclass(frozen=True)
class RunInputs:
    """The nodes of one run; mrSegmentation and ctLiver may be None."""

    mr: slicer.vtkMRMLScalarVolumeNode
    ct: slicer.vtkMRMLScalarVolumeNode
    mrSegmentation: slicer.vtkMRMLSegmentationNode | None = None
    ctLiver: slicer.vtkMRMLSegmentationNode | None = None


@dataclass(frozen=True)
class SegmentLabel:
    """One value of an exported label map and the segment that it came from. colour: RGB, 0 to 1.

    segmentId: empty where it came from a file.
    """

    value: int
    name: str
    role: str
    colour: tuple[float, float, float]
    terminology: roles.Terminology
    segmentId: str = ""

    def toJson(self) -> dict[str, object]:
        return {
            "value": self.value,
            "name": self.name,
            "role": self.role,
            "colour": [round(255 * channel) for channel in self.colour],
            "terminology": self.terminology.toJson(),
        }


@dataclass(frozen=True)
class Exported:
    """Paths of the written files, and what the label map's values mean (empty where none was exported)."""

    mr: Path
    ct: Path
    mrLabels: Path | None = None
    ctLiver: Path | None = None
    labels: tuple[SegmentLabel, ...] = ()


# -- checks ---------------------------------------------------------------------------------------------------------
def checkInputs(inputs: RunInputs, networkFindsLivers: bool = True) -> None:
    """Raise InputError with the first reason why these nodes cannot be run. Quick: reads few voxels.

    networkFindsLivers: whether a segmentation model may stand in where nobody drew the liver.
    """
    checkVolume(inputs.mr, _("MRI"))
    checkVolume(inputs.ct, _("CT"))
    if inputs.mr is inputs.ct:
        raise InputError(_("MRI and CT are the same volume; choose two different ones."))
    checkModalities(inputs.mr, inputs.ct)
    if inputs.mrSegmentation is not None:
        checkSegmentation(inputs.mrSegmentation, inputs.mr, inputs.ct)
        _checkRoles(inputs.mrSegmentation, networkFindsLivers)
    elif not networkFindsLivers:
        raise InputError(_("Choose an MRI segmentation, or a segmentation model that finds the liver."))
    if inputs.ctLiver is not None:
        checkSegmentation(inputs.ctLiver, inputs.ct, inputs.mr)
        _liverSegments(inputs.ctLiver)


def checkVolume(node: slicer.vtkMRMLNode | None, what: str) -> None:
    """Raise InputError unless the node is one 3-D volume of grey values with a place in the world."""
    if node is None:
        raise InputError(_("Choose the {what}.").format(what=what))
    name = node.GetName()
    if node.IsA("vtkMRMLSequenceNode"):
        raise InputError(_('{what}: "{name}" is a sequence; choose one of its volumes.').format(what=what, name=name))
    if not node.IsA("vtkMRMLVolumeNode"):
        raise InputError(_('{what}: "{name}" is not a volume; choose a volume.').format(what=what, name=name))
    image = node.GetImageData()
    if image is None or image.GetPointData().GetScalars() is None or min(image.GetDimensions()) < 1:
        raise InputError(_('{what}: "{name}" holds no voxels; choose another volume.').format(what=what, name=name))
    if not node.IsA("vtkMRMLScalarVolumeNode") or image.GetNumberOfScalarComponents() != 1:
        raise InputError(
            _('{what}: "{name}" has {count} values a voxel (a 4-D or colour volume); choose one 3-D volume.').format(
                what=what, name=name, count=image.GetNumberOfScalarComponents()
            )
        )
    if node.IsA("vtkMRMLLabelMapVolumeNode"):
        raise InputError(_('{what}: "{name}" is a label map; choose the image.').format(what=what, name=name))
    if min(image.GetDimensions()) < 2:
        raise InputError(
            _('{what}: "{name}" is a single slice; choose a volume of several slices.').format(what=what, name=name)
        )
    try:
        geometry.worldGrid(node)
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def checkModalities(mr: slicer.vtkMRMLScalarVolumeNode, ct: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Raise InputError where the CT's values cannot be Hounsfield units, or the MRI's are."""
    ctProblem, mrHoldsAir = _hounsfieldProblem(ct), looksLikeCT(mr)
    if ctProblem and mrHoldsAir:
        raise InputError(_("MRI and CT seem to be exchanged: the values of the MRI are those of a CT; exchange them."))
    if ctProblem:
        raise InputError(ctProblem)
    if mrHoldsAir:
        raise InputError(
            _('MRI: the values of "{name}" are Hounsfield units, as of a CT; choose the MRI.').format(name=mr.GetName())
        )


def looksLikeCT(node: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether the values may be Hounsfield units and reach down to air."""
    return _hounsfieldProblem(node) is None and bool(np.percentile(_sample(node), 0.5) < _AIR_BELOW)


def _sample(node: slicer.vtkMRMLScalarVolumeNode, perAxis: int = 64) -> np.ndarray:
    """(k, j, i) every n-th voxel, about perAxis along each axis; not a copy."""
    voxels = slicer.util.arrayFromVolume(node)
    return voxels[tuple(slice(None, None, max(1, count // perAxis)) for count in voxels.shape)]


def _hounsfieldProblem(node: slicer.vtkMRMLScalarVolumeNode) -> str | None:
    """The engine's own sentence about values that cannot be Hounsfield units."""
    from weaktumour.volumes import Grid, Volume, check_hounsfield

    sample = _sample(node)
    try:
        # Only the values count here.
        check_hounsfield(Volume(sample, Grid(sample.shape[::-1], (1.0,) * 3, (0.0,) * 3)))
    except InputError as error:
        return str(error)
    return None


def checkSegmentation(
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    volumeNode: slicer.vtkMRMLScalarVolumeNode,
    otherVolumeNode: slicer.vtkMRMLScalarVolumeNode,
) -> None:
    """Raise InputError unless the segmentation holds segments of `volumeNode`, and not of the other one."""
    name = segmentationNode.GetName()
    if segmentationNode.GetSegmentation().GetNumberOfSegments() == 0:
        raise InputError(_('Segmentation "{name}" is empty; draw in it, or choose another or none.').format(name=name))
    geometry.nodeToWorld(segmentationNode)
    reference = segmentationNode.GetNodeReference(segmentationNode.GetReferenceImageGeometryReferenceRole())
    if reference is otherVolumeNode:
        raise InputError(
            _('Segmentation "{name}" was drawn on "{other}"; choose one of "{volume}", or none.').format(
                name=name, other=otherVolumeNode.GetName(), volume=volumeNode.GetName()
            )
        )


def _checkRoles(segmentationNode: slicer.vtkMRMLSegmentationNode, networkFindsLivers: bool) -> None:
    found = {roles.roleOf(segment) for _id, segment in roles.segmentsOf(segmentationNode)}
    if found == {roles.NEITHER}:
        raise InputError(
            _(
                'No segment of "{name}" is recognised as liver or tumour; say in the table what they are, '
                "or choose no segmentation, so that the network looks for both."
            ).format(name=segmentationNode.GetName())
        )
    if roles.LIVER not in found and not networkFindsLivers:
        raise InputError(
            _(
                'No segment of "{name}" is the liver and no segmentation model is chosen to find it; '
                "say in the table which one is, or choose a model."
            ).format(name=segmentationNode.GetName())
        )


def _liverSegments(segmentationNode: slicer.vtkMRMLSegmentationNode) -> list[str]:
    """Ids of what makes up the whole liver on the CT: liver and tumours, or the only segment there is."""
    segments = roles.segmentsOf(segmentationNode)
    found = [segmentId for segmentId, segment in segments if roles.roleOf(segment) != roles.NEITHER]
    if found:
        return found
    if len(segments) == 1:
        return [segments[0][0]]
    raise InputError(
        _('CT liver: no segment of "{name}" is recognised as the liver; name it "Liver".').format(
            name=segmentationNode.GetName()
        )
    )


# -- export ---------------------------------------------------------------------------------------------------------
def exportInputs(inputs: RunInputs, folder: Path, networkFindsLivers: bool = True) -> Exported:
    """Check the nodes and write them into a folder. Raises InputError, or OSError where they cannot be written."""
    checkInputs(inputs, networkFindsLivers)
    mr, ct = folder / "mr.nrrd", folder / "ct.nrrd"
    exportVolume(inputs.mr, mr)
    exportVolume(inputs.ct, ct)
    mrLabels, ctLiver, labels = None, None, ()
    if inputs.mrSegmentation is not None:
        # In a folder of its own: labels.json beside a label map names its values.
        mrLabels = folder / "mr_labels" / "mr_labels.nrrd"
        mrLabels.parent.mkdir()
        labels = exportLabels(inputs.mrSegmentation, inputs.mr, mrLabels)
    if inputs.ctLiver is not None:
        ctLiver = folder / "ct_liver.nrrd"
        mask = segmentsOnGrid(inputs.ctLiver, _liverSegments(inputs.ctLiver), inputs.ct).astype(np.uint8)
        writeArray(mask, inputs.ct, ctLiver)
    return Exported(mr, ct, mrLabels, ctLiver, labels)


def exportVolume(node: slicer.vtkMRMLScalarVolumeNode, path: Path) -> None:
    """Write a volume with its geometry in the world."""
    writeArray(slicer.util.arrayFromVolume(node), node, path)


def writeArray(voxels: np.ndarray, like: slicer.vtkMRMLScalarVolumeNode, path: Path) -> None:
    """Write voxels (k, j, i) on the lattice that a volume node has in the world; .nii.gz is compressed.

    Raises OSError where the file cannot be written.
    """
    import SimpleITK as sitk

    image = geometry.worldGrid(like).apply_to(sitk.GetImageFromArray(_supported(voxels)))
    try:
        sitk.WriteImage(image, str(path), useCompression=path.name.endswith(".gz"))
    except RuntimeError as error:  # SimpleITK does not say why
        raise OSError(
            _("{file} could not be written; is the disk of {folder} full?").format(file=path.name, folder=path.parent)
        ) from error


def _supported(voxels: np.ndarray) -> np.ndarray:
    """In a type that every image format knows; VTK has longs that SimpleITK does not."""
    if voxels.dtype.kind in "iu" and voxels.dtype.itemsize == 8:
        return voxels.astype(np.float64)
    return voxels


def exportLabels(
    segmentationNode: slicer.vtkMRMLSegmentationNode, volumeNode: slicer.vtkMRMLScalarVolumeNode, path: Path
) -> tuple[SegmentLabel, ...]:
    """Write the label map of a segmentation on a volume's grid, and labels.json beside it."""
    voxels, labels = labelMap(segmentationNode, volumeNode)
    writeArray(voxels, volumeNode, path)
    content = {"schema": 1, "labels": [label.toJson() for label in labels]}
    (path.parent / "labels.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return labels


def labelMap(
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    volumeNode: slicer.vtkMRMLScalarVolumeNode,
    tumourValues: Mapping[str, int] | None = None,
) -> tuple[np.ndarray, tuple[SegmentLabel, ...]]:
    """((k, j, i) uint8 on the volume's grid, what its values mean): 1 liver, 2 and above tumours, which win.

    tumourValues: by segment id, the values that tumours already have; all others get the following ones in order.
    Segments of neither role, and those without a voxel, are left out; a tumour keeps its number all the same.
    Raises InputError: nothing is drawn, or it does not lie in the volume.
    """
    voxels = np.zeros(geometry.sizeOf(volumeNode)[::-1], np.uint8)
    given = tumourValues or {}
    labels, nextTumour = [], max([FIRST_TUMOUR_VALUE - 1, *given.values()]) + 1
    livers = _segmentsOfRole(segmentationNode, roles.LIVER)
    for segmentId, segment in livers:  # several are one liver (left and right)
        mask = segmentsOnGrid(segmentationNode, [segmentId], volumeNode)
        voxels[mask] = LIVER_VALUE
        if mask.any() and not labels:
            labels.append(_label(segmentId, segment, LIVER_VALUE, roles.LIVER))
    for segmentId, segment in _segmentsOfRole(segmentationNode, roles.TUMOUR):
        value = given.get(segmentId, nextTumour)
        nextTumour += segmentId not in given
        if value > LARGEST_VALUE:
            raise InputError(_("More than 254 tumours cannot be carried over; join segments."))
        mask = segmentsOnGrid(segmentationNode, [segmentId], volumeNode)
        voxels[mask] = value
        if mask.any():
            labels.append(_label(segmentId, segment, value, roles.TUMOUR))
    if not labels:
        raise InputError(
            _('The liver and tumour segments of "{name}" are empty; draw them, or choose another segmentation.').format(
                name=segmentationNode.GetName()
            )
        )
    return voxels, tuple(labels)


def _segmentsOfRole(segmentationNode: slicer.vtkMRMLSegmentationNode, role: str) -> list[tuple[str, slicer.vtkSegment]]:
    return [entry for entry in roles.segmentsOf(segmentationNode) if roles.roleOf(entry[1]) == role]


def _label(segmentId: str, segment: slicer.vtkSegment, value: int, role: str) -> SegmentLabel:
    terminology = roles.terminologyFor(segment, role)
    return SegmentLabel(value, segment.GetName(), role, tuple(segment.GetColor()), terminology, segmentId)


def segmentsOnGrid(
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    segmentIds: Sequence[str],
    volumeNode: slicer.vtkMRMLScalarVolumeNode,
) -> np.ndarray:
    """(k, j, i) bool on the volume's grid: the union of some segments, by the nearest voxel where grids differ.

    Raises InputError where most of a segment lies outside the volume.
    """
    toWorld = geometry.ijkToWorld(volumeNode)
    mask = np.zeros(geometry.sizeOf(volumeNode)[::-1], bool)
    for segmentId in segmentIds:
        image = segmentInWorld(segmentationNode, segmentId)
        drawn = np.count_nonzero(geometry.imageArray(image)) * _voxelVolume(geometry.imageToWorld(image))
        inside = _addImage(mask, image, toWorld) * _voxelVolume(toWorld)
        if inside < _LEAST_INSIDE * drawn and drawn > _voxelVolume(toWorld):
            raise InputError(
                _(
                    'Segment "{segment}" of "{name}" does not lie in "{volume}" (only {percent} % of it); '
                    "choose the segmentation of that volume, and check its transform."
                ).format(
                    segment=segmentationNode.GetSegmentation().GetSegment(segmentId).GetName(),
                    name=segmentationNode.GetName(),
                    volume=volumeNode.GetName(),
                    percent=round(100 * inside / drawn),
                )
            )
    return mask


def _voxelVolume(toWorld: np.ndarray) -> float:
    return float(abs(np.linalg.det(toWorld[:3, :3])))


def segmentInWorld(segmentationNode: slicer.vtkMRMLSegmentationNode, segmentId: str) -> slicer.vtkOrientedImageData:
    """A copy of the segment's binary label map (0 and other than 0) with its geometry in the world.

    Raises InputError where the segment has none and none can be made.
    """
    image = slicer.vtkOrientedImageData()
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    if not logic.GetSegmentBinaryLabelmapRepresentation(segmentationNode, segmentId, image, False):
        raise InputError(
            _('A segment of "{name}" cannot be turned into a label map; open it in the Segment Editor first.').format(
                name=segmentationNode.GetName()
            )
        )
    # Segments that do not overlap share one label map, which comes as a whole.
    voxels = geometry.imageArray(image)
    voxels[voxels != segmentationNode.GetSegmentation().GetSegment(segmentId).GetLabelValue()] = 0
    toWorld = geometry.nodeToWorld(segmentationNode) @ geometry.imageToWorld(image)
    image.SetGeometryFromImageToWorldMatrix(geometry.arrayToMatrix(toWorld))
    return image


def _addImage(mask: np.ndarray, image: slicer.vtkOrientedImageData, gridToWorld: np.ndarray) -> int:
    """Set mask (k, j, i) where the nearest voxel of the image, both in the world, is not 0; in place.

    Returns how many voxels of the mask the image covers.
    """
    voxels = geometry.imageArray(image)
    occupied = np.argwhere(voxels)
    if not len(occupied):
        return 0
    low, high = occupied.min(0), occupied.max(0)  # k, j, i
    start = np.array(image.GetExtent()[::2])  # i, j, k
    imageToGrid = np.linalg.inv(gridToWorld) @ geometry.imageToWorld(image)
    box = np.array([[i, j, k] for k in (low[0], high[0]) for j in (low[1], high[1]) for i in (low[2], high[2])])
    corners = geometry.transformPoints(imageToGrid, box + start)
    # Half an image voxel beyond the outermost centres, in voxels of the grid.
    reach = 0.5 * np.abs(imageToGrid[:3, :3]).sum(axis=1) + 1e-6
    size = np.array(mask.shape[::-1])
    first = np.maximum(0, np.floor(corners.min(0) - reach)).astype(int)
    last = np.minimum(size - 1, np.ceil(corners.max(0) + reach)).astype(int)
    if np.any(last < first):
        return 0
    gridToImage = np.linalg.inv(imageToGrid)
    covered = 0
    i, j = np.meshgrid(np.arange(first[0], last[0] + 1), np.arange(first[1], last[1] + 1))
    for k in range(first[2], last[2] + 1):  # a slice at a time: memory stays small for a large CT
        points = np.stack([i, j, np.full_like(i, k)], axis=-1)
        index = np.round(geometry.transformPoints(gridToImage, points) - start).astype(int)[..., ::-1]
        inside = np.all((index >= 0) & (index < voxels.shape), axis=-1)
        values = np.zeros(inside.shape, bool)
        values[inside] = voxels[tuple(index[inside].T)] != 0
        mask[k, first[1] : last[1] + 1, first[0] : last[0] + 1] |= values
        covered += int(values.sum())
    return covered
