"""The main window, as far as slicer.util needs one: the module selector, and the panel that shows a module."""

from __future__ import annotations

from typing import Any

import slicer
from PySide6.QtCore import Property, QObject, Signal
from PySide6.QtWidgets import QMainWindow, QScrollArea

from slicerhost.standin import stands_in


@stands_in()
class qSlicerModuleSelectorToolBar(QObject):
    """Chooses the module to show, and so tells modules when they are entered and left."""

    moduleSelected = Signal(str)

    def __init__(self, panel: QScrollArea):
        super().__init__()
        self._panel = panel
        self._selected = ""

    selectedModule = Property(str, lambda self: self._selected)

    def selectModule(self, name: str) -> None:
        if name == self._selected:
            return
        module = slicer.app.moduleManager().module(name)
        widget = module.widgetRepresentation() if module is not None else None
        self._leave()
        self._selected = name
        if widget is not None:
            self._panel.setWidget(widget)
            widget.show()
            widget.enter()
        self.moduleSelected.emit(name)

    def _leave(self) -> None:
        widget = self._panel.takeWidget()
        if widget is not None:
            widget.exit()
            widget.setParent(None)
        self._selected = ""


@stands_in()
class qSlicerMainWindow(QMainWindow):
    initialWindowShown = Signal()

    def __init__(self):
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        panel = QScrollArea()
        panel.setWidgetResizable(True)
        self._module_selector = qSlicerModuleSelectorToolBar(panel)
        self.setCentralWidget(panel)
        self.resize(560, 900)

    def moduleSelector(self) -> Any:
        return self._module_selector

    def pythonConsole(self) -> None:
        return None
