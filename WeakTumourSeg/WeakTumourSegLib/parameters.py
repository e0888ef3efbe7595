"""What is chosen in the panel, saved with the scene. What belongs to the machine (working folder) is not here."""

from typing import Annotated

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper

from weaktumour.worker import OPERATIONS

_OPTIONS = {option.name: option for option in OPERATIONS["register"].options}
PRESETS = list(_OPTIONS["preset"].choices)
DEVICES = list(_OPTIONS["device"].choices)
UNCERTAINTY = ["auto", "on", "off"]
LARGEST_SEED = 2**31 - 1


def workerAccepts(option: str) -> bool:
    """Whether this engine's `register` knows an option (an engine without uncertainty has no such option)."""
    return option in _OPTIONS


@parameterNodeWrapper
class WeakTumourSegParameterNode:
    """Bound to the widgets of the .ui by their SlicerParameterName.

    registrationModel, segmentationModel: ids, empty for the default; segmentationModel "none": look for no liver.
    localisedMm, approximateMm: the largest p95 of these verdicts.
    result: the run whose tumours are shown. showPositionRegions: where each of them may lie, as outlines.
    """

    mrVolume: vtkMRMLScalarVolumeNode
    ctVolume: vtkMRMLScalarVolumeNode
    mrSegmentation: vtkMRMLSegmentationNode
    ctLiver: vtkMRMLSegmentationNode
    preset: Annotated[str, Choice(PRESETS)] = "balanced"
    device: Annotated[str, Choice(DEVICES)] = "auto"
    useMSCGUNet: bool = True
    useRefinement: bool = True
    seed: Annotated[int, WithinRange(0, LARGEST_SEED)] = 0
    uncertainty: Annotated[str, Choice(UNCERTAINTY)] = "auto"
    localisedMm: Annotated[float, WithinRange(0.5, 50.0)] = 5.0
    approximateMm: Annotated[float, WithinRange(0.5, 50.0)] = 10.0
    registrationModel: str = ""
    segmentationModel: str = ""
    result: vtkMRMLSegmentationNode
    showPositionRegions: bool = True
