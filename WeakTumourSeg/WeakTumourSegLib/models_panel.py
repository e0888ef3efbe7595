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


class ModelsPanel:
    """Follows two combo boxes, whose chosen ids go to onChosen(task, id); "" is the default model."""

    def __init__(
        self, ui: Any, onChosen: Callable[[str, str], None], onLog: Callable[[str], None], ticker: Ticker
    ) -> None:
        self.ui, self._onLog, self._ticker = ui, onLog, ticker
        self._child: Child | None = None
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

    def refresh(self) -> None:
        """Read the manifests again; keeps what is chosen where it still exists."""
        try:
            entries = models.list_models()
        except ModelError as error:
            self.ui.modelsLabel.text = str(error)
            return
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
        """Show a model as chosen; the default where there is none of that id."""
        combo = self._combos[task]
        combo.setCurrentIndex(max(0, combo.findData(modelId)))

    def chooseAndImport(self) -> None:
        """Ask for a weights file and import it."""
        path = qt.QFileDialog.getOpenFileName(
            slicer.util.mainWindow(), _("Weights file of WeakTumourSeg, or a published MSCGUNet checkpoint")
        )
        if path:
            self.importFile(str(path))

    def importFile(self, path: str) -> None:
        self._act(["import", path])

    def _onRemove(self) -> None:
        chosen = [str(combo.currentData) for combo in self._combos.values() if combo.currentData not in ("", NO_MODEL)]
        if not chosen:
            self.ui.modelsLabel.text = _("Choose the model to remove above; only imported ones can be removed.")
        elif slicer.util.confirmOkCancelDisplay(_("Delete the imported model {id}?").format(id=chosen[-1])):
            self._act(["remove", chosen[-1]])

    def _act(self, arguments: list[str]) -> None:
        if self._child is not None:
            return
        self._setEnabled(False)
        self.ui.modelsLabel.text = _("Working...")
        self._child = Child(["-m", "weaktumour", "models", *arguments], self._onDone, self._ticker)

    def _onDone(self, code: int, lines: list[str]) -> None:
        self._child = None
        self._setEnabled(True)
        for line in lines:
            self._onLog(line)
        said = [line for line in lines if line.strip()]
        self.ui.modelsLabel.text = "\n".join(said if code == 0 else said[-1:]) or _(
            "Failed (exit code {code})."
        ).format(code=code)
        self.refresh()

    def _setEnabled(self, enabled: bool) -> None:
        for button in (self.ui.verifyModelsButton, self.ui.importModelButton, self.ui.removeModelButton):
            button.enabled = enabled

    def close(self) -> None:
        if self._child is not None:
            self._child.abandon()
            self._child = None
