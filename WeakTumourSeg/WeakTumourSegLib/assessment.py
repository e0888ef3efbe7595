"""What the second stage of a run (how far each tumour's place can be trusted) adds to a result in the scene.

The result may be under review by then: its segments, and with them every edit by hand, are left alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

from . import geometry, position_regions, scene_import, tumour_table
from .scene_import import NUMBER_ATTRIBUTE, PROBABILITY, REGIONS, RESULT_ATTRIBUTE, ResultNodes


def take(result: ResultNodes, folder: Path) -> ResultNodes:
    """Bring figures, report, probability and position regions of a result folder to the nodes of its run.

    Where nothing was assessed, there is nothing to bring. On any error the nodes are as they were.
    Raises InputError where the folder cannot be read or does not fit.
    """
    segmentation = result.segmentation
    content = scene_import.readResult(folder)
    with scene_import.allOrNothing() as add:
        probability = _takeProbability(segmentation, folder / "tumour_probability.nii.gz", add)
        regions = position_regions.make(segmentation, content["tumours"], folder, add)
        suffix = segmentation.GetAttribute(NUMBER_ATTRIBUTE) or ""
        scene_import.keepReport(folder / "report.html", result.runId, suffix, segmentation, add)
    for kind, made in ((PROBABILITY, probability), (REGIONS, regions)):
        for node in scene_import.nodesOfKind(kind, result.runId):
            if node is not made:
                slicer.mrmlScene.RemoveNode(node)
    scene_import.keepContent(segmentation, content)
    tumour_table.updateAllEdited(segmentation)
    position_regions.show(segmentation, True)
    return scene_import.resultOf(segmentation)


def note(segmentation: slicer.vtkMRMLSegmentationNode, sentence: str) -> None:
    """Keep with the result why nothing was assessed."""
    content = tumour_table.resultContent(segmentation)
    segmentation.SetAttribute(RESULT_ATTRIBUTE, json.dumps({**content, "assessment": sentence}))


def _takeProbability(
    segmentation: slicer.vtkMRMLSegmentationNode, path: Path, add: Any
) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The probability that a voxel is tumour, as a volume no larger than where there is one."""
    import SimpleITK as sitk

    if not path.is_file():
        return None
    image = scene_import.readImage(path)
    ijkToNode = position_regions.latticeOf(segmentation, image.GetSize())
    voxels = sitk.GetArrayViewFromImage(image)
    box = position_regions.boundingBox(voxels > 0)
    if box is None:
        return None
    suffix = segmentation.GetAttribute(NUMBER_ATTRIBUTE) or ""
    node = add(
        "vtkMRMLScalarVolumeNode",
        _("Tumour probability {run}").format(run=suffix).strip(),
        scene_import.ofRun(segmentation.GetAttribute(scene_import.RUN_ATTRIBUTE), PROBABILITY),
    )
    start = np.array([part.start for part in box][::-1])
    shifted = ijkToNode.copy()
    shifted[:3, 3] = geometry.transformPoints(ijkToNode, start)
    node.SetAndObserveImageData(geometry.plainImage(np.ascontiguousarray(voxels[box])))
    node.SetIJKToRASMatrix(geometry.arrayToMatrix(shifted))
    node.SetAndObserveTransformNodeID(segmentation.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    scene_import.placeBeside(node, segmentation)
    return node
