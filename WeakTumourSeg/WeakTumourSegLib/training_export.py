"""Save for training: the corrected labels with their images as one case folder, without the patient's name."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import slicer
from slicer.i18n import tr as _

from weaktumour.errors import InputError

from . import geometry, roles
from .scene_export import FIRST_TUMOUR_VALUE, LARGEST_VALUE, LIVER_VALUE, labelMap, segmentsOnGrid
from .scene_import import (
    FIXED_ROLE,
    LABEL_TAG,
    MOVING_ROLE,
    MOVING_SEGMENTATION_ROLE,
    SOURCES_ATTRIBUTE,
    computedTumours,
)

if TYPE_CHECKING:
    from weaktumour.volumes import Volume

_AROUND = 20  # voxels about the places that tumours left, in which the nearest label is looked for


def saveForTraining(result: slicer.vtkMRMLSegmentationNode, cohort: Path) -> Path:
    """Write a new case folder into a cohort's folder and return it.

    The case's name is random; node names, which may hold the patient's, are not written.
    Raises InputError: an input of the run is no longer in the scene, or the MRI's labels no longer fit the result's.
    """
    from weaktumour.cases import Case, write_case
    from weaktumour.workspace import open_workspace

    mr, ct = result.GetNodeReference(MOVING_ROLE), result.GetNodeReference(FIXED_ROLE)
    mrSegmentation = result.GetNodeReference(MOVING_SEGMENTATION_ROLE)
    if mr is None or ct is None:
        raise InputError(_("The MRI or the CT of this result is no longer in the scene; load them again."))
    if mrSegmentation is None:
        raise InputError(
            _("The MRI's segmentation is no longer in the scene; a case for training needs it: run again.")
        )
    mrVoxels, mrLabels = labelMap(mrSegmentation, mr, _valuesOnMR(result))
    _checkSameTumours(result, {label.value for label in mrLabels})
    ctVoxels = labelsOnCT(result, ct, [label.value for label in mrLabels])
    caseId = f"case-{uuid.uuid4().hex[:10]}"
    names = {value: _plainName(value) for value in sorted({*np.unique(mrVoxels), *np.unique(ctVoxels)} - {0})}
    case = Case(
        mr=_volume(slicer.util.arrayFromVolume(mr), mr),
        ct=_volume(slicer.util.arrayFromVolume(ct), ct),
        mr_labels=_volume(mrVoxels, mr),
        label_names={int(value): name for value, name in names.items()},
        ct_labels=_volume(ctVoxels, ct),
        info={"id": caseId, "kind": "corrected", "source": "3D Slicer, reviewed by hand", "ct_labels": "corrected"},
    )
    with open_workspace(cohort / caseId) as folder:
        write_case(folder, case)
    return cohort / caseId


def labelsOnCT(
    result: slicer.vtkMRMLSegmentationNode, ct: slicer.vtkMRMLScalarVolumeNode, taken: Iterable[int] = ()
) -> np.ndarray:
    """(k, j, i) uint8 on the CT's grid: the result's segments with the values of the run.

    New tumours get values that neither the run nor `taken` has. Where a computed tumour was deleted, moved or made
    smaller, the liver's segment has a hole: that place is what lies nearest, liver or not.
    """
    voxels = np.zeros(geometry.sizeOf(ct)[::-1], np.uint8)
    for value, segmentId in sorted(_values(result, taken)):  # the liver first: tumours win
        voxels[segmentsOnGrid(result, [segmentId], ct)] = value
    left = computedTumours(result, voxels.shape) & (voxels == 0)
    others = [segmentId for segmentId, segment in roles.segmentsOf(result)
              if roles.roleInResult(segment) == roles.NEITHER]  # fmt: skip
    background = voxels == 0
    if left.any() and others:
        background &= ~segmentsOnGrid(result, others, ct)  # vessels, say: as much in the liver as beside it
    left &= background
    if left.any():
        voxels[_nearer(left, voxels == LIVER_VALUE, background & ~left, ct.GetSpacing())] = LIVER_VALUE
    return voxels


def _nearer(left: np.ndarray, one: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """(k, j, i) bool: of the voxels `left`, those nearer to one mask than to the other. spacing: x, y, z, mm."""
    import SimpleITK as sitk

    occupied = np.argwhere(left)
    low, high = np.maximum(occupied.min(0) - _AROUND, 0), occupied.max(0) + 1 + _AROUND
    box = tuple(map(slice, low, high))

    def distance(mask: np.ndarray) -> np.ndarray:
        if not mask.any():
            return np.full(mask.shape, np.inf)
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing([float(mm) for mm in spacing])
        return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(image, False, False, True))

    found = np.zeros_like(left)
    found[box] = left[box] & (distance(one[box]) < distance(other[box]))
    return found


def _valuesOnMR(result: slicer.vtkMRMLSegmentationNode) -> dict[str, int]:
    """Segment ids of the MRI's segmentation at the run, and the values of its tumours then."""
    sources = json.loads(result.GetAttribute(SOURCES_ATTRIBUTE) or "{}")
    return {segmentId: int(value) for value, segmentId in sources.items() if int(value) >= FIRST_TUMOUR_VALUE}


def _values(result: slicer.vtkMRMLSegmentationNode, taken: Iterable[int]) -> list[tuple[int, str]]:
    """(value, segment id) of the liver and all tumours."""
    segments = roles.segmentsOf(result)
    used = [int(roles.segmentTag(segment, LABEL_TAG) or 0) for _segmentId, segment in segments]
    following = max([FIRST_TUMOUR_VALUE - 1, *used, *_valuesOnMR(result).values(), *taken]) + 1
    found = []
    for segmentId, segment in segments:
        role, tag = roles.roleInResult(segment), roles.segmentTag(segment, LABEL_TAG)
        if role == roles.LIVER:
            found.append((LIVER_VALUE, segmentId))
        elif role == roles.TUMOUR:
            value = int(tag) if tag else following
            following += not tag
            found.append((value, segmentId))
    if following - 1 > LARGEST_VALUE:
        raise InputError(_("More than 254 tumours cannot be saved; join segments."))
    return found


def _checkSameTumours(result: slicer.vtkMRMLSegmentationNode, mrValues: set[int]) -> None:
    """One number must be one tumour in both label maps."""
    computed = {
        int(roles.segmentTag(segment, LABEL_TAG)): segment.GetName()
        for _segmentId, segment in roles.segmentsOf(result)
        if roles.segmentTag(segment, LABEL_TAG) and roles.roleInResult(segment) == roles.TUMOUR
    }
    unknown = [name for value, name in sorted(computed.items()) if value not in mrValues]
    if unknown:
        raise InputError(
            _(
                'The MRI segmentation has changed since the run ("{name}" is no longer a tumour in it); run again.'
            ).format(name=unknown[0])
        )


def _plainName(value: int) -> str:
    """Names that users give may identify the patient; the numbers are enough."""
    return "Liver" if value == LIVER_VALUE else f"Tumour {value - FIRST_TUMOUR_VALUE + 1}"


def _volume(voxels: np.ndarray, node: slicer.vtkMRMLScalarVolumeNode) -> Volume:
    from weaktumour.volumes import Volume

    return Volume(np.ascontiguousarray(voxels), geometry.worldGrid(node))
