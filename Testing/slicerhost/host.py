"""The one host of a process: starts the emulated application, and gives a test its handles."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Before VTK makes its first window: there is no display to open one on.
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

import shiboken6

from slicerhost import pythonqt
from slicerhost.dialogs import Dialogs

BASE_PYTHON = Path(__file__).parent / "base_python"


class SlicerHost:
    """What a test holds on to; the code under test sees only ``slicer``, ``qt``, ``ctk`` and ``vtk``."""

    _instance: SlicerHost | None = None

    @classmethod
    def instance(cls) -> SlicerHost:
        if cls._instance is None:
            cls._instance = cls()
        return cls._instance

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="slicerhost-"))
        atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
        self.dialogs = Dialogs()
        self.errors: list[BaseException] = []  # raised inside a slot or an observer, where nobody can catch them
        pythonqt.install()
        import slicer
        import slicer.util

        from slicerhost import ctk_widgets, layout, main_window, modules, scene, segment_editor, uiloader
        from slicerhost.application import qSlicerApplication
        from slicerhost.standin import STAND_INS

        del segment_editor  # imported for the classes that it adds to the stand-ins
        ctk_widgets.install()
        sys.modules["qt"].QUiLoader = uiloader.UiLoader
        for name, cls in STAND_INS.items():
            if name.startswith(("qMRML", "qSlicer")):
                setattr(slicer, name, cls)
        self._modules_room = modules
        self.app = slicer.app = qSlicerApplication(self.folder)
        self._make_python_slicer()
        self.scene, logic, logics = scene.make_scene(self.folder)
        slicer.mrmlScene = self.scene
        self._hierarchy_filler = scene.SubjectHierarchyFiller(self.scene)
        self.module_manager = modules.qSlicerModuleManager()
        settings = sys.modules["qt"].QSettings
        self.app._parts = SimpleNamespace(
            scene=self.scene,
            logic=logic,
            logics=logics,
            module_manager=self.module_manager,
            io_manager=scene.qSlicerCoreIOManager(self.scene, logics),
            layout_manager=layout.qSlicerLayoutManager(self.scene, logic),
            settings=settings(),
            revision_settings=settings(str(self.folder / "settings" / "revision.ini"), settings.IniFormat),
            command_options=SimpleNamespace(runPythonAndExit=False),
        )
        modules.make_namespaces(logics, self.module_manager)
        slicer.__path__.append(self._base_python())
        self.dialogs.install()
        self._watch_processes()
        self.main_window = main_window.qSlicerMainWindow()
        sys.excepthook = self._keep_error

    @staticmethod
    def _base_python() -> str:
        """The folder with ScriptedLoadableModule.py and the like: Slicer's own where it is named, ours otherwise."""
        real = os.environ.get("SLICER_BASE_PYTHON")
        if not real:
            return str(BASE_PYTHON)
        folder = Path(real) / "slicer"
        if not (folder / "ScriptedLoadableModule.py").is_file():
            raise FileNotFoundError(f"SLICER_BASE_PYTHON={real} has no slicer/ScriptedLoadableModule.py")
        return str(folder)

    @property
    def uses_real_base_python(self) -> bool:
        return bool(os.environ.get("SLICER_BASE_PYTHON"))

    def _make_python_slicer(self) -> None:
        """`PythonSlicer` on the PATH: this interpreter.

        Like Slicer's launcher it stays there as the parent of the interpreter, which survives it when it is killed.
        """
        folder = self.folder / "bin"
        folder.mkdir()
        launcher = folder / "PythonSlicer"
        launcher.write_text(f'#!/bin/sh\n"{sys.executable}" "$@"\nexit $?\n', encoding="utf-8")
        launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"

    def _watch_processes(self) -> None:
        """Slicer never closes the pipe of a process that it started; here that would be a warning in a later test."""
        import slicer.util

        launch, self._processes = slicer.util.launchConsoleProcess, []

        @functools.wraps(launch)
        def launch_and_remember(*args: Any, **kwargs: Any) -> subprocess.Popen:
            self._processes.append(launch(*args, **kwargs))
            return self._processes[-1]

        slicer.util.launchConsoleProcess = launch_and_remember

    def _end_processes(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            process.stdout.close()
        self._processes.clear()

    def _keep_error(self, kind: type, error: BaseException, trace: Any) -> None:
        self.errors.append(error)
        traceback.print_exception(kind, error, trace)

    # Messages, in short
    @property
    def messages(self) -> list:
        """The dialogs shown so far: each has kind, text, title and detail."""
        return self.dialogs.messages

    def answer(self, *answers: Any) -> None:
        """What the next dialogs return, in this order."""
        self.dialogs.answers.extend(answers)

    # Time
    def process_events(self, seconds: float = 0.0) -> None:
        """Run the event loop for so long: once at least."""
        end = time.monotonic() + seconds
        self.app.processEvents()
        while time.monotonic() < end:
            self.app.processEvents()
            time.sleep(0.002)

    def wait_until(self, condition: Callable[[], Any], timeout_s: float = 10.0, what: str = "it") -> Any:
        """Run the event loop until the condition holds, and return what it gave; AssertionError after the time."""
        end = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"waited {timeout_s} s in vain for {what}")
            self.app.processEvents()
            time.sleep(0.002)
        return value

    # Modules
    def load_module(self, path: Path | str) -> Any:
        """Load a scripted module by its file or folder, as Slicer does at its start; returns the module object."""
        return self._modules_room.load_scripted_module(Path(path), self.module_manager)

    def show_module(self, name: str) -> Any:
        """Choose the module in the module selector of a window that is shown; returns the script's widget object."""
        import slicer

        self.main_window.show()
        slicer.util.selectModule(name)
        self.process_events()
        return slicer.util.getModuleWidget(name)

    def unload_modules(self) -> None:
        self.main_window.moduleSelector()._leave()
        for name in self.module_manager.modulesNames():
            module = self.module_manager.module(name)
            if isinstance(module, self._modules_room.qSlicerScriptedLoadableModule):
                self._modules_room.unload_scripted_module(module, self.module_manager)

    # Scenes
    def save_scene(self, path: Path | str) -> Path:
        import slicer

        if not slicer.util.saveScene(str(path), {}):
            raise AssertionError(f"the scene was not saved as {path}")
        return Path(path)

    def close_scene(self) -> None:
        """File > Close Scene."""
        self.scene.Clear(0)
        self.process_events()

    def load_scene(self, path: Path | str) -> None:
        """File > Load, with the scene closed first."""
        import slicer

        slicer.util.loadNodeFromFile(str(path), "SceneFile", {"clear": True})
        self.process_events()

    def reset(self) -> None:
        """Back to how a new Slicer stands: no module, an empty scene, default settings, nothing said."""
        self.unload_modules()
        self._end_processes()
        self.close_scene()
        for node in list(self.scene.GetNodesByClass("vtkMRMLScriptedModuleNode")):
            self.scene.RemoveNode(node)  # singletons outlive a closed scene
        for widget in self.app.topLevelWidgets():
            # Deleting one deletes others: a combo box has a top-level list of its own.
            if shiboken6.isValid(widget) and widget is not self.main_window and widget.parent() is None:
                widget.delete()
        self.main_window.hide()
        self.app.settings().clear()
        self.app._testing = False
        self.app._parts.layout_manager._reset_slice_nodes()
        self.process_events()
        self.dialogs.messages.clear()
        self.dialogs.answers.clear()
        self.errors.clear()
