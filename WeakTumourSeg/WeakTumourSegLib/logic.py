"""One call for button, script and test: `registerAndPropagate`. Without Qt, but for the timer that polls the worker."""

from __future__ import annotations

import datetime
import shutil
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import slicer
from slicer.i18n import tr as _

from weaktumour.errors import InputError
from weaktumour.workspace import remove_tree

from . import assessment, geometry, position_regions, scene_import
from .scene_export import Exported, RunInputs, exportInputs
from .scene_import import ResultNodes
from .worker_process import (
    CANCELLED,
    DONE,
    FAILED,
    Event,
    Outcome,
    Ticker,
    WorkerRun,
    makeTemporaryFolder,
    unassessed,
)

STAGES = ("alignment", "mscgunet", "refinement")
NO_MODEL = "none"
_CT_WINDOW = (350, 50)  # HU, for the abdomen


class RunFailed(RuntimeError):
    """A run that was waited for did not come to a result; the message is one sentence. The scene is as it was."""


class RunCancelled(RunFailed):
    """A run that was waited for was cancelled."""


def qtTicker(milliseconds: int, function: Callable[[], None]) -> Callable[[], None]:
    """A Qt timer on the main thread."""
    import qt

    timer = qt.QTimer()
    timer.setInterval(milliseconds)
    timer.connect("timeout()", function)
    timer.start()

    def stop() -> None:
        timer.stop()
        timer.disconnect("timeout()", function)  # timer and function would keep each other alive

    return stop


class Run:
    """One piece of the worker's work and what it left in the scene.

    state: "" while it runs, then done, cancelled or failed; message: a sentence where it failed, or where it is done
    but something is missing. nodes: of registerAndPropagate, as soon as they can be used, which is before the end where
    it goes on to assess how far the tumours can be trusted; complete: all that was to be computed is in them. loaded:
    the nodes of simulatePatient. keptFolder: the result folder in the working folder, where one was chosen.
    """

    def __init__(self) -> None:
        self.state = ""
        self.message = ""
        self.complete = False
        self.nodes: ResultNodes | None = None
        self.loaded: LoadedPatient | None = None
        self.keptFolder: Path | None = None
        self._worker: WorkerRun | None = None
        self._problem = ""  # with a result that was announced: it could not be taken over

    @property
    def isRunning(self) -> bool:
        return self.state == ""

    @property
    def isAssessing(self) -> bool:
        """Whether the result is there and only the uncertainty is missing; what stops it now leaves it done."""
        return self.isRunning and self.nodes is not None

    def cancel(self) -> None:
        """Ask it to stop; it ends a moment later, with the scene as it was or with the result that it holds."""
        if self._worker is not None:
            self._worker.cancel()

    def abort(self) -> None:
        """End it now, for the end of the application or of the scene."""
        if self._worker is not None:
            self._worker.abort()

    def wait(self) -> Run:
        """Until it ends, giving the application its turn. Raises RunFailed, RunCancelled."""
        if self._worker is not None and self.isRunning:
            application = getattr(slicer, "app", None)
            self._worker.wait(application.processEvents if application is not None else lambda: None)
        if self.state == CANCELLED:
            raise RunCancelled(_("Cancelled."))
        if self.state == FAILED:
            raise RunFailed(self.message)
        return self


class LoadedPatient:
    """A case folder's nodes."""

    def __init__(self, mr: object, ct: object, segmentation: object) -> None:
        self.mr, self.ct, self.segmentation = mr, ct, segmentation

    def __iter__(self):
        return iter((self.mr, self.ct, self.segmentation))


class RegistrationLogic:
    """Exports nodes, runs the worker, imports its result. One run at a time.

    ticker: see worker_process; a Qt timer unless another is given. command: a program in the worker's place (tests).
    """

    ticker: Ticker = staticmethod(qtTicker)
    workerCommand: list[str] | None = None
    run: Run | None = None

    def registerAndPropagate(
        self,
        mr: slicer.vtkMRMLScalarVolumeNode,
        ct: slicer.vtkMRMLScalarVolumeNode,
        segmentation: slicer.vtkMRMLSegmentationNode | None = None,
        ctLiver: slicer.vtkMRMLSegmentationNode | None = None,
        preset: str = "balanced",
        device: str = "auto",
        stages: tuple[str, ...] = STAGES,
        seed: int = 0,
        uncertainty: str | None = None,
        verdictMm: tuple[float, float] | None = None,
        registrationModel: str | None = None,
        segmentationModel: str | None = None,
        workingFolder: str | Path | None = None,
        onEvent: Callable[[Event], None] = lambda event: None,
        onResult: Callable[[Run], None] = lambda run: None,
        onFinished: Callable[[Run], None] = lambda run: None,
        wait: bool = True,
    ) -> Run:
        """Carry the MRI's labels onto the CT; new nodes appear beside the CT, nothing else in the scene changes.

        segmentation: of the MRI; None: the network segments. ctLiver: a drawn liver on the CT. segmentationModel:
        NO_MODEL looks for no liver. uncertainty: auto, on or off; None: as the engine likes. verdictMm: the largest
        p95 of a localised and of an approximate tumour. workingFolder: keeps the result folder with its report. wait:
        return when all is done, otherwise at once. onResult is called once, when the nodes can be used
        (run.isAssessing: their uncertainty is still to come), onFinished at the end.

        Raises InputError: inputs that cannot be run, before anything starts. Raises RunFailed, RunCancelled when
        waited for. In each of these cases the scene is as it was. An assessment of the uncertainty that is stopped or
        fails takes nothing away: the run is done, with run.message saying what is missing.
        """
        inputs = RunInputs(mr, ct, segmentation, ctLiver)
        runId = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:6]}"
        folder = self._newFolder(workingFolder)
        try:
            (folder / "inputs").mkdir()
            exported = exportInputs(inputs, folder / "inputs", segmentationModel != NO_MODEL)
            movingToWorld = geometry.nodeToWorld(mr)
        except OSError as error:
            remove_tree(folder)
            raise InputError(_writeFailure(error)) from error
        except BaseException:
            remove_tree(folder)
            raise

        def bring(result: Path) -> ResultNodes:
            with scene_import.allOrNothing():
                return assessment.take(_import(result, runId, inputs, movingToWorld, exported), result)

        kept = workingFolder and Path(workingFolder) / f"WeakTumourSeg {runId}"
        taking = _Taking(bring, kept or None)
        arguments = {
            "mr": str(exported.mr),
            "ct": str(exported.ct),
            "mr_labels": exported.mrLabels and str(exported.mrLabels),
            "ct_liver": exported.ctLiver and str(exported.ctLiver),
            "preset": preset,
            "device": device,
            "stages": ",".join(stages),
            "seed": seed,
            "uncertainty": uncertainty,
            "verdict_mm": verdictMm and ",".join(f"{limit:g}" for limit in verdictMm),
            "registration_model": registrationModel or None,
            "segmentation_model": segmentationModel or None,
        }
        return self._start("register", arguments, folder, taking, onEvent, onResult, onFinished, wait)

    def simulatePatient(
        self,
        seed: int = 0,
        onEvent: Callable[[Event], None] = lambda event: None,
        onFinished: Callable[[Run], None] = lambda run: None,
        wait: bool = True,
    ) -> Run:
        """Make the sample data here: an MRI with its segmentation, and a CT that does not show the tumours."""

        arguments = {"seed": seed, "tumours_in_ct": "invisible"}
        folder = self._newFolder(None)
        return self._start("simulate", arguments, folder, _TakingCase(), onEvent, lambda run: None, onFinished, wait)

    def _newFolder(self, workingFolder: str | Path | None) -> Path:
        if self.run is not None and self.run.isRunning:
            raise InputError(_("A run is under way; wait for it or cancel it."))
        parent = Path(workingFolder or temporaryFolder())
        try:
            return makeTemporaryFolder(parent)
        except OSError as error:
            raise InputError(
                _("The folder {folder} cannot be written ({reason}); choose another working folder.").format(
                    folder=parent, reason=error.strerror or error
                )
            ) from error

    def _start(self, operation, arguments, folder, taking, onEvent, onResult, onFinished, wait) -> Run:
        run = Run()

        def hear(event: Event) -> None:
            isAnnounced = event["event"] == "result" and event.get("complete") is False
            if isAnnounced and not run.nodes and not run._problem:
                try:
                    taking.takeAnnounced(run, Path(str(event.get("folder"))))
                except Exception as error:  # nothing to show: the rest of the work is of no use
                    run._problem = _sentence(error)
                    run.cancel()
                else:
                    onResult(run)
            onEvent(event)

        def finish(outcome: Outcome) -> None:
            run.state, run.message = outcome.state, outcome.message
            wasThere = run.nodes is not None
            if run._problem:
                run.state, run.message = FAILED, run._problem
            elif outcome.state == DONE:
                try:
                    taking.take(run, outcome)
                except Exception as error:
                    run.state, run.nodes, run.keptFolder, run.message = FAILED, None, None, _sentence(error)
            if run.nodes is not None and not wasThere:
                onResult(run)
            onFinished(run)

        self.run = run
        run._worker = WorkerRun(operation, arguments, folder, finish, hear, self.workerCommand)
        if wait:
            return run.wait()
        run._worker.start(self.ticker)
        return run


class _TakingCase:
    """Brings a simulated patient into the scene."""

    def take(self, run: Run, outcome: Outcome) -> None:
        run.loaded, run.complete = loadCase(outcome.folder), True


class _Taking:
    """Brings a registration into the scene: as a whole at its end, or first the result and its assessment later.

    bring: makes the nodes of a result folder, all or none. kept: where the folder goes in the end; None: nowhere.
    """

    def __init__(self, bring: Callable[[Path], ResultNodes], kept: Path | None) -> None:
        self._bring, self._kept = bring, kept

    def takeAnnounced(self, run: Run, result: Path) -> None:
        """While the worker goes on writing into the folder."""
        run.nodes = self._bring(result)

    def take(self, run: Run, outcome: Outcome) -> None:
        if run.nodes is not None:
            self._takeRest(run, outcome)
            return
        result = outcome.folder
        if self._kept is not None:
            # First, since moving may fail and must then leave no node.
            result = run.keptFolder = _keep(result, self._kept)
        try:
            run.nodes, run.complete = self._bring(result), True
        except BaseException:
            if run.keptFolder is not None:
                remove_tree(run.keptFolder)
            raise

    def _takeRest(self, run: Run, outcome: Outcome) -> None:
        """The result has been in use for a while: whatever happens, it stays."""
        segmentation = run.nodes.segmentation
        isThere = slicer.mrmlScene.IsNodePresent(segmentation)
        if isThere and outcome.complete:
            try:
                run.nodes = assessment.take(run.nodes, outcome.folder)
            except Exception as error:
                run.message = unassessed(_sentence(error))
        run.complete = outcome.complete and not run.message
        if isThere and not run.complete:
            assessment.note(segmentation, run.message)
        if not isThere:
            run.message = _("The run's result was removed from the scene before its end.")
        if self._kept is not None:
            try:
                run.keptFolder = _keep(outcome.folder, self._kept)
            except OSError as error:
                kept = _("The result is in the scene, but its folder was not kept. {reason}")
                run.message = " ".join([run.message, kept.format(reason=_writeFailure(error))]).strip()


def temporaryFolder() -> Path:
    """Slicer's folder for temporary files."""
    application = getattr(slicer, "app", None)
    return Path(application.temporaryPath if application is not None else tempfile.gettempdir())


def _import(result: Path, runId: str, inputs: RunInputs, movingToWorld: np.ndarray, exported: Exported) -> ResultNodes:
    for node in (inputs.mr, inputs.ct):
        if not slicer.mrmlScene.IsNodePresent(node):
            raise InputError(_("The MRI or the CT was removed during the run; load it and run again."))
    position_regions.removeOrphans()
    return scene_import.importResult(result, runId, inputs, movingToWorld, exported.labels)


def _keep(result: Path, target: Path) -> Path:
    shutil.move(str(result), str(target))
    return target


def _sentence(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError):
        return _writeFailure(error)
    return _("The result could not be taken over ({reason}); see the log.").format(
        reason=f"{type(error).__name__}: {error}"
    )


def _writeFailure(error: OSError) -> str:
    reason = error.strerror or str(error)
    return _("A file could not be read or written ({reason}); free space or choose another working folder.").format(
        reason=reason
    )


def loadCase(folder: Path) -> LoadedPatient:
    """Volumes and MRI segmentation of a case folder as new nodes; on any error none is left."""
    with scene_import.allOrNothing() as add:
        mr = scene_import.readVolume(folder / "mr.nii.gz", add("vtkMRMLScalarVolumeNode", _("Simulated MRI")))
        ct = scene_import.readVolume(folder / "ct.nii.gz", add("vtkMRMLScalarVolumeNode", _("Simulated CT")))
        ct.GetDisplayNode().SetAutoWindowLevel(False)
        ct.GetDisplayNode().SetWindowLevel(*_CT_WINDOW)
        segmentation = add("vtkMRMLSegmentationNode", _("Simulated MRI segmentation"))
        scene_import.readSegmentation(folder / "mr_labels.nii.gz", folder / "labels.json", mr, segmentation)
    return LoadedPatient(mr, ct, segmentation)
