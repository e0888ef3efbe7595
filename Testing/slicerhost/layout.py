"""The layout manager with its three slice views and one 3-D view, as far as a script touches them.

The logics and nodes are the real ones, so that showing a volume, jumping to a point and fitting work; pixels are drawn
only when asked for (views.py).
"""

from __future__ import annotations

from typing import Any

import slicer
import vtk
from PySide6.QtCore import Property, QObject, Signal
from PySide6.QtWidgets import QWidget

from slicerhost.mrml_widgets import qMRMLWidget
from slicerhost.standin import stands_in

SLICES = {"Red": ("Axial", "R"), "Green": ("Coronal", "G"), "Yellow": ("Sagittal", "Y")}
VIEW_SIZE = 400  # pixels; the views of a Slicer window on a small screen


@stands_in()
class qMRMLSliceView(QWidget):
    def __init__(self, logic: Any):
        super().__init__()
        self._logic = logic
        self._rendering: Any = None

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()

    def _renderer(self) -> Any:
        """Made at the first drawing: most tests never draw."""
        if self._rendering is None:
            from slicerhost.views import SliceRendering

            self._rendering = SliceRendering(self._logic)
        return self._rendering

    def renderWindow(self) -> Any:
        return self._renderer().window

    def forceRender(self) -> None:
        if self._rendering is not None:
            self._rendering.render()

    def scheduleRender(self) -> None:
        self.forceRender()


@stands_in()
class qMRMLSliceControllerWidget(qMRMLWidget):
    def __init__(self, logic: Any):
        super().__init__()
        self._logic = logic

    def sliceLogic(self) -> Any:
        return self._logic

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        return self._logic.GetSliceCompositeNode()

    def fitSliceToBackground(self) -> None:
        self._logic.FitSliceToBackground()

    def setSliceOffsetValue(self, offset: float) -> None:
        self._logic.SetSliceOffset(offset)

    def setSliceVisible(self, visible: bool) -> None:
        self._logic.GetSliceNode().SetSliceVisible(visible)


@stands_in()
class qMRMLSliceWidget(qMRMLWidget):
    def __init__(self, logic: Any):
        super().__init__()
        self._logic = logic
        self._view = qMRMLSliceView(logic)
        self._controller = qMRMLSliceControllerWidget(logic)

    def sliceLogic(self) -> Any:
        return self._logic

    def mrmlSliceNode(self) -> Any:
        return self._logic.GetSliceNode()

    def mrmlSliceCompositeNode(self) -> Any:
        return self._logic.GetSliceCompositeNode()

    def sliceView(self) -> qMRMLSliceView:
        return self._view

    def sliceController(self) -> qMRMLSliceControllerWidget:
        return self._controller

    def fitSliceToBackground(self) -> None:
        self._logic.FitSliceToBackground()


@stands_in()
class qMRMLThreeDView(QWidget):
    def __init__(self, node: Any):
        super().__init__()
        self._node = node
        self._rendering: Any = None

    def mrmlViewNode(self) -> Any:
        return self._node

    def _renderer(self) -> Any:
        if self._rendering is None:
            from slicerhost.views import ThreeDRendering

            self._rendering = ThreeDRendering(self._node)
        return self._rendering

    def renderWindow(self) -> Any:
        return self._renderer().window

    def forceRender(self) -> None:
        if self._rendering is not None:
            self._rendering.render()

    def scheduleRender(self) -> None:
        self.forceRender()

    def resetFocalPoint(self) -> None:
        if self._rendering is not None:
            self._rendering.reset_camera()

    def resetCamera(self) -> None:
        self.resetFocalPoint()


@stands_in()
class qMRMLThreeDWidget(qMRMLWidget):
    def __init__(self, node: Any):
        super().__init__()
        self._view = qMRMLThreeDView(node)

    def threeDView(self) -> qMRMLThreeDView:
        return self._view

    def mrmlViewNode(self) -> Any:
        return self._view.mrmlViewNode()


@stands_in("layoutChanged(int)")
class qSlicerLayoutManager(QObject):
    layoutChanged = Signal(int)

    def __init__(self, scene: Any, application_logic: Any):
        super().__init__()
        self._scene = scene
        self._logics = vtk.vtkCollection()
        self._slice_widgets: dict[str, qMRMLSliceWidget] = {}
        for name, (orientation, label) in SLICES.items():
            logic = slicer.vtkMRMLSliceLogic()
            logic.SetMRMLApplicationLogic(application_logic)
            logic.SetMRMLScene(scene)
            node = logic.AddSliceNode(name)
            node.SetLayoutLabel(label)
            self._logics.AddItem(logic)
            self._slice_widgets[name] = qMRMLSliceWidget(logic)
            node.SetOrientation(orientation)
        application_logic.SetSliceLogics(self._logics)
        self._reset_slice_nodes()
        view_node = scene.AddNode(self._make_view_node())
        self._three_d_widget = qMRMLThreeDWidget(view_node)
        self._layout = 3  # SlicerLayoutConventionalView..FourUpView

    def _make_view_node(self) -> Any:
        node = slicer.vtkMRMLViewNode()
        node.SetSingletonTag("1")
        node.SetLayoutName("View1")
        node.SetLayoutLabel("1")
        node.SetName("View1")
        return node

    def _reset_slice_nodes(self) -> None:
        for name, (orientation, _) in SLICES.items():
            node = self._slice_widgets[name].mrmlSliceNode()
            node.SetOrientation(orientation)
            node.SetDimensions(VIEW_SIZE, VIEW_SIZE, 1)
            node.SetFieldOfView(250.0, 250.0, 1.0)
            node.JumpSliceByCentering(0.0, 0.0, 0.0)

    def mrmlScene(self) -> Any:
        return self._scene

    def sliceViewNames(self) -> list[str]:
        return list(self._slice_widgets)

    def sliceWidget(self, name: str) -> qMRMLSliceWidget | None:
        return self._slice_widgets.get(name)

    def mrmlSliceLogics(self) -> Any:
        return self._logics

    def threeDWidget(self, which: int | str) -> qMRMLThreeDWidget | None:
        return self._three_d_widget if which in (0, "View1") else None

    def resetSliceViews(self) -> None:
        for widget in self._slice_widgets.values():
            widget.fitSliceToBackground()

    def resetThreeDViews(self) -> None:
        self._three_d_widget.threeDView().resetFocalPoint()

    def setLayout(self, layout: int) -> None:
        if layout != self._layout:
            self._layout = layout
            self.layoutChanged.emit(layout)

    layout = Property(int, lambda self: self._layout, setLayout)
    threeDViewCount = Property(int, lambda self: 1)
    tableViewCount = Property(int, lambda self: 0)
    plotViewCount = Property(int, lambda self: 0)
