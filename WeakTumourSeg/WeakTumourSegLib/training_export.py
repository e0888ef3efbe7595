"""Save for training: the corrected labels with their images as one case folder, without the patient's name."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
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
    smaller, and mostly liver or tumour is round that place, it is liver again: the liver's segment has a hole there.
    """
    voxels = np.zeros(geometry.sizeOf(ct)[::-1], np.uint8)
    for value, segmentId in sorted(_values(result, taken)):  # the liver first: tumours win
        voxels[segmentsOnGrid(result, [segmentId], ct)] = value
    left = computedTumours(result, voxels.shape) & (voxels == 0)
    for part in _parts(left):
        if _shareRound(part, voxels > 0) > 0.5:
            voxels[part] = LIVER_VALUE
    return voxels


def _parts(mask: np.ndarray) -> list[np.ndarray]:
    import SimpleITK as sitk

    numbered = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8))))
    return [numbered == number for number in range(1, int(numbered.max()) + 1)]


def _shareRound(part: np.ndarray, mask: np.ndarray) -> float:
    """Of the voxels that touch a part, those in a mask."""
    import SimpleITK as sitk

    cross = sitk.BinaryDilate(sitk.GetImageFromArray(part.astype(np.uint8)), [1, 1, 1], sitk.sitkCross)
    shell = (sitk.GetArrayFromImage(cross) > 0) & ~part
    return float(mask[shell].mean()) if shell.any() else 0.0


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
