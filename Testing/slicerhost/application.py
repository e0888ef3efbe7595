"""``slicer.app``: the application object, with its settings in a temporary folder."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PySide6.QtCore import Property, QProcessEnvironment, QSettings, Signal
from PySide6.QtWidgets import QApplication

from slicerhost.standin import stands_in

VERSION = (5, 12, 4)


@stands_in("mrmlSceneChanged(vtkMRMLScene*)")
class qSlicerApplication(QApplication):
    startupCompleted = Signal()
    mrmlSceneChanged = Signal(object)

    def __init__(self, folder: Path):
        super().__init__(["Slicer"])
        self.setApplicationName("Slicer")
        self.setOrganizationName("slicer.org")
        self.setQuitOnLastWindowClosed(False)
        QSettings.setDefaultFormat(QSettings.Format.IniFormat)
        QSettings.setPath(QSettings.Format.IniFormat, QSettings.Scope.UserScope, str(folder / "settings"))
        self._folder = folder
        self._temporary_path = str(folder / "temporary")
        os.makedirs(self._temporary_path)
        self._startup_environment = QProcessEnvironment.systemEnvironment()  # before PythonSlicer is put on the PATH
        self._testing = False
        self._renders_paused = 0
        # Set by the host, which makes them once there is a scene.
        self._parts: SimpleNamespace = SimpleNamespace()

    def _set_temporary_path(self, path: str) -> None:
        os.makedirs(path, exist_ok=True)
        self._temporary_path = path

    temporaryPath = Property(str, lambda self: self._temporary_path, _set_temporary_path)
    slicerHome = Property(str, lambda self: str(self._folder))
    extensionsInstallPath = Property(str, lambda self: str(self._folder / "extensions"))
    startupWorkingPath = Property(str, lambda self: os.getcwd())
    launcherExecutableFilePath = Property(str, lambda self: "")
    isInstalled = Property(bool, lambda self: True)
    majorVersion = Property(int, lambda self: VERSION[0])
    minorVersion = Property(int, lambda self: VERSION[1])
    mainApplicationName = Property(str, lambda self: "Slicer")
    revision = Property(str, lambda self: "0")
    repositoryRevision = Property(str, lambda self: "0")
    os = Property(str, lambda self: {"Darwin": "macosx", "Windows": "win"}.get(platform.system(), "linux"))
    arch = Property(str, lambda self: platform.machine())
    documentationBaseUrl = Property(str, lambda self: "https://slicer.readthedocs.io/en/latest/")

    def mrmlScene(self) -> Any:
        return self._parts.scene

    def applicationLogic(self) -> Any:
        return self._parts.logic

    def moduleLogic(self, name: str) -> Any:
        return self._parts.logic.GetModuleLogic(name)

    def moduleManager(self) -> Any:
        return self._parts.module_manager

    def layoutManager(self) -> Any:
        return self._parts.layout_manager

    def coreIOManager(self) -> Any:
        return self._parts.io_manager

    def ioManager(self) -> Any:
        return self._parts.io_manager

    def userSettings(self) -> QSettings:
        return self._parts.settings

    def settings(self) -> QSettings:
        return self._parts.settings

    def revisionUserSettings(self) -> QSettings:
        return self._parts.revision_settings

    def startupEnvironment(self) -> QProcessEnvironment:
        """As it was before Slicer's own folders came into it: a program of Slicer's needs its full path there."""
        return self._startup_environment

    def environment(self) -> QProcessEnvironment:
        return QProcessEnvironment.systemEnvironment()

    def testingEnabled(self) -> bool:
        return self._testing

    def commandOptions(self) -> Any:
        return self._parts.command_options

    def moduleDocumentationUrl(self, name: str) -> str:
        return f"{self.documentationBaseUrl}user_guide/modules/{name.lower()}.html"

    def pauseRender(self) -> None:
        self._renders_paused += 1

    def resumeRender(self) -> None:
        self._renders_paused -= 1

    def setRenderPaused(self, paused: bool) -> None:
        self._renders_paused += 1 if paused else -1
