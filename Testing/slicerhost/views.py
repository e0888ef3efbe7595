"""Pictures: slice views and the 3-D view through Slicer's own displayable managers, off screen, and panels.

Drawn by EGL, in software where there is no GPU. `missing_egl` says why a machine cannot; panels need none of it.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from PySide6.QtGui import QImage
from PySide6.QtWidgets import QWidget
from vtk.util.numpy_support import vtk_to_numpy

SLICE_MANAGERS = (
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLCrosshairDisplayableManager",
)
THREE_D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)


def missing_egl() -> str:
    """Why nothing can be rendered here, or an empty string."""
    if not sys.platform.startswith("linux"):
        return "off-screen rendering by EGL is for Linux"
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        return "needs libEGL.so.1 (Debian, Ubuntu: apt-get install libegl1)"
    window = vtk.vtkRenderWindow()
    if window.GetClassName() != "vtkEGLRenderWindow":
        return (
            f"VTK makes {window.GetClassName()}; set VTK_DEFAULT_OPENGL_WINDOW=vtkEGLRenderWindow before it is loaded"
        )
    return ""


class Rendering:
    """An off-screen window with one renderer and the displayable managers of a view node."""

    def __init__(self, factory: Any, managers: tuple[str, ...], view_node: Any, size: tuple[int, int]):
        reason = missing_egl()
        if reason:
            raise RuntimeError(reason)
        self.renderer = vtk.vtkRenderer()
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetSize(*size)
        self.window.AddRenderer(self.renderer)
        self.interactor = vtk.vtkRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)
        for name in managers:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self.group = factory.InstantiateDisplayableManagers(self.renderer)
        self.group.SetMRMLDisplayableNode(view_node)

    def render(self) -> None:
        self.window.Render()

    def picture(self) -> np.ndarray:
        """The view as it is drawn now: (rows, columns, 3), uint8, first row at the top."""
        self.render()
        grabber = vtk.vtkWindowToImageFilter()
        grabber.SetInput(self.window)
        grabber.ReadFrontBufferOff()
        grabber.Update()
        columns, rows, _ = grabber.GetOutput().GetDimensions()
        pixels = vtk_to_numpy(grabber.GetOutput().GetPointData().GetScalars())
        return pixels.reshape(rows, columns, 3)[::-1].copy()


class SliceRendering(Rendering):
    def __init__(self, logic: Any):
        self.logic = logic
        node = logic.GetSliceNode()
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        super().__init__(factory, SLICE_MANAGERS, node, node.GetDimensions()[:2])
        # The volumes are no displayable manager's business: the slice logic blends them into one image. A layer of its
        # own behind the others: in one layer it would be drawn after a segment's fill, and not where that is.
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._image = vtk.vtkActor2D()
        self._image.SetMapper(self._mapper)
        behind = vtk.vtkRenderer()
        behind.AddViewProp(self._image)
        self.window.SetNumberOfLayers(2)
        self.renderer.SetLayer(1)
        self.window.AddRenderer(behind)

    def render(self) -> None:
        self.window.SetSize(*self.logic.GetSliceNode().GetDimensions()[:2])
        blended = self.logic.GetImageDataConnection()
        self._image.SetVisibility(blended is not None)
        if blended is not None:
            self._mapper.SetInputConnection(blended)
        super().render()


class ThreeDRendering(Rendering):
    def __init__(self, view_node: Any, size: tuple[int, int] = (400, 400)):
        factory = slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance()
        super().__init__(factory, THREE_D_MANAGERS, view_node, size)

    def reset_camera(self) -> None:
        self.renderer.ResetCamera()


def slice_picture(name: str) -> np.ndarray:
    """The slice view Red, Green or Yellow as (rows, columns, 3)."""
    return slicer.app.layoutManager().sliceWidget(name).sliceView()._renderer().picture()


def three_d_picture() -> np.ndarray:
    """The 3-D view, with the camera set back to see everything."""
    rendering = slicer.app.layoutManager().threeDWidget(0).threeDView()._renderer()
    rendering.render()
    rendering.reset_camera()
    return rendering.picture()


def four_up_picture() -> np.ndarray:
    """Red and the 3-D view above Green and Yellow, as Slicer arranges them."""
    above = np.hstack([slice_picture("Red"), three_d_picture()])
    return np.vstack([above, np.hstack([slice_picture("Green"), slice_picture("Yellow")])])


def widget_picture(widget: QWidget) -> np.ndarray:
    """A widget as it looks now: (rows, columns, 3)."""
    image = widget.grab().toImage().convertToFormat(QImage.Format.Format_RGB888)
    pixels = np.frombuffer(image.constBits(), np.uint8).reshape(image.height(), image.bytesPerLine())
    return pixels[:, : 3 * image.width()].reshape(image.height(), image.width(), 3).copy()


def save_picture(picture: np.ndarray, path: Path | str) -> Path:
    rows, columns, _ = picture.shape
    data = np.ascontiguousarray(picture)
    if not QImage(data.data, columns, rows, 3 * columns, QImage.Format.Format_RGB888).save(str(path)):
        raise OSError(f"the picture could not be written to {path}")
    return Path(path)
