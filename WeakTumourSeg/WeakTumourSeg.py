"""WeakTumourSeg's Slicer module: load, click Register & Propagate, trust or correct.

Thin: what the panel does stands in WeakTumourSegLib, the registration itself in the engine (weaktumour), which runs in
a process of its own. Importing this module imports no torch and does nothing else either.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import ctk
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from weaktumour.errors import InputError
from WeakTumourSegLib import installation, position_regions, preselection, roles
from WeakTumourSegLib.logic import NO_MODEL, STAGES, RegistrationLogic, loadCase, qtTicker
from WeakTumourSegLib.models_panel import ModelsPanel
from WeakTumourSegLib.parameters import WeakTumourSegParameterNode, workerAccepts
from WeakTumourSegLib.result_panel import ResultPanel, openSegmentEditor, segmentEditorNode
from WeakTumourSegLib.roles_panel import RolesPanel
from WeakTumourSegLib.scene_export import RunInputs, checkInputs
from WeakTumourSegLib.worker_process import CANCELLED, DONE, FAILED

_SETTINGS = "WeakTumourSeg"
_LONGEST_BUTTON_TEXT = 60
PAGES = "https://github.com/WeakTumourSeg/SlicerWeakTumourSeg/blob/main"


class WeakTumourSeg(ScriptedLoadableModule):
    """Name, category and help of the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("WeakTumourSeg")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Registration")]
        self.parent.dependencies = ["Segmentations", "Volumes", "Transforms", "SubjectHierarchy"]
        self.parent.contributors = ["The WeakTumourSeg contributors"]
        self.parent.helpText = _(
            "Carries liver and tumour labels from a pre-operative MRI onto an intra-operative CT in which the tumour "
            "cannot be seen. For research only; not a medical device."
        )
        self.parent.helpText += _helpLinks()
        self.parent.acknowledgementText = _(
            "Built on MIND-SSC, MSCGUNet and the works that the README names; cite them with it."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def _helpLinks() -> str:
    """Pages of the project, as HTML."""
    pages = {
        "README.md": _("Step by step"),
        "Resources/from_corrections.md": _("From corrections to a better model"),
    }
    links = (f'<a href="{PAGES}/{path}">{title}</a>' for path, title in pages.items())
    return "<p>" + "<br>".join(links) + "</p>"


def registerSampleData():
    """Put the simulated patient into Sample Data. It is made on this machine, nothing is downloaded."""
    try:
        import SampleData
    except ImportError:  # a Slicer without that module
        return
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="WeakTumourSeg",
        sampleName="Simulated liver patient",
        uris=[],
        fileNames=[],
        nodeNames=[],
        thumbnailFileName=str(Path(__file__).parent / "Resources" / "Icons" / "WeakTumourSeg.png"),
        customDownloader=loadSimulatedPatient,
    )


def loadSimulatedPatient(source=None):
    """MRI, CT and MRI segmentation of a simulated patient as new nodes."""

    def show(event):
        if event["event"] == "progress" and isinstance(event.get("remaining_s"), int | float):
            slicer.util.showStatusMessage(
                _("Simulating a patient, about {time} left").format(time=durationText(event["remaining_s"]))
            )

    with slicer.util.tryWithErrorDisplay(_("The simulated patient could not be made."), waitCursor=True):
        patient = WeakTumourSegLogic().simulatePatient(onEvent=show).loaded
        slicer.util.setSliceViewerLayers(background=patient.ct, foreground=patient.mr, foregroundOpacity=0.5, fit=True)
        return list(patient)


class WeakTumourSegLogic(ScriptedLoadableModuleLogic, RegistrationLogic):
    """`WeakTumourSegLogic().registerAndPropagate(mr, ct, segmentation)`: see WeakTumourSegLib.logic."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleLogic.__init__(self, parent)

    def getParameterNode(self):
        return WeakTumourSegParameterNode(super().getParameterNode())


class WeakTumourSegWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: shows the parameter node, starts and stops runs."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._guiTag = None
        self._machine = installation.Machine()
        self._probe = None
        self._runStarted = 0.0
        self._runKind = ""  # device and preset of the run, by which its time is remembered
        self._message = ""  # what the last run had to say, until the next start
        self._hasNewResult = False  # which nobody has seen yet, as while the module is left

    # -- life -------------------------------------------------------------------------------------------------------
    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        self._uiWidget = uiWidget = slicer.util.loadUI(self.resourcePath("UI/WeakTumourSeg.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        self.logic = WeakTumourSegLogic()
        self.rolesPanel = RolesPanel(self.ui.rolesTable, self._checkCanApply)
        self.resultPanel = ResultPanel(self.ui, uiWidget)
        self.modelsPanel = ModelsPanel(self.ui, self._onModelChosen, self._log, self._checkCanApply, qtTicker)
        self.ui.resultSelector.addAttribute("vtkMRMLSegmentationNode", "WeakTumourSeg.Kind", "segmentation")
        self.ui.workingFolderEdit.filters = ctk.ctkPathLineEdit.Dirs | ctk.ctkPathLineEdit.Writable
        self.ui.workingFolderEdit.currentPath = slicer.util.settingsValue(f"{_SETTINGS}/workingFolder", "")

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        # After the node selectors, which take in the loaded nodes at the same event.
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport, priority=-1.0)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeRemovedEvent, self.onNodeRemoved)
        self.ui.applyButton.connect("clicked(bool)", self.onApplyButton)
        self.ui.installTorchButton.connect("clicked(bool)", self.onInstallTorch)
        self.ui.importModelHintButton.connect("clicked(bool)", self.onImportModelHint)
        self.ui.correctSection.connect("contentsCollapsed(bool)", self._onCorrectCollapsed)
        self.ui.copyLogButton.connect("clicked(bool)", self.onCopyLog)
        self.ui.workingFolderEdit.connect("currentPathChanged(QString)", self._onWorkingFolder)
        # What the Segment Editor makes is a tumour, not what the segment before it is.
        self.ui.segmentEditorWidget.defaultTerminologyEntry = roles.TERMINOLOGY[roles.TUMOUR].serialize()
        if getattr(self.parent, "isEntered", False):  # reloaded while it is shown: nobody else calls enter()
            self.enter()
        else:
            self.initializeParameterNode()

    def _explainUncertainty(self):
        choices = self.ui.uncertaintyComboBox
        choices.enabled = workerAccepts("uncertainty")
        if not choices.enabled:
            choices.toolTip = _("This version does not assess the uncertainty yet.")
        for choice, tip in (
            ("auto", _("With the presets balanced and thorough, not with fast.")),
            ("on", _("With each preset; the run then takes longer.")),
            ("off", _("Not at all: every verdict is 'not assessed'.")),
        ):
            index = choices.findText(choice)
            if index >= 0:
                choices.setItemData(index, tip, qt.Qt.ToolTipRole)

    def cleanup(self):
        """The module or the application ends."""
        if self.logic is not None and self.logic.run is not None:
            self.logic.run.abort()
        if self._probe is not None:
            self._probe.abandon()
            self._probe = None
        self.modelsPanel.close()
        self.resultPanel.close()
        self._leaveSegmentEditor()  # while it still has its node
        self.ui.segmentEditorWidget.setMRMLSegmentEditorNode(None)
        self.setParameterNode(None)
        self.removeObservers()
        # A reload only hides the old panel, which must not go on following the scene.
        self._uiWidget.setMRMLScene(None)
        self._uiWidget.deleteLater()

    def enter(self):
        self.initializeParameterNode()
        self.resultPanel.installShortcuts()
        self._onCorrectCollapsed(self.ui.correctSection.collapsed)
        self._checkInstallation()
        self._presentResult()

    def exit(self):
        self.resultPanel.measureEditsNow()
        self.resultPanel.removeShortcuts()
        self._leaveSegmentEditor()
        self.setParameterNode(None)

    def _leaveSegmentEditor(self):
        editor = self.ui.segmentEditorWidget
        editor.setActiveEffectByName("")
        editor.uninstallKeyboardShortcuts()
        editor.removeViewObservations()

    def _onCorrectCollapsed(self, collapsed):
        """The Segment Editor takes keys and the mouse only while its section is open."""
        if collapsed:
            self.ui.segmentEditorWidget.setActiveEffectByName("")
            self.ui.segmentEditorWidget.uninstallKeyboardShortcuts()
        elif self._parameterNode is not None:
            self.ui.segmentEditorWidget.installKeyboardShortcuts()

    def onSceneStartClose(self, caller, event):
        if self.logic.run is not None:
            self.logic.run.abort()
        self._message = ""  # of what is no longer there
        self._hasNewResult = False
        self.resultPanel.show(None)
        self.rolesPanel.show(None)
        self.ui.segmentEditorWidget.setSegmentationNode(None)
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event):
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, caller, event):
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onNodeRemoved(self, caller, event):
        """The position regions go with the result."""
        if not slicer.mrmlScene.IsClosing():
            position_regions.removeOrphans()

    # -- parameters -------------------------------------------------------------------------------------------------
    def initializeParameterNode(self):
        """Use the scene's parameter node; where nothing is chosen yet and there is no doubt, MRI and CT are."""
        self.setParameterNode(self.logic.getParameterNode())
        self._preselect()

    def _preselect(self):
        parameters = self._parameterNode
        if parameters.mrVolume is not None and parameters.ctVolume is not None:
            return
        mr, ct = preselection.mrAndCT()
        if ct is None:
            return
        if parameters.ctVolume is None and parameters.mrVolume is not ct:
            parameters.ctVolume = ct
        if parameters.mrVolume is None and parameters.ctVolume is not mr:
            parameters.mrVolume = mr
            # Only with the MRI: who takes the segmentation out later wants none.
            parameters.mrSegmentation = parameters.mrSegmentation or preselection.segmentationOf(mr)

    def setParameterNode(self, parameterNode):
        if self._parameterNode is not None:
            self._parameterNode.disconnectGui(self._guiTag)
            # The node itself: what is observed is kept for ever, and there is a new wrapper each time.
            node = self._parameterNode.parameterNode
            self.removeObserver(node, vtk.vtkCommand.ModifiedEvent, self._onParametersChanged)
        self._parameterNode = parameterNode
        if parameterNode is not None:
            self._guiTag = parameterNode.connectGui(self.ui)
            self._explainUncertainty()  # of which the choices have just been made
            node = parameterNode.parameterNode
            self.addObserver(node, vtk.vtkCommand.ModifiedEvent, self._onParametersChanged)
            self._onParametersChanged()

    def _onParametersChanged(self, caller=None, event=None):
        parameters = self._parameterNode
        if parameters is None:
            return
        self.rolesPanel.show(parameters.mrSegmentation)
        self.ui.rolesLabel.visible = parameters.mrSegmentation is not None
        self.modelsPanel.choose("registration", parameters.registrationModel)
        self.modelsPanel.choose("segmentation", parameters.segmentationModel)
        if parameters.result is not self.resultPanel.node:
            self.resultPanel.show(parameters.result)
            openSegmentEditor(self.ui.segmentEditorWidget, self.resultPanel.node, segmentEditorNode())
        self._showMachine()
        self._checkCanApply()

    def _onModelChosen(self, task, modelId):
        parameters = self._parameterNode or self.logic.getParameterNode()
        if task == "registration":
            parameters.registrationModel = modelId
        else:
            parameters.segmentationModel = modelId

    def _onWorkingFolder(self, path):
        qt.QSettings().setValue(f"{_SETTINGS}/workingFolder", path)

    # -- first use and machine --------------------------------------------------------------------------------------
    def _checkInstallation(self):
        """Explain what is missing; where torch is there, ask what the machine can do."""
        if not self._machine.devices:
            self._probeMachine()
        self._showInstallation()

    def _probeMachine(self):
        """Ask a child process; what was known stays until it answers."""
        if self._probe is None and installation.hasTorch():
            self._probe = installation.probeMachine(self._onMachine, qtTicker)
            self._showMachine()

    def _onMachine(self, machine):
        self._probe = None
        if machine.devices or not self._machine.devices:  # one failure, as for lack of memory, does not undo what works
            self._machine = machine
        self._showMachine()
        self._showInstallation()

    def _torchProblem(self):
        if not installation.hasTorch():
            return _("Install PyTorch first, see above.")
        return installation.torchProblem(self._machine)

    def _showInstallation(self):
        self.ui.installationFrame.visible = bool(self._torchProblem())
        if installation.hasTorch():
            self.ui.installationLabel.text = _(
                "{problem} Remove PyTorch in the module PyTorch Utils, restart Slicer, and install it here anew."
            ).format(problem=self._torchProblem())
        else:
            self.ui.installationLabel.text = _(
                "The computation needs PyTorch, which is not installed. Install it here once (about 200 MB, with a GPU "
                "build up to 3 GB; you are asked first). Offline: install the PyTorch extension from a file."
            )
        self._checkCanApply()

    def _showMachine(self):
        parameters = self._parameterNode
        if parameters is None:
            return
        if self._probe is not None and not self._machine.devices:
            self.ui.deviceInfoLabel.text = _("Looking for devices...")
        else:
            self.ui.deviceInfoLabel.text = installation.describeDevice(self._machine, parameters.device)
        measured = slicer.util.settingsValue(
            f"{_SETTINGS}/seconds/{parameters.device}/{parameters.preset}", 0.0, converter=float
        )
        estimate = self._machine.seconds.get(parameters.preset)
        if measured:
            self.ui.presetTimeLabel.text = _("took {time} here last time").format(time=durationText(measured))
        elif estimate:
            self.ui.presetTimeLabel.text = _("about {time} or more").format(time=durationText(estimate))
        else:
            self.ui.presetTimeLabel.text = ""

    def onInstallTorch(self, checked=False):
        with slicer.util.tryWithErrorDisplay(_("PyTorch was not installed."), waitCursor=True):
            installation.installTorch()
        if self._probe is not None:
            self._probe.abandon()
            self._probe = None
        self._machine = installation.Machine()
        self._checkInstallation()

    def onImportModelHint(self, checked=False):
        """Weights from a file, where there are none; the answer stands where that was said."""
        self.modelsPanel.chooseAndImport(self._onModelAnswer)

    def _onModelAnswer(self, text):
        self._message = text
        self._checkCanApply()
        self.ui.statusLabel.text = text

    # -- run --------------------------------------------------------------------------------------------------------
    @property
    def isRunning(self):
        return self.logic.run is not None and self.logic.run.isRunning

    def problem(self):
        """Why a run cannot start, in one sentence; empty where it can."""
        parameters = self._parameterNode
        if parameters is None:
            return _("The scene is being closed.")
        if self._torchProblem():
            return self._torchProblem()
        inputs = RunInputs(parameters.mrVolume, parameters.ctVolume, parameters.mrSegmentation, parameters.ctLiver)
        try:
            checkInputs(inputs, parameters.segmentationModel != NO_MODEL)
        except InputError as error:
            return str(error)
        return self.modelsPanel.problem()

    def _checkCanApply(self, caller=None, event=None):
        """Text, tooltip and state of the one button, and the line below it."""
        button = self.ui.applyButton
        if self.isRunning:
            button.text, button.toolTip, button.enabled = _("Cancel"), _("Stop; the scene stays as it was."), True
            if self.logic.run.isAssessing:
                button.text = _("Stop assessing")
                button.toolTip = _(
                    "The result stays. Only the assessment of how far its tumours can be trusted is stopped; their "
                    "verdicts stay 'not assessed'."
                )
            return
        problem = self.problem()
        button.enabled = not problem
        short = problem if len(problem) <= _LONGEST_BUTTON_TEXT else _("Cannot run yet, see below")
        button.text = short.rstrip(".").replace("&", "&&") if problem else _("Register && Propagate")
        button.toolTip = problem or _(
            "Register the MRI onto the CT and carry the labels over. The inputs stay as they are."
        )
        self.ui.statusLabel.text = problem or self._message
        self.ui.importModelHintButton.visible = self.modelsPanel.needsImport and not self._torchProblem()
        self.ui.progressBar.visible = False

    def onApplyButton(self, checked=False):
        if self.isRunning:
            self.ui.applyButton.enabled = False
            self.ui.applyButton.text = _("Stopping...") if self.logic.run.isAssessing else _("Cancelling...")
            self.logic.run.cancel()
            return
        self._message = ""
        self.ui.logText.clear()
        self._runStarted = time.monotonic()
        parameters = self._parameterNode
        self._runKind = f"{parameters.device}/{parameters.preset}"
        stages = [
            stage
            for stage, use in zip(STAGES, (True, parameters.useMSCGUNet, parameters.useRefinement), strict=True)
            if use
        ]
        try:
            with slicer.util.WaitCursor():
                self.logic.registerAndPropagate(
                    parameters.mrVolume,
                    parameters.ctVolume,
                    parameters.mrSegmentation,
                    parameters.ctLiver,
                    preset=parameters.preset,
                    device=parameters.device,
                    stages=tuple(stages),
                    seed=parameters.seed,
                    uncertainty=parameters.uncertainty if workerAccepts("uncertainty") else None,
                    verdictMm=(parameters.localisedMm, parameters.approximateMm),
                    registrationModel=parameters.registrationModel,
                    segmentationModel=parameters.segmentationModel,
                    workingFolder=self.ui.workingFolderEdit.currentPath or None,
                    onEvent=self._onEvent,
                    onResult=self._onResult,
                    onFinished=self._onFinished,
                    wait=False,
                )
        except InputError as error:
            self._message = str(error)
            self._checkCanApply()
            return
        self.ui.progressBar.value = 0
        self.ui.progressBar.visible = True
        self.ui.statusLabel.text = _("Starting...")
        self._checkCanApply()

    def _onEvent(self, event):
        if event["event"] == "progress":
            fraction, remaining = event.get("fraction"), event.get("remaining_s")
            if isinstance(fraction, int | float):
                self.ui.progressBar.value = round(1000 * min(max(fraction, 0.0), 1.0))
            text = stageText(str(event.get("stage") or ""))
            if isinstance(remaining, int | float):
                text = _("{stage}, about {time} left").format(stage=text, time=durationText(remaining))
            if self.logic.run is not None and self.logic.run.isAssessing:
                text = _("{progress}. The result can already be used.").format(progress=text)
            self.ui.statusLabel.text = text
        elif event["event"] in ("log", "error"):
            self._log(str(event.get("message", "")))

    def _onResult(self, run):
        """The result can be used, even where its uncertainty is still to come."""
        seconds = time.monotonic() - self._runStarted
        qt.QSettings().setValue(f"{_SETTINGS}/seconds/{self._runKind}", seconds)
        # The user may have left the module meanwhile.
        parameters = self._parameterNode or self.logic.getParameterNode()
        parameters.result = run.nodes.segmentation
        self._hasNewResult = True
        self._presentResult()
        if run.isAssessing:
            self.ui.statusLabel.text = _("The result can already be used; its uncertainty is being assessed.")
            self._checkCanApply()

    def _onFinished(self, run):
        if run.state == DONE:
            duration = durationText(time.monotonic() - self._runStarted)
            self._message = " ".join(filter(None, (_("Done in {time}.").format(time=duration), run.message)))
            if run.message:
                self._log(run.message)
            self.resultPanel.measureEdits()  # what the assessment added, beside what was edited meanwhile
        elif run.state == CANCELLED:
            self._message = _("Cancelled; the scene is as it was.")
        elif run.state == FAILED:
            self._message = run.message
            self._log(run.message)
        self._checkCanApply()
        self._showMachine()
        self._probeMachine()  # the memory that is free now

    def _presentResult(self):
        """Show the result of a run that ended now, or while the module was left."""
        if self._hasNewResult and self._parameterNode is not None:
            self._hasNewResult = False
            self.ui.resultSection.collapsed = False
            self.resultPanel.present()

    # -- log --------------------------------------------------------------------------------------------------------
    def _log(self, line):
        self.ui.logText.appendPlainText(line)

    def onCopyLog(self, checked=False):
        slicer.app.clipboard().setText(self.ui.logText.toPlainText())

    # -- development ------------------------------------------------------------------------------------------------
    def onReload(self):
        """Reload the library with the module; what is saved in the scene stays."""
        # Forgotten, not reloaded one by one: a module would keep what it took from another that comes later.
        for name in [name for name in sys.modules if name.split(".")[0] == "WeakTumourSegLib"]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)


def stageText(stage):
    """The worker's stages in the user's words."""
    return {
        "read": _("Reading the volumes"),
        "segmentation": _("Looking for the livers"),
        "alignment": _("Aligning"),
        "mscgunet": _("Predicting the deformation"),
        "refinement": _("Refining the deformation"),
        "propagation": _("Carrying the labels over"),
        "write": _("Writing the result"),
        "report": _("Writing the report"),
        "uncertainty": _("Assessing how far each tumour can be trusted"),
        "simulate": _("Simulating the patient"),
    }.get(stage, stage)


def durationText(seconds):
    """A time span for people."""
    if seconds < 100:
        return _("{seconds} s").format(seconds=max(1, round(seconds)))
    return _("{minutes} min").format(minutes=round(seconds / 60))


class WeakTumourSegTest(ScriptedLoadableModuleTest):
    """Self-test for a real Slicer (--testing), under a minute. Installs and downloads nothing.

    Without PyTorch it tests all but the worker, and says so.
    """

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def runTest(self):
        for test in (
            self.test_panel,
            self.test_exportOfTransformedVolumes,
            self.test_positionRegion,
            self.test_registration,
        ):
            self.setUp()
            test()
        self.delayDisplay(_("Test passed."))

    def test_panel(self):
        """The panel opens, and says what is missing."""
        slicer.util.selectModule("WeakTumourSeg")
        widget = slicer.util.getModuleWidget("WeakTumourSeg")
        self.assertFalse(widget.ui.applyButton.enabled)
        self.assertTrue(widget.ui.applyButton.toolTip)

    def test_exportOfTransformedVolumes(self):
        """What the worker is given lies where it lies in the scene."""
        import numpy as np
        import SimpleITK as sitk

        from WeakTumourSegLib import geometry
        from WeakTumourSegLib.scene_export import exportVolume

        node = slicer.util.addVolumeFromArray(np.arange(24, dtype=np.int16).reshape(2, 3, 4), name="MRI")
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode")
        turn = vtk.vtkTransform()
        turn.RotateZ(30)
        turn.Translate(10, 20, 30)
        transform.SetMatrixTransformToParent(turn.GetMatrix())
        node.SetAndObserveTransformNodeID(transform.GetID())
        with TemporaryDirectory() as folder:
            path = Path(folder) / "volume.nrrd"
            exportVolume(node, path)
            image = sitk.ReadImage(str(path))
            found = np.array(image.TransformIndexToPhysicalPoint((3, 2, 1))) * [-1, -1, 1]
            expected = geometry.transformPoints(geometry.ijkToWorld(node), np.array([3, 2, 1]))
            self.assertLess(np.linalg.norm(found - expected), 0.01)

    def test_positionRegion(self):
        """The points within a distance of a tumour, against each distance by itself."""
        import numpy as np

        mask = np.zeros((4, 5, 6), bool)
        mask[1, 2, 2:4] = mask[2, 2, 3] = True
        spacing, distance = np.array([3.0, 1.2, 1.5]), 4.0
        region, margin = position_regions.withinDistance(mask, spacing, distance)
        places = np.argwhere(np.ones(region.shape, bool))[:, None] - margin - np.argwhere(mask)
        toBox = np.maximum(np.abs(places) - 0.5, 0) * spacing
        expected = np.linalg.norm(toBox, axis=2).min(axis=1) <= distance
        self.assertTrue(np.array_equal(region.ravel(), expected))
        self.assertTrue(region.any() and not region.all())

    def test_registration(self):
        """The shipped weights on a small simulated patient, through the worker process."""
        if not installation.hasTorch():
            self.delayDisplay(_("PyTorch is not installed: the worker was not tested."))
            return
        with TemporaryDirectory() as folder:
            case = Path(folder) / "case"
            self._simulateSmallPatient(case)
            patient = loadCase(case)
        run = WeakTumourSegLogic().registerAndPropagate(
            patient.mr, patient.ct, patient.segmentation, preset="fast", device="cpu"
        )
        self.assertEqual(run.state, DONE)
        self.assertEqual(
            run.nodes.segmentation.GetSegmentation().GetNumberOfSegments(),
            patient.segmentation.GetSegmentation().GetNumberOfSegments(),
        )
        self.assertIsNotNone(run.nodes.transform.GetTransformFromParent())
        self.assertIsNotNone(run.nodes.registeredMR.GetImageData())

    def _simulateSmallPatient(self, folder):
        """A coarse patient, made in a child process: this one must not import torch."""
        code = (
            "from weaktumour.cases import write_case; from weaktumour.simulation import simulate_patient;"
            "case = simulate_patient(1, ct_spacing_mm=4, mr_spacing_mm=4, anatomy_spacing_mm=2.5, needle=False);"
            f"write_case({str(folder)!r}, case)"
        )
        ended = []
        installation.Child(["-c", code], lambda code, lines: ended.append((code, lines)), qtTicker)
        while not ended:
            slicer.app.processEvents()
            time.sleep(0.02)
        self.assertEqual(ended[0][0], 0, "\n".join(ended[0][1]))
