"""Modules: ``slicer.modules.NAME``, the module manager, and a scripted module's panel from setup to cleanup."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer
from PySide6.QtCore import Property, QObject, Signal
from PySide6.QtGui import QIcon
from PySide6.QtWidgets import QVBoxLayout

from slicerhost.mrml_widgets import qSlicerWidget
from slicerhost.scene import LOGICS
from slicerhost.standin import stands_in, stored


@stands_in()
class qSlicerModuleFactoryManager(QObject):
    def __init__(self, manager: qSlicerModuleManager):
        super().__init__()
        self._manager = manager

    def loadedModuleNames(self) -> list[str]:
        return self._manager.modulesNames()

    def isLoaded(self, name: str) -> bool:
        return name in self._manager.modulesNames()


@stands_in()
class qSlicerModuleManager(QObject):
    moduleLoaded = Signal(str)
    moduleAboutToBeUnloaded = Signal(str)

    def __init__(self):
        super().__init__()
        self._modules: dict[str, Any] = {}

    def module(self, name: str) -> Any:
        return self._modules.get(name)

    def modulesNames(self) -> list[str]:
        return list(self._modules)

    def factoryManager(self) -> qSlicerModuleFactoryManager:
        return qSlicerModuleFactoryManager(self)

    def _add(self, module: Any) -> None:
        self._modules[module.name] = module
        setattr(slicer.modules, module.name.lower(), module)
        setattr(slicer.moduleNames, module.name, module.name)
        self.moduleLoaded.emit(module.name)

    def _unload(self, name: str) -> None:
        self.moduleAboutToBeUnloaded.emit(name)
        self._modules.pop(name)
        for attribute in (name.lower(), name + "Widget"):
            vars(slicer.modules).pop(attribute, None)
        vars(slicer.moduleNames).pop(name, None)


class LoadableModule:
    """A C++ module of Slicer, of which slicer-core has the logic and nobody the panel."""

    def __init__(self, name: str, logic: Any):
        self.name, self._logic = name, logic

    def logic(self) -> Any:
        return self._logic

    def widgetRepresentation(self) -> None:
        return None


def make_namespaces(logics: dict[str, Any], manager: qSlicerModuleManager) -> None:
    """``slicer.modules`` and ``slicer.moduleNames``, with Slicer's own modules in them."""
    for name in ("modules", "moduleNames"):
        namespace = types.ModuleType(f"slicer.{name}")
        setattr(slicer, name, namespace)
        sys.modules[f"slicer.{name}"] = namespace
    for name in LOGICS:
        manager._add(LoadableModule(name, logics[name]))


@stands_in()
class qSlicerScriptedLoadableModule(QObject):
    """A module that is written in Python; its description is filled in by the script's class of the module's name."""

    name = stored(str, "")
    path = stored(str, "")
    title = stored(str, "")
    categories = stored("QStringList", [])
    contributors = stored("QStringList", [])
    dependencies = stored("QStringList", [])
    helpText = stored(str, "")
    acknowledgementText = stored(str, "")
    associatedNodeTypes = stored("QStringList", [])
    hidden = stored(bool, False)
    widgetRepresentationCreationEnabled = stored(bool, True)
    index = stored(int, -1)
    icon = stored(QIcon, QIcon())

    def __init__(self, path: Path):
        super().__init__()
        self.name, self.path = path.stem, str(path)
        self._widget: qSlicerScriptedLoadableModuleWidget | None = None
        self._logic = slicer.vtkSlicerScriptedLoadableModuleLogic()

    def logic(self) -> Any:
        return self._logic

    def widgetRepresentation(self) -> qSlicerScriptedLoadableModuleWidget:
        if self._widget is None:
            self._widget = self.createNewWidgetRepresentation()
        return self._widget

    def createNewWidgetRepresentation(self) -> qSlicerScriptedLoadableModuleWidget:
        widget = qSlicerScriptedLoadableModuleWidget()
        widget._python_source = self.path
        widget.setMRMLScene(slicer.mrmlScene)
        widget.reload()
        return widget


@stands_in()
class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The C++ widget around the script's <Name>Widget, which is `self()`."""

    def __init__(self, parent: Any = None):
        super().__init__(parent)
        QVBoxLayout(self)
        self._python_source = ""
        self._self: Any = None
        self._entered = False

    def self(self) -> Any:
        return self._self

    def reload(self) -> None:
        """Make the script's widget, with the class that the imported script has now."""
        class_name = Path(self._python_source).stem + "Widget"
        self._self = getattr(sys.modules[Path(self._python_source).stem], class_name)(self)
        setattr(slicer.modules, class_name, self._self)
        self._self.setup()

    isEntered = Property(bool, lambda self: self._entered)

    def enter(self) -> None:
        self._entered = True
        self._call_optional("enter")

    def exit(self) -> None:
        self._entered = False
        self._call_optional("exit")

    def setEditedNode(self, node: Any, role: str = "", context: str = "") -> bool:
        return bool(self._call_optional("setEditedNode", node, role, context))

    def _call_optional(self, name: str, *arguments: Any) -> Any:
        method: Callable | None = getattr(self._self, name, None)
        return method(*arguments) if method is not None else None


def load_scripted_module(path: Path, manager: qSlicerModuleManager) -> qSlicerScriptedLoadableModule:
    """Load NAME.py (or the folder NAME that has it) as at Slicer's start: the panel is made when it is needed."""
    path = path / f"{path.name}.py" if path.is_dir() else path
    name = path.stem
    added_to_path = str(path.parent) not in sys.path
    if added_to_path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script
    spec.loader.exec_module(script)
    module = qSlicerScriptedLoadableModule(path)
    module._added_to_path = added_to_path
    module._description = getattr(script, name)(module)
    manager._add(module)
    return module


def unload_scripted_module(module: qSlicerScriptedLoadableModule, manager: qSlicerModuleManager) -> None:
    """What Slicer does with it at its end; and forget the script and its library (NAMELib), for the next test."""
    manager._unload(module.name)
    if module._widget is not None:
        module._widget.delete()
    folder = Path(module.path).parent
    if module._added_to_path and str(folder) in sys.path:
        sys.path.remove(str(folder))
    library = f"{module.name}Lib"
    for name in [n for n in sys.modules if n in (module.name, library) or n.startswith(f"{library}.")]:
        del sys.modules[name]
