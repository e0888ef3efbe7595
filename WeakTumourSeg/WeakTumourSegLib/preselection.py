"""What to choose in the panel where nothing is chosen yet and the scene leaves no doubt."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

from weaktumour.errors import InputError

from .scene_export import checkVolume, looksLikeCT
from .scene_import import KIND_ATTRIBUTE


def mrAndCT() -> tuple[slicer.vtkMRMLScalarVolumeNode | None, slicer.vtkMRMLScalarVolumeNode | None]:
    """The MRI and the CT, where exactly one volume looks like a CT and exactly one does not; else (None, None)."""
    ofKind: dict[bool, list[slicer.vtkMRMLScalarVolumeNode]] = {True: [], False: []}
    for node in _given("vtkMRMLScalarVolumeNode"):
        if _isVolume(node):
            ofKind[looksLikeCT(node)].append(node)
    if [len(nodes) for nodes in ofKind.values()] != [1, 1]:
        return None, None
    return ofKind[False][0], ofKind[True][0]


def segmentationOf(volume: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLSegmentationNode | None:
    """The only segmentation that was drawn on a volume."""
    found = [
        node
        for node in _given("vtkMRMLSegmentationNode")
        if node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is volume
    ]
    return found[0] if len(found) == 1 else None


def _given(className: str) -> list[slicer.vtkMRMLNode]:
    """What the user loaded or drew; what runs left in the scene does not count."""
    nodes = slicer.util.getNodesByClass(className)
    return [node for node in nodes if not node.GetAttribute(KIND_ATTRIBUTE) and not node.GetHideFromEditors()]


def _isVolume(node: slicer.vtkMRMLScalarVolumeNode) -> bool:
    try:
        checkVolume(node, _("MRI"))
    except InputError:
        return False
    return True
