"""A real MRML scene without the application: Slicer's C++ libraries from PyPI's slicer-core."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from scene_data import OBLIQUE

REASON = "" if importlib.util.find_spec("slicer_core") else "needs slicer-core: pip install -e '.[slicer]'"
if not REASON:
    import slicer

    if "slicer.i18n" not in sys.modules and importlib.util.find_spec("slicer.i18n") is None:
        # The application's translations; slicer-core comes without.
        i18n = types.ModuleType("slicer.i18n")
        i18n.tr, i18n.translate = (lambda text: text), (lambda context, text: text)
        sys.modules["slicer.i18n"] = slicer.i18n = i18n

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "WeakTumourSeg"))


class SkippedModule(pytest.Module):
    """A test file that cannot even be imported here."""

    def collect(self):
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return SkippedModule.from_parent(parent, path=module_path) if REASON else None


def newScene(cacheFolder: Path) -> tuple[object, list[object]]:
    """A scene with the logics that register its node and storage classes; keep them as long as the scene.

    cacheFolder: where scene bundles are unpacked.
    """
    application = slicer.vtkSlicerApplicationLogic()
    scene = slicer.vtkMRMLScene()
    application.SetMRMLScene(scene)
    cache, manager = slicer.vtkCacheManager(), slicer.vtkDataIOManager()
    cache.SetRemoteCacheDirectory(str(cacheFolder))
    manager.SetCacheManager(cache)
    scene.SetCacheManager(cache)
    scene.SetDataIOManager(manager)
    logics = [application, cache, manager]
    for name in (
        "vtkSlicerVolumesLogic",
        "vtkSlicerSegmentationsModuleLogic",
        "vtkSlicerTransformLogic",
        "vtkSlicerSubjectHierarchyModuleLogic",
        "vtkSlicerSequencesLogic",
    ):
        logic = getattr(slicer, name)()
        logic.SetMRMLScene(scene)
        logics.append(logic)
    return scene, logics


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    scene, logics = newScene(tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(slicer, "mrmlScene", scene, raising=False)
    yield scene
    scene.Clear(1)
    del logics


@pytest.fixture
def addVolume(scene) -> Callable[..., object]:
    from WeakTumourSegLib import geometry

    def add(voxels: np.ndarray, ijkToRas: np.ndarray = OBLIQUE, name: str = "volume") -> object:
        node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", name)
        node.SetAndObserveImageData(geometry.plainImage(voxels))
        node.SetIJKToRASMatrix(geometry.arrayToMatrix(ijkToRas))
        return node

    return add


@pytest.fixture
def addTransform(scene) -> Callable[..., object]:
    from WeakTumourSegLib import geometry

    def add(matrix: np.ndarray, *nodes: object, parent: object = None) -> object:
        transform = scene.AddNewNodeByClass("vtkMRMLTransformNode", "transform")
        transform.SetMatrixTransformToParent(geometry.arrayToMatrix(matrix))
        if parent is not None:
            transform.SetAndObserveTransformNodeID(parent.GetID())
        for node in nodes:
            node.SetAndObserveTransformNodeID(transform.GetID())
        return transform

    return add


@pytest.fixture
def bend(scene) -> Callable[..., object]:
    """Put nodes under a non-linear transform."""

    def add(*nodes: object) -> object:
        import vtk

        spline = vtk.vtkThinPlateSplineTransform()
        spline.SetBasisToR()
        source, target = vtk.vtkPoints(), vtk.vtkPoints()
        for corner in np.ndindex(2, 2, 2):
            source.InsertNextPoint(*(100.0 * np.array(corner)))
            target.InsertNextPoint(*(100.0 * np.array(corner) + (8.0 if corner == (1, 1, 1) else 0.0)))
        spline.SetSourceLandmarks(source)
        spline.SetTargetLandmarks(target)
        transform = scene.AddNewNodeByClass("vtkMRMLTransformNode", "bend")
        transform.SetAndObserveTransformToParent(spline)
        for node in nodes:
            node.SetAndObserveTransformNodeID(transform.GetID())
        return transform

    return add


@pytest.fixture
def addSegmentation(scene) -> Callable[..., object]:
    """segments: {name: mask (k, j, i) on the volume's grid}."""
    from WeakTumourSegLib import geometry

    def add(volume: object, segments: dict[str, np.ndarray], name: str = "segmentation") -> object:
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
        node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        for segmentName, mask in segments.items():
            segment = slicer.vtkSegment()
            segment.SetName(segmentName)
            image = geometry.orientedImage(mask.astype(np.uint8), geometry.ijkToNode(volume))
            representation = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
            segment.AddRepresentation(representation, image)
            node.GetSegmentation().AddSegment(segment)
        return node

    return add
