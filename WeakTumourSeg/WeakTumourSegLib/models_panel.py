"""Which networks' weights to use: choose, verify, import from a file, remove. All of it is local; nothing is loaded
from the internet. Reading the list is quick and needs no torch; the rest is done by the command line in a child."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from weaktumour import models
from weaktumour.errors import ModelError

from .installation import Child
from .logic import NO_MODEL
from .worker_process import Ticker

_MISSING_ROLE = qt.Qt.UserRole + 1


class ModelsPanel:
    """Follows two combo boxes, whose chosen ids go to onChosen(task, id); "" is the default model.

    onListed is called when what there is to choose from may have changed.
    """

    def __init__(
        self,
        ui: Any,
        onChosen: Callable[[str, str], None],
        onLog: Callable[[str], None],
        onListed: Callable[[], None],
        ticker: Ticker,
    ) -> None:
        self.ui, self._onChosen, self._onLog, self._onListed, self._ticker = ui, onChosen, onLog, onListed, ticker
        self._child: Child | None = None
        self._failure = ""
        self._combos = {"registration": ui.registrationModelComboBox, "segmentation": ui.segmentationModelComboBox}
        for task, combo in self._combos.items():
            combo.connect("activated(int)", lambda index, task=task: onChosen(task, self._combos[task].itemData(index)))
        ui.verifyModelsButton.connect("clicked(bool)", lambda checked=False: self._act(["verify"]))
        ui.importModelButton.connect("clicked(bool)", lambda checked=False: self.chooseAndImport())
        ui.removeModelButton.connect("clicked(bool)", lambda checked=False: self._onRemove())
        self.refresh()

    @property
    def isBusy(self) -> bool:
        return self._child is not None

    @property
    def needsImport(self) -> bool:
        """Whether there is no list to choose from."""
        return bool(self._failure)

    def problem(self) -> str:
        """Why no run can work with what is chosen, in one sentence; empty where one can."""
        if self._failure:
            return self._failure
        for combo, what in zip(self._combos.values(), (_("registration"), _("segmentation")), strict=True):
            if _isMissing(combo, combo.currentIndex):
                return _(
                    'The {what} model "{id}" is not installed; import it, or choose another one, under Advanced.'
                ).format(what=what, id=combo.currentData)
        return ""

    def refresh(self) -> None:
        """Read the manifests again; keeps what is chosen, also where it is no longer there."""
        self._failure, entries = "", []
        try:
            entries = models.list_models()
            if not entries:
                self._failure = _("No network's weights are installed; import them from a file.")
        except (ModelError, OSError) as error:
            self._failure = str(error)
        if self._failure:
            self.ui.modelsLabel.text = self._failure
        for task, combo in self._combos.items():
            chosen = combo.currentData
            combo.clear()
            combo.addItem(_("default"), "")
            for entry in entries:
                if entry.task == task:
                    combo.addItem(
                        entry.id if entry.origin == "shipped" else _("{id} (yours)").format(id=entry.id), entry.id
                    )
                    combo.setItemData(combo.count - 1, entry.description, qt.Qt.ToolTipRole)
            if task == "segmentation":
                combo.addItem(_("none: look for no liver"), NO_MODEL)
            self.choose(task, chosen or "")

    def choose(self, task: str, modelId: str) -> None:
        """Show a model as chosen, also one that is missing: it is what a run would be asked for."""
        combo = self._combos[task]
        if combo.findData(modelId) < 0:
            combo.addItem(_("{id} (missing)").format(id=modelId), modelId)
            combo.setItemData(combo.count - 1, True, _MISSING_ROLE)
        combo.setCurrentIndex(combo.findData(modelId))
        for index in reversed(range(combo.count)):
            if index != combo.currentIndex and _isMissing(combo, index):
                combo.removeItem(index)

    def chooseAndImport(self, onAnswer: Callable[[str], None] = lambda text: None) -> None:
        """Ask for a weights file and import it; onAnswer gets what is to be said about that."""
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Weights file of WeakTumourSeg, or a published MSCGUNet checkpoint")
        )
        if path:
            self.importFile(str(path), onAnswer)

    def importFile(self, path: str, onAnswer: Callable[[str], None] = lambda text: None) -> None:
        self._act(["import", path], onAnswer)

    def _onRemove(self) -> None:
        chosen = [str(combo.currentData) for combo in self._combos.values() if combo.currentData not in ("", NO_MODEL)]
        if not chosen:
            self.ui.modelsLabel.text = _("Choose the model to remove above; only imported ones can be removed.")
        elif slicer.util.confirmOkCancelDisplay(_("Delete the imported model {id}?").format(id=chosen[-1])):
            self._act(["remove", chosen[-1]])

    def _act(self, arguments: list[str], onAnswer: Callable[[str], None] = lambda text: None) -> None:
        if self._child is not None:
            return
        self._setEnabled(False)
        self.ui.modelsLabel.text = _("Working...")
        onAnswer(_("Working..."))

        def done(code: int, lines: list[str]) -> None:
            self._child = None
            self._setEnabled(True)
            for line in lines:
                self._onLog(line)
            said = [line for line in lines if line.strip()]
            answer = "\n".join(said if code == 0 else said[-1:]) or _("Failed (exit code {code}).").format(code=code)
            self.ui.modelsLabel.text = answer
            if code == 0 and arguments[0] == "remove":
                self._forget(arguments[1])
            self.refresh()
            self._onListed()
            onAnswer(answer)

        self._child = Child(["-m", "weaktumour", "models", *arguments], done, self._ticker)

    def _forget(self, modelId: str) -> None:
        """Back to the default where a removed model was chosen."""
        for task, combo in self._combos.items():
            if combo.currentData == modelId:
                combo.setCurrentIndex(0)
                self._onChosen(task, "")

    def _setEnabled(self, enabled: bool) -> None:
        for button in (self.ui.verifyModelsButton, self.ui.importModelButton, self.ui.removeModelButton):
            button.enabled = enabled

    def close(self) -> None:
        if self._child is not None:
            self._child.abandon()
            self._child = None


def _isMissing(combo: qt.QComboBox, index: int) -> bool:
    return bool(combo.itemData(index, _MISSING_ROLE))
