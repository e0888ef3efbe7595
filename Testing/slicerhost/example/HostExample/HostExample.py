"""The smallest scripted module that uses what a real one uses; the host's own tests load it."""

from enum import Enum
from typing import Annotated, Optional

import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import Choice, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class HostExample(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("Host example")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Testing")]
        self.parent.dependencies = ["Segmentations"]
        self.parent.contributors = ["The WeakTumourSeg contributors"]
        self.parent.helpText = _("Thresholds a volume.")
        self.parent.acknowledgementText = ""


class Side(Enum):
    ABOVE = "above"
    BELOW = "below"


@parameterNodeWrapper
class HostExampleParameterNode:
    inputVolume: vtkMRMLScalarVolumeNode
    result: vtkMRMLSegmentationNode
    threshold: Annotated[float, WithinRange(-1000, 1000)] = 40.0
    preset: Annotated[str, Choice(["fast", "thorough"])] = "fast"
    side: Side = Side.ABOVE
    invert: bool = False
    repeats: Annotated[int, WithinRange(1, 9)] = 3
    note: str = "nothing"
    stages: list[str] = ["one", "two"]  # noqa: RUF012  (Slicer's way to give a default)
    tumours: dict[str, int]
    limit: Optional[float] = None  # noqa: UP045


class HostExampleWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._parameterNodeGuiTag = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/HostExample.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = HostExampleLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        # A node that a parameter names may come after the parameters: only then is there something to select.
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndClose)
        self.ui.applyButton.connect("clicked(bool)", self.onApplyButton)
        self.initializeParameterNode()

    def cleanup(self):
        self.setParameterNode(None)
        self.removeObservers()

    def enter(self):
        self.initializeParameterNode()

    def exit(self):
        self.setParameterNode(None)

    def onSceneStartClose(self, caller, event):
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self):
        self.setParameterNode(self.logic.getParameterNode())

    def setParameterNode(self, parameterNode):
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self.removeObserver(self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self._checkCanApply)
        self._parameterNode = parameterNode
        if self._parameterNode:
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            # Of the node, not of its wrapper: VTKObservationMixin keeps what it has ever observed, and a wrapper that
            # is kept keeps its own observers.
            self.addObserver(self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self._checkCanApply)
            self._checkCanApply()

    def _checkCanApply(self, caller=None, event=None):
        ready = self._parameterNode.inputVolume is not None
        self.ui.applyButton.enabled = ready
        self.ui.applyButton.toolTip = _("Run") if ready else _("Select a volume")

    def onApplyButton(self):
        with slicer.util.tryWithErrorDisplay(_("The threshold failed."), waitCursor=True):
            self._parameterNode.result = self.logic.process(
                self._parameterNode.inputVolume, self._parameterNode.threshold
            )


class HostExampleLogic(ScriptedLoadableModuleLogic):
    def getParameterNode(self):
        return HostExampleParameterNode(super().getParameterNode())

    def process(self, volume, threshold):
        mask = slicer.util.arrayFromVolume(volume) > threshold
        if not mask.any():
            raise ValueError(_("nothing is above {threshold}").format(threshold=threshold))
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Result")
        segmentation.CreateDefaultDisplayNodes()
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segment_id = segmentation.GetSegmentation().AddEmptySegment("above", "above", [1.0, 0.0, 0.0])
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype("uint8"), segmentation, segment_id, volume)
        return segmentation


class HostExampleTest(ScriptedLoadableModuleTest):
    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_parameters()

    def test_parameters(self):
        assert HostExampleLogic().getParameterNode().preset == "fast"
