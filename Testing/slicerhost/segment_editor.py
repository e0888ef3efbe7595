"""Stand-in for the Segment Editor widget: Slicer's own editor logic (selection, undo) without effects."""

from __future__ import annotations

from typing import Any

from PySide6.QtCore import Signal
from PySide6.QtWidgets import QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from slicerhost.mrml_widgets import qMRMLSegmentsTableView, qMRMLWidget
from slicerhost.standin import stands_in, stored


@stands_in(
    "currentSegmentIDChanged(QString)",
    "sourceVolumeNodeChanged(vtkMRMLVolumeNode*)",
    "segmentationNodeChanged(vtkMRMLSegmentationNode*)",
)
class qMRMLSegmentEditorWidget(qMRMLWidget):
    """The segments with Undo and Redo buttons; what a brush would do, a test does in MRML."""

    currentSegmentIDChanged = Signal(str)
    sourceVolumeNodeChanged = Signal(object)
    segmentationNodeChanged = Signal(object)
    segmentationNodeSelectorVisible = stored(bool, True)
    sourceVolumeNodeSelectorVisible = stored(bool, True)
    autoShowSourceVolumeNode = stored(bool, True)
    undoEnabled = stored(bool, True)
    maximumNumberOfUndoStates = stored(int, 10)
    readOnly = stored(bool, False)

    def __init__(self, parent: QWidget | None = None):
        import slicer

        super().__init__(parent)
        self._logic = slicer.vtkSlicerSegmentEditorLogic()
        self._node: Any = None
        self._shortcuts = False
        self._table = qMRMLSegmentsTableView(self)
        self._undo, self._redo = QPushButton("Undo", self), QPushButton("Redo", self)
        self._undo.setObjectName("UndoButton")
        self._redo.setObjectName("RedoButton")
        self._undo.clicked.connect(self.undo)
        self._redo.clicked.connect(self.redo)
        buttons = QHBoxLayout()
        buttons.addWidget(self._undo)
        buttons.addWidget(self._redo)
        layout = QVBoxLayout(self)
        layout.addWidget(self._table)
        layout.addLayout(buttons)

    def setMRMLScene(self, scene: Any) -> None:
        super().setMRMLScene(scene)
        self._logic.SetMRMLScene(scene)

    def mrmlSegmentEditorNode(self) -> Any:
        return self._node

    def setMRMLSegmentEditorNode(self, node: Any) -> None:
        self._node = node
        self._logic.SetSegmentEditorNode(node)
        self.updateWidgetFromMRML()

    def updateWidgetFromMRML(self) -> None:
        self._table.setSegmentationNode(self.segmentationNode())

    def segmentationNode(self) -> Any:
        return self._node.GetSegmentationNode() if self._node is not None else None

    def setSegmentationNode(self, node: Any) -> None:
        if self._node is None:
            return
        if node is not self.segmentationNode():
            self._logic.SetSegmentationNode(node)
            self._node.SetAndObserveSegmentationNode(node)
            self.segmentationNodeChanged.emit(node)
        self.updateWidgetFromMRML()

    def sourceVolumeNode(self) -> Any:
        return self._node.GetSourceVolumeNode() if self._node is not None else None

    def setSourceVolumeNode(self, node: Any) -> None:
        if self._node is not None and node is not self.sourceVolumeNode():
            self._node.SetAndObserveSourceVolumeNode(node)
            self.sourceVolumeNodeChanged.emit(node)

    def currentSegmentID(self) -> str:
        return (self._node.GetSelectedSegmentID() or "") if self._node is not None else ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        if self._node is not None:
            self._node.SetSelectedSegmentID(segment_id)
            self._table.setSelectedSegmentIDs([segment_id])
            self.currentSegmentIDChanged.emit(segment_id)

    def setActiveEffectByName(self, name: str) -> None:
        if self._node is not None:
            self._node.SetActiveEffectName(name)

    def saveStateForUndo(self) -> None:
        self._logic.SaveStateForUndo()

    def undo(self) -> None:
        self._logic.Undo()

    def redo(self) -> None:
        self._logic.Redo()

    def installKeyboardShortcuts(self, parent: Any = None) -> None:
        self._shortcuts = True

    def uninstallKeyboardShortcuts(self) -> None:
        self._shortcuts = False
