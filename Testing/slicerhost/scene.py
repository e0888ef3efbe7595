"""The MRML scene with its logics, as the application wires them, and the reading and writing of files."""

from __future__ import annotations

import colorsys
import os
from pathlib import Path
from typing import Any

import slicer
import vtk

# By the name of the Slicer module that owns the logic. Colors first: the others look for default colour tables.
LOGICS = {
    "Colors": "vtkSlicerColorLogic",
    "Units": "vtkSlicerUnitsLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Cameras": "vtkSlicerCamerasModuleLogic",
    "Volumes": "vtkSlicerVolumesLogic",
    "Models": "vtkSlicerModelsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Texts": "vtkSlicerTextsLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
}


def make_scene(home: Path) -> tuple[Any, Any, dict[str, Any]]:
    """A scene, its application logic and the modules' logics; the last must be kept, VTK only points at them."""
    scene = slicer.vtkMRMLScene()
    logics = {"RemoteIO": slicer.vtkMRMLRemoteIOLogic(), "DataIOManager": slicer.vtkDataIOManagerLogic()}
    application_logic = slicer.vtkSlicerApplicationLogic()
    application_logic.SetHomeDirectory(str(home))
    application_logic.SetTemporaryPath(str(home / "temporary"))
    # slicer-core has no share/ folder: the logics say that they miss their colour and terminology files.
    vtk.vtkObject.GlobalWarningDisplayOff()
    try:
        application_logic.SetMRMLScene(scene)
        _set_up_files(scene, application_logic, home, logics["RemoteIO"], logics["DataIOManager"])
        slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance().SetMRMLApplicationLogic(application_logic)
        slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance().SetMRMLApplicationLogic(application_logic)
        for name, class_name in LOGICS.items():
            logics[name] = logic = getattr(slicer, class_name)()
            logic.SetMRMLApplicationLogic(application_logic)
            logic.SetMRMLScene(scene)
            application_logic.SetModuleLogic(name, logic)
        application_logic.SetColorLogic(logics["Colors"])
    finally:
        vtk.vtkObject.GlobalWarningDisplayOn()
    _add_generic_colours(scene)
    return scene, application_logic, logics


def _add_generic_colours(scene: Any) -> None:
    """A table under the name by which every label map looks for its colours; Slicer reads its own from a file."""
    colours = slicer.vtkMRMLColorTableNode()
    colours.SetSingletonTag("FileGenericColors.txt")
    colours.SetName("GenericColors")
    colours.SetHideFromEditors(True)
    colours.SetTypeToUser()
    colours.SetNumberOfColors(256)
    colours.SetColor(0, "background", 0.0, 0.0, 0.0, 0.0)
    for value in range(1, 256):
        # Steps of the golden angle around the colour circle: neighbours in value are far apart in hue.
        red, green, blue = colorsys.hsv_to_rgb(value * 0.381966 % 1.0, 0.7, 0.9)
        colours.SetColor(value, f"region {value}", red, green, blue, 1.0)
    scene.AddNode(colours)


def _set_up_files(scene: Any, application_logic: Any, home: Path, remote: Any, manager: Any) -> None:
    """Without a cache folder the scene reads no .mrb."""
    cache = home / "cache"
    cache.mkdir()
    remote.GetCacheManager().SetRemoteCacheDirectory(str(cache))
    manager.SetMRMLApplicationLogic(application_logic)
    manager.SetAndObserveDataIOManager(remote.GetDataIOManager())
    application_logic.SetMRMLSceneDataIO(scene, remote, manager)
    remote.SetMRMLScene(scene)


class SubjectHierarchyFiller:
    """Gives every data node its place in the subject hierarchy, which in Slicer a Qt plugin of each type does.

    New nodes come to the top; a segmentation is not moved beside its volume by itself, as Slicer's plugin would.
    """

    DATA_NODES = (
        "vtkMRMLVolumeNode",
        "vtkMRMLSegmentationNode",
        "vtkMRMLTransformNode",
        "vtkMRMLModelNode",
        "vtkMRMLMarkupsNode",
        "vtkMRMLTableNode",
        "vtkMRMLTextNode",
    )

    def __init__(self, scene: Any):
        self._scene = scene
        scene.AddObserver(scene.NodeAddedEvent, self._node_added)
        scene.AddObserver(scene.NodeAboutToBeRemovedEvent, self._node_leaves)
        scene.AddObserver(scene.EndImportEvent, lambda caller, event: self._fill())
        scene.AddObserver(scene.EndCloseEvent, lambda caller, event: self._hierarchy())

    def _hierarchy(self) -> Any:
        """The one hierarchy: made where there is none, merged where a scene file brought a second."""
        return slicer.vtkMRMLSubjectHierarchyNode.ResolveSubjectHierarchy(self._scene)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _node_added(self, scene: Any, event: str, node: Any) -> None:
        if node.IsA("vtkMRMLSubjectHierarchyNode"):
            self._hierarchy()
        elif not scene.IsImporting():  # a scene file brings its own hierarchy
            self._place(node)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _node_leaves(self, scene: Any, event: str, node: Any) -> None:
        if scene.IsClosing() or node.IsA("vtkMRMLSubjectHierarchyNode"):
            return
        hierarchy = self._hierarchy()
        item = hierarchy.GetItemByDataNode(node)
        if item:
            hierarchy.RemoveItem(item, False, False)

    def _fill(self) -> None:
        for index in range(self._scene.GetNumberOfNodes()):
            self._place(self._scene.GetNthNode(index))

    def _place(self, node: Any) -> None:
        if node.GetHideFromEditors() or not any(node.IsA(name) for name in self.DATA_NODES):
            return
        hierarchy = self._hierarchy()
        if not hierarchy.GetItemByDataNode(node):
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)


class qSlicerCoreIOManager:
    """Reads and writes by the file's ending: what slicer.util's load and save functions need."""

    READERS = (
        ("SceneFile", (".mrb", ".mrml")),
        ("SegmentationFile", (".seg.nrrd", ".seg.nhdr", ".seg.vtm", ".stl", ".obj")),
        ("TransformFile", (".h5", ".hdf5", ".tfm", ".mat", ".txt")),
        ("MarkupsFile", (".mrk.json", ".fcsv")),
        ("TableFile", (".csv", ".tsv")),
        ("ModelFile", (".vtk", ".vtp", ".ply")),
        ("VolumeFile", (".nrrd", ".nhdr", ".nii.gz", ".nii", ".mha", ".mhd")),
    )

    def __init__(self, scene: Any, logics: dict[str, Any]):
        self._scene, self._logics = scene, logics

    def fileType(self, filename: str) -> str:
        endings = ((kind, ending) for kind, all_endings in self.READERS for ending in all_endings)
        return next((kind for kind, ending in endings if str(filename).lower().endswith(ending)), "NoFile")

    def loadNodes(self, file_type: str, properties: dict, loaded: Any = None, messages: Any = None) -> bool:
        path = properties["fileName"]
        if file_type == "SceneFile":
            return self._load_scene(path, clear=properties.get("clear", False))
        readers = {
            "VolumeFile": self._load_volume,
            "SegmentationFile": lambda p, _: self._logics["Segmentations"].LoadSegmentationFromFile(p, True),
            "TransformFile": lambda p, _: self._logics["Transforms"].AddTransform(p, self._scene),
            "MarkupsFile": lambda p, _: self._scene.GetNodeByID(self._logics["Markups"].LoadMarkups(p, "") or ""),
            "TableFile": lambda p, _: self._logics["Tables"].AddTable(p),
            "ModelFile": lambda p, _: self._logics["Models"].AddModel(p),
        }
        if file_type not in readers or not os.path.exists(path):
            return False
        node = readers[file_type](path, properties)
        if node is None:
            return False
        if properties.get("name"):
            node.SetName(properties["name"])
        if loaded is not None:
            loaded.AddItem(node)
        return True

    def _load_volume(self, path: str, properties: dict) -> Any:
        name = properties.get("name") or os.path.basename(path).split(".")[0]
        logic = self._logics["Volumes"]
        node = logic.AddArchetypeVolume(path, name, 1 if properties.get("labelmap") else 0)
        if node is not None and properties.get("show", True) and not node.IsA("vtkMRMLLabelMapVolumeNode"):
            selection = slicer.app.applicationLogic().GetSelectionNode()
            selection.SetActiveVolumeID(node.GetID())
            slicer.app.applicationLogic().PropagateVolumeSelection()
        return node

    def _load_scene(self, path: str, clear: bool) -> bool:
        if not os.path.exists(path):
            return False
        if path.lower().endswith(".mrb"):
            return bool(self._scene.ReadFromMRB(path, clear))
        self._scene.SetURL(path)
        return bool(self._scene.Connect() if clear else self._scene.Import())

    def saveNodes(self, file_type: str, properties: dict, messages: Any = None) -> bool:
        path = properties["fileName"]
        if file_type == "SceneFile":
            return self._save_scene(path)
        node = self._scene.GetNodeByID(properties["nodeID"])
        if node.GetStorageNode() is None:
            node.AddDefaultStorageNode()
        node.GetStorageNode().SetFileName(str(path))
        return bool(node.GetStorageNode().WriteData(node))

    def _save_scene(self, path: str) -> bool:
        if path.lower().endswith(".mrb"):
            return bool(self._scene.WriteToMRB(path, None))
        if path.lower().endswith(".mrml"):
            self._scene.SetURL(path)
            return bool(self._scene.Commit())
        return bool(slicer.app.applicationLogic().SaveSceneToSlicerDataBundleDirectory(path, None))

    def exportNodes(self, node_ids: list, paths: list, properties: dict, harden: bool, messages: Any = None) -> bool:
        if harden:
            raise NotImplementedError("the test host does not export in the world coordinate system")
        written = []
        for node_id, path in zip(node_ids, paths, strict=True):
            node = self._scene.GetNodeByID(node_id)
            storage = node.CreateDefaultStorageNode()
            storage.UnRegister(None)
            storage.SetFileName(str(path))
            written.append(bool(storage.WriteData(node)))
        return all(written)

    def fileWriterFileType(self, node: Any, file_format: str = "") -> str:
        return "NodeFile"

    def extractKnownExtension(self, filename: str, node: Any) -> str:
        endings = [ending for _, all_endings in self.READERS for ending in all_endings]
        return max((e for e in endings if str(filename).lower().endswith(e)), key=len, default="")

    def fileWriterExtensions(self, node: Any) -> list[str]:
        kinds = {
            "vtkMRMLSegmentationNode": "SegmentationFile",
            "vtkMRMLTransformNode": "TransformFile",
            "vtkMRMLMarkupsNode": "MarkupsFile",
            "vtkMRMLTableNode": "TableFile",
            "vtkMRMLModelNode": "ModelFile",
            "vtkMRMLVolumeNode": "VolumeFile",
        }
        wanted = {kind for node_class, kind in kinds.items() if node.IsA(node_class)}
        return [f"{kind} ({ending})" for kind, endings in self.READERS if kind in wanted for ending in endings]
