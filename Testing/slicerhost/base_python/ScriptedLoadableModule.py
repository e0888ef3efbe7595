"""Stand-in for the four base classes of a scripted module, by Slicer's documented behaviour.

Without the developer section (reload and test buttons) and without screenshots of tests.
"""

from __future__ import annotations

import importlib
import logging
import os
import unittest
from typing import Any

import qt
import slicer

__all__ = [
    "ScriptedLoadableModule",
    "ScriptedLoadableModuleLogic",
    "ScriptedLoadableModuleTest",
    "ScriptedLoadableModuleWidget",
]

PARAMETER_NODE_CLASS = "vtkMRMLScriptedModuleNode"


def _name_without(suffix: str, instance: object) -> str:
    return type(instance).__name__.removesuffix(suffix)


class ScriptedLoadableModule:
    """Describes a module; `parent` is the qSlicerScriptedLoadableModule that gets title, category and so on."""

    def __init__(self, parent: Any):
        super().__init__()
        self.parent = parent
        self.moduleName = type(self).__name__
        for extension in (".svg", ".png"):
            icon = self.resourcePath(f"Icons/{self.moduleName}{extension}")
            if os.path.isfile(icon):
                parent.icon = qt.QIcon(icon)
                break
        if not hasattr(slicer, "selfTests"):
            slicer.selfTests = {}
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, filename: str) -> str:
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        app = slicer.app
        url = app.documentationBaseUrl + docPage if docPage else app.moduleDocumentationUrl(self.moduleName)
        return f'<p>For more information see the <a href="{url}">online documentation</a>.</p>'

    def runTest(self, msec: int = 100, **kwargs: Any) -> None:
        """Run the module's <ModuleName>Test."""
        module = importlib.import_module(type(self).__module__)
        test_class = getattr(module, self.moduleName + "Test", None)
        if test_class is None:
            raise AssertionError(f"{module.__name__} has no class {self.moduleName}Test")
        test = test_class()
        test.messageDelay = msec
        test.runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    """The panel: setup() is called once, enter() and exit() as the user comes and goes, cleanup() at the end."""

    def __init__(self, parent: Any = None):
        super().__init__()
        self.moduleName = _name_without("Widget", self)
        self.developerMode = slicer.util.settingsValue("Developer/DeveloperMode", False, converter=slicer.util.toBool)
        self.parent = parent or self._make_parent()
        self.layout = self.parent.layout()
        if parent is None:
            self.setup()
            self.parent.show()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    @staticmethod
    def _make_parent() -> Any:
        parent = slicer.qMRMLWidget()
        parent.setLayout(qt.QVBoxLayout())
        parent.setMRMLScene(slicer.mrmlScene)
        return parent

    def resourcePath(self, filename: str) -> str:
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def setup(self) -> None:
        """Extended by the module; this one would show the developer section."""

    def cleanup(self) -> None:
        """Overridden by the module: lets go of everything."""

    def _onModuleAboutToBeUnloaded(self, moduleName: str) -> None:
        if moduleName == self.moduleName:
            self.cleanup()
            manager = slicer.app.moduleManager()
            manager.disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def onReload(self) -> None:
        slicer.util.reloadScriptedModule(self.moduleName)


class ScriptedLoadableModuleLogic:
    """What the module does, apart from its panel; keeps the module's parameters in a node of the scene."""

    def __init__(self, parent: Any = None):
        super().__init__()
        self.moduleName = _name_without("Logic", self)
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        """The module's parameter node; made where there is none."""
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, PARAMETER_NODE_CLASS)
            if node is not None:
                node.SetAttribute("ModuleName", self.moduleName)  # closing a scene takes attributes off singletons
                return node
        else:
            nodes = self.getAllParameterNodes()
            if nodes:
                return nodes[0]
        return slicer.mrmlScene.AddNode(self.createParameterNode())

    def getAllParameterNodes(self) -> list[Any]:
        nodes = slicer.util.getNodesByClass(PARAMETER_NODE_CLASS)
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def createParameterNode(self) -> Any:
        node = slicer.mrmlScene.CreateNodeByClass(PARAMETER_NODE_CLASS)
        node.UnRegister(None)  # Python holds it now
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """The module's own test, run inside Slicer: runTest() runs every test method unless the module says otherwise."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.messageDelay = 50
        self.moduleTestNames = [name for name in dir(self) if name.startswith("test") and callable(getattr(self, name))]

    def delayDisplay(self, message: str, requestedDelay: int | None = None, msec: int | None = None) -> None:
        slicer.util.delayDisplay(message, self.messageDelay)

    def runTest(self) -> None:
        for name in self.moduleTestNames:
            self.setUp()
            try:
                logging.info("Running %s", name)
                getattr(self, name)()
            finally:
                self.tearDown()
