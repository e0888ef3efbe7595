"""Stand-in for the Segment Editor: the real editor logic and parameter node, with the smallest panel on top.

The effects have names and buttons and do nothing by themselves; `paint` and `erase` are the strokes of a test's brush,
made through the real logic, so that masking, undo and redo are Slicer's.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import slicer
from PySide6.QtCore import Property, Qt, Signal
from PySide6.QtGui import QKeySequence, QShortcut
from PySide6.QtWidgets import QHBoxLayout, QToolButton, QVBoxLayout, QWidget
from vtk.util.numpy_support import vtk_to_numpy

from slicerhost.mrml_widgets import SegmentationFollower, qMRMLNodeComboBox, qMRMLSegmentsTableView, qMRMLWidget
from slicerhost.standin import stands_in, stored

EFFECTS = ("Threshold", "Paint", "Draw", "Erase", "Level tracing", "Grow from seeds", "Fill between slices", "Margin")
EFFECTS += ("Hollow", "Smoothing", "Scissors", "Islands", "Logical operators", "Mask volume")


@stands_in(
    "sourceVolumeNodeChanged(vtkMRMLVolumeNode*)",
    "segmentationNodeChanged(vtkMRMLSegmentationNode*)",
)
class qMRMLSegmentEditorWidget(qMRMLWidget):
    currentSegmentIDChanged = Signal(str)
    sourceVolumeNodeChanged = Signal(object)
    segmentationNodeChanged = Signal(object)
    maskingSectionVisible = stored(bool, True)
    specifyGeometryButtonVisible = stored(bool, True)
    show3DButtonVisible = stored(bool, True)
    addRemoveSegmentButtonsVisible = stored(bool, True)
    autoShowSourceVolumeNode = stored(bool, True)
    switchToSegmentationsButtonVisible = stored(bool, True)
    readOnly = stored(bool, False)
    effectButtonStyle = stored(Qt.ToolButtonStyle, Qt.ToolButtonStyle.ToolButtonIconOnly)
    effectColumnCount = stored(int, 2)
    unorderedEffectsVisible = stored(bool, True)
    defaultTerminologyEntrySettingsKey = stored(str, "")
    defaultTerminologyEntry = stored(str, "")
    jumpToSelectedSegmentEnabled = stored(bool, False)

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        self._logic.SetMaximumNumberOfUndoStates(10)
        self._editor_node: Any = None
        self._effect = self._last_effect = ""
        self._shortcuts: list[QShortcut] = []
        self._effect_order = list(EFFECTS)
        self._undo_enabled = True
        self._segmentation_selector = _selector(self, "vtkMRMLSegmentationNode")
        self._volume_selector = _selector(self, "vtkMRMLScalarVolumeNode")
        self._table = qMRMLSegmentsTableView(self)
        self._undo_button, self._redo_button = QToolButton(self), QToolButton(self)
        self._effect_buttons = {name: _effect_button(self, name) for name in EFFECTS}
        self._lay_out()
        self._follower = SegmentationFollower(self, self._segments_changed)
        self._segmentation_selector.currentNodeChanged[object].connect(self.setSegmentationNode)
        self._volume_selector.currentNodeChanged[object].connect(self.setSourceVolumeNode)
        self._table.selectionChanged.connect(self._row_selected)
        self._undo_button.clicked.connect(self.undo)
        self._redo_button.clicked.connect(self.redo)
        self._update_buttons()

    def _lay_out(self) -> None:
        self._undo_button.setText("Undo")
        self._redo_button.setText("Redo")
        layout, effects, undo = QVBoxLayout(self), QHBoxLayout(), QHBoxLayout()
        for widget in (self._segmentation_selector, self._volume_selector, self._table):
            layout.addWidget(widget)
        for name in EFFECTS[:4]:
            effects.addWidget(self._effect_buttons[name])
        undo.addWidget(self._undo_button)
        undo.addWidget(self._redo_button)
        layout.addLayout(effects)
        layout.addLayout(undo)

    # Nodes
    def setMRMLScene(self, scene: Any) -> None:
        self._logic.SetMRMLScene(scene)
        self._segmentation_selector.setMRMLScene(scene)
        self._volume_selector.setMRMLScene(scene)
        qMRMLWidget.setMRMLScene(self, scene)

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        self._editor_node = node
        self._logic.SetSegmentEditorNode(node)
        self.updateWidgetFromMRML()

    def mrmlSegmentEditorNode(self) -> Any:
        return self._editor_node

    def updateWidgetFromMRML(self) -> None:
        node = self._editor_node
        self.setSegmentationNode(node.GetSegmentationNode() if node is not None else None)
        self.setSourceVolumeNode(node.GetSourceVolumeNode() if node is not None else None)

    def segmentationNode(self) -> Any:
        return self._editor_node.GetSegmentationNode() if self._editor_node is not None else None

    def segmentationNodeID(self) -> str:
        return self.segmentationNode().GetID() if self.segmentationNode() is not None else ""

    def setSegmentationNode(self, node: Any) -> None:
        if node is self._follower.node:
            return
        if node is not None and self._editor_node is None:
            raise RuntimeError("setSegmentationNode: the Segment Editor has no parameter node yet")
        self._follower.follow(node)
        if self._editor_node is not None:
            self._logic.SetSegmentationNode(node)
        self._segmentation_selector.setCurrentNode(node)
        self._table.setSegmentationNode(node)
        self._segments_changed()
        self.segmentationNodeChanged.emit(node)

    def setSegmentationNodeID(self, node_id: str) -> None:
        self.setSegmentationNode(slicer.mrmlScene.GetNodeByID(node_id))

    def sourceVolumeNode(self) -> Any:
        return self._editor_node.GetSourceVolumeNode() if self._editor_node is not None else None

    def sourceVolumeNodeID(self) -> str:
        return self.sourceVolumeNode().GetID() if self.sourceVolumeNode() is not None else ""

    def setSourceVolumeNode(self, node: Any) -> None:
        if self._editor_node is not None and node is not self.sourceVolumeNode():
            self._logic.SetSourceVolumeNode(node)
            self.sourceVolumeNodeChanged.emit(node)
        self._volume_selector.setCurrentNode(node)

    def setSourceVolumeNodeID(self, node_id: str) -> None:
        self.setSourceVolumeNode(slicer.mrmlScene.GetNodeByID(node_id))

    # Segments
    def currentSegmentID(self) -> str:
        return (self._editor_node.GetSelectedSegmentID() or "") if self._editor_node is not None else ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        if self._editor_node is None or segment_id == self.currentSegmentID():
            return
        self._logic.SetCurrentSegmentID(segment_id)
        if self._table.selectedSegmentIDs() != [segment_id]:
            self._table.setSelectedSegmentIDs([segment_id])
        self.currentSegmentIDChanged.emit(segment_id)

    def _row_selected(self, *_: Any) -> None:
        selected = self._table.selectedSegmentIDs()
        if selected:
            self.setCurrentSegmentID(selected[0])

    def _segments_changed(self) -> None:
        ids = self._follower.segment_ids()
        if ids and self.currentSegmentID() not in ids:
            self.setCurrentSegmentID(ids[0])
        self._update_buttons()

    # Effects
    def availableEffectNames(self) -> list[str]:
        return list(EFFECTS)

    def setEffectNameOrder(self, names: list[str]) -> None:
        self._effect_order = list(names)

    def effectNameOrder(self) -> list[str]:
        return list(self._effect_order)

    def setActiveEffectByName(self, name: str) -> None:
        """An empty or unknown name makes no effect active, as in Slicer."""
        self._effect = name if name in EFFECTS else ""
        self._last_effect = self._effect or self._last_effect
        for effect, button in self._effect_buttons.items():
            button.setChecked(effect == self._effect)
        if self._editor_node is not None:
            self._editor_node.SetActiveEffectName(self._effect)

    def activeEffect(self) -> str | None:
        """In Slicer the effect object; here its name."""
        return self._effect or None

    # Undo
    def saveStateForUndo(self) -> None:
        if self._undo_enabled:
            self._logic.SaveStateForUndo()

    def undo(self) -> None:
        self._logic.Undo()
        self._update_buttons()

    def redo(self) -> None:
        self._logic.Redo()
        self._update_buttons()

    def _set_undo_enabled(self, enabled: bool) -> None:
        self._undo_enabled = enabled
        self._update_buttons()

    undoEnabled = Property(bool, lambda self: self._undo_enabled, _set_undo_enabled)
    maximumNumberOfUndoStates = Property(
        int,
        lambda self: self._logic.GetMaximumNumberOfUndoStates(),
        lambda self, count: self._logic.SetMaximumNumberOfUndoStates(count),
    )

    def _update_buttons(self) -> None:
        self._undo_button.setEnabled(self._undo_enabled and self._logic.CanUndo())
        self._redo_button.setEnabled(self._undo_enabled and self._logic.CanRedo())

    def _selector_property(selector: str) -> Property:
        return Property(
            bool,
            lambda self: not getattr(self, selector).isHidden(),
            lambda self, visible: getattr(self, selector).setVisible(visible),
        )

    segmentationNodeSelectorVisible = _selector_property("_segmentation_selector")
    sourceVolumeNodeSelectorVisible = _selector_property("_volume_selector")
    del _selector_property

    # What has a meaning only with a display
    def setupViewObservations(self) -> None: ...

    def removeViewObservations(self) -> None: ...

    def rotateSliceViewsToSegmentation(self) -> None: ...

    # Keys: those of the real widget, so that a module that takes one of them too finds its own dead
    def installKeyboardShortcuts(self, parent: QWidget | None = None) -> None:
        self.uninstallKeyboardShortcuts()
        parent = parent or slicer.util.mainWindow()
        offsets = {"Q": -1, "W": 1, "/": -1, "*": 1, ",": -1, ".": 1, ">": -1, "<": 1}
        actions = {key: partial(self._select_segment_beside, offset) for key, offset in offsets.items()}
        for index in range(20):
            actions[("Shift+" if index > 9 else "") + str((index + 1) % 10)] = partial(self._toggle_effect, index)
        actions |= {"Esc": partial(self.setActiveEffectByName, ""), "Space": self._toggle_last_effect}
        actions |= {"Z": self.undo, "Ctrl+Z": self.undo, "Y": self.redo, "Ctrl+Shift+Z": self.redo, "I": lambda: None}
        for key, action in actions.items():
            shortcut = QShortcut(parent)
            shortcut.setKey(QKeySequence(key))
            shortcut.activated.connect(action)
            self._shortcuts.append(shortcut)

    def uninstallKeyboardShortcuts(self) -> None:
        for shortcut in self._shortcuts:
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._shortcuts = []

    def _select_segment_beside(self, offset: int) -> None:
        ids = self._follower.segment_ids()
        if self.currentSegmentID() in ids:
            self.setCurrentSegmentID(ids[(ids.index(self.currentSegmentID()) + offset) % len(ids)])

    def _toggle_effect(self, index: int) -> None:
        name = EFFECTS[index] if index < len(EFFECTS) else ""
        self.setActiveEffectByName("" if name == self._effect else name)

    def _toggle_last_effect(self) -> None:
        self.setActiveEffectByName("" if self._effect else self._last_effect)


def _selector(parent: qMRMLSegmentEditorWidget, node_type: str) -> qMRMLNodeComboBox:
    selector = qMRMLNodeComboBox(parent)
    selector.nodeTypes = [node_type]
    selector.noneEnabled = True
    return selector


def _effect_button(parent: qMRMLSegmentEditorWidget, name: str) -> QToolButton:
    button = QToolButton(parent)
    button.setObjectName(name)
    button.setText(name)
    button.setCheckable(True)
    button.setVisible(name in EFFECTS[:4])
    button.clicked.connect(lambda checked: parent.setActiveEffectByName(name if checked else ""))
    return button


def paint(editor: qMRMLSegmentEditorWidget, ras: tuple[float, float, float], radius_mm: float) -> None:
    """One dab of the sphere brush on the selected segment: what is within the radius of the world point is added."""
    _stroke(editor, "Paint", ras, radius_mm, editor._logic.ModificationModeAdd)


def erase(editor: qMRMLSegmentEditorWidget, ras: tuple[float, float, float], radius_mm: float) -> None:
    """One dab of the eraser on the selected segment."""
    _stroke(editor, "Erase", ras, radius_mm, editor._logic.ModificationModeRemove)


def _stroke(editor: qMRMLSegmentEditorWidget, effect: str, ras: Any, radius_mm: float, mode: int) -> None:
    """AssertionError where a user could not have painted: no such effect active, nothing to paint on or with."""
    if editor.activeEffect() != effect:
        raise AssertionError(f"the effect {effect} is not active, but {editor.activeEffect()}")
    if editor.readOnly or editor.sourceVolumeNode() is None or not editor.currentSegmentID():
        raise AssertionError("nothing can be painted: read-only, or no source volume, or no segment selected")
    logic, node = editor._logic, editor.segmentationNode()
    logic.UpdateReferenceGeometryImage()
    logic.ResetModifierLabelmapToDefault()
    logic.UpdateMaskLabelmap()
    labelmap = logic.GetModifierLabelmap()
    _fill_sphere(labelmap, _in_node(node, ras), radius_mm)
    editor.saveStateForUndo()
    logic.ModifySegmentByLabelmap(node, editor.currentSegmentID(), labelmap, mode, False, False)
    editor._update_buttons()


def _in_node(node: Any, ras: tuple[float, float, float]) -> np.ndarray:
    """The world point in the segmentation's own coordinates: it may be under a transform."""
    local = [0.0, 0.0, 0.0]
    node.TransformPointFromWorld(list(ras), local)
    return np.array(local)


def _fill_sphere(labelmap: Any, centre: np.ndarray, radius_mm: float) -> None:
    import vtk

    matrix = vtk.vtkMatrix4x4()
    labelmap.GetImageToWorldMatrix(matrix)
    to_world = slicer.util.arrayFromVTKMatrix(matrix)
    extent = np.array(labelmap.GetExtent()).reshape(3, 2)
    voxels = vtk_to_numpy(labelmap.GetPointData().GetScalars()).reshape(labelmap.GetDimensions()[::-1])
    ijk = np.stack(np.meshgrid(*(np.arange(low, high + 1) for low, high in extent), indexing="ij"), axis=-1)
    distance = np.linalg.norm(ijk @ to_world[:3, :3].T + to_world[:3, 3] - centre, axis=-1)  # (i, j, k), mm
    voxels[...] = (distance <= radius_mm).transpose(2, 1, 0)
    labelmap.GetPointData().GetScalars().Modified()
    labelmap.Modified()
