"""Stand-ins for the qMRML widgets that show and choose nodes of the scene; Slicer has them in the module ``slicer``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import vtk
from PySide6.QtCore import Property, QItemSelection, QItemSelectionModel, Qt, Signal
from PySide6.QtGui import QColor
from PySide6.QtWidgets import (
    QAbstractItemView,
    QComboBox,
    QHBoxLayout,
    QHeaderView,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from slicerhost.ctk_widgets import ctkComboBox, ctkDoubleSpinBox, ctkRangeWidget, ctkSliderWidget
from slicerhost.standin import stands_in, stored

SCENE_EVENTS = ("NodeAddedEvent", "NodeRemovedEvent", "EndBatchProcessEvent", "EndCloseEvent", "EndImportEvent")


class Observers:
    """Observers that end with their widget: VTK would go on calling into a widget that Qt has deleted."""

    def __init__(self, owner: QWidget):
        self._observed: list[tuple[Any, int]] = []
        owner.destroyed.connect(lambda: self.clear())

    def add(self, caller: Any, event: Any, callback: Callable[[Any, str], None]) -> None:
        self._observed.append((caller, caller.AddObserver(event, callback)))

    def clear(self) -> None:
        for caller, tag in self._observed:
            caller.RemoveObserver(tag)
        self._observed = []


class SceneFollower:
    """Calls `changed` after a node came or went: at each one, as a parameter node may name it before a batch ends."""

    def __init__(self, owner: QWidget, changed: Callable[[], None]):
        self.scene: Any = None
        self._observers = Observers(owner)
        self._changed = changed

    def follow(self, scene: Any) -> None:
        self._observers.clear()
        self.scene = scene
        if scene is not None:
            for event in SCENE_EVENTS:
                self._observers.add(scene, getattr(type(scene), event), lambda caller, name: self._changed())


@stands_in("mrmlSceneChanged(vtkMRMLScene*)")
class qMRMLWidget(QWidget):
    """Passes its scene on: a .ui file connects this signal to the setMRMLScene of what is inside."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


@stands_in("mrmlSceneChanged(vtkMRMLScene*)")
class qSlicerWidget(QWidget):
    """As qMRMLWidget, but it does not tell a script which scene it has."""

    mrmlSceneChanged = Signal(object)

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._scene = None

    def setMRMLScene(self, scene: Any) -> None:
        if scene is not self._scene:
            self._scene = scene
            self.mrmlSceneChanged.emit(scene)


@stands_in(
    "currentNodeChanged(vtkMRMLNode*)",
    "nodeActivated(vtkMRMLNode*)",
    "nodeAdded(vtkMRMLNode*)",
    "nodeAddedByUser(vtkMRMLNode*)",
    "nodeAboutToBeRemoved(vtkMRMLNode*)",
)
class qMRMLNodeComboBox(QWidget):
    """The nodes of the scene that match types and attributes, with None at the top where it is enabled."""

    currentNodeChanged = Signal((object,), (bool,))
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)
    nodeAdded = Signal(object)
    nodeAddedByUser = Signal(object)
    nodeAboutToBeRemoved = Signal(object)
    removeEnabled = stored(bool, True)
    editEnabled = stored(bool, False)
    renameEnabled = stored(bool, False)
    addEnabled = stored(bool, True)
    selectNodeUponCreation = stored(bool, True)
    interactionNodeSingletonTag = stored(str, "Singleton")

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._combo = ctkComboBox(self)
        layout = QHBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._combo)
        self._node_types: list[str] = []
        self._hidden_types: list[str] = []
        self._attributes: dict[str, dict[str, Any]] = {}
        self._labels: dict[str, str] = {}
        self._base_name = ""
        self._none_enabled, self._none_display = False, "None"
        self._show_hidden, self._show_children = False, True
        self._nodes: list[Any] = []  # as listed, without None
        self._current: Any = None
        self._name_observers = Observers(self)
        self._follower = SceneFollower(self, self._update)
        self._combo.currentIndexChanged.connect(self._index_changed)
        self._combo.activated.connect(lambda index: self.nodeActivated.emit(self._node_at(index)))
        self.setEnabled(False)

    def mrmlScene(self) -> Any:
        return self._follower.scene

    def setMRMLScene(self, scene: Any) -> None:
        if scene is self._follower.scene:
            return
        self._follower.follow(scene)
        self.setEnabled(scene is not None)
        self._update()

    def currentNode(self) -> Any:
        return self._current

    def setCurrentNode(self, node: Any) -> None:
        """A node, its ID, or None; one that is not listed selects nothing, as in Slicer."""
        if isinstance(node, str):
            node = self._follower.scene.GetNodeByID(node) if self._follower.scene else None
        self._select(node if any(node is n for n in self._nodes) else None)

    def setCurrentNodeID(self, node_id: str) -> None:
        self.setCurrentNode(node_id)

    def setCurrentNodeIndex(self, index: int) -> None:
        self.setCurrentNode(self.nodeFromIndex(index))

    def _current_id(self) -> str:
        return self._current.GetID() if self._current is not None else ""

    currentNodeID = Property(str, _current_id, setCurrentNodeID)

    def nodeCount(self) -> int:
        return len(self._nodes)

    def nodeFromIndex(self, index: int) -> Any:
        return self._nodes[index] if 0 <= index < len(self._nodes) else None

    def addNode(self, node_type: str | None = None) -> Any:
        node_type = node_type or (self._node_types[0] if self._node_types else None)
        if node_type not in self._node_types:
            return None
        label = self._base_name or self.nodeTypeLabel(node_type)
        node = self._follower.scene.CreateNodeByClass(node_type)
        node.UnRegister(None)
        node.SetName(self._follower.scene.GenerateUniqueName(label))
        for name, value in self._attributes.get(node_type, {}).items():
            node.SetAttribute(name, str(value))
        node = self._follower.scene.AddNode(node)
        if self.selectNodeUponCreation:
            self.setCurrentNode(node)
        self.nodeAddedByUser.emit(node)
        return node

    def removeCurrentNode(self) -> None:
        if self._current is not None:
            self.nodeAboutToBeRemoved.emit(self._current)
            self._follower.scene.RemoveNode(self._current)

    def addAttribute(self, node_type: str, name: str, value: Any = None) -> None:
        self._attributes.setdefault(node_type, {})[name] = value
        self._update()

    def removeAttribute(self, node_type: str, name: str) -> None:
        self._attributes.get(node_type, {}).pop(name, None)
        self._update()

    def setNodeTypeLabel(self, label: str, node_type: str) -> None:
        self._labels[node_type] = label

    def nodeTypeLabel(self, node_type: str) -> str:
        scene = self._follower.scene
        return self._labels.get(node_type) or (scene and scene.GetTypeDisplayNameByClassName(node_type)) or "node"

    def _setter(attribute: str, kind: type | str):
        """Only used while the class is made."""

        def write(self, value: Any) -> None:
            setattr(self, attribute, list(value) if isinstance(value, (list, tuple)) else value)
            self._update()

        return Property(kind, lambda self: getattr(self, attribute), write)

    nodeTypes = _setter("_node_types", "QStringList")
    hideChildNodeTypes = _setter("_hidden_types", "QStringList")
    noneEnabled = _setter("_none_enabled", bool)
    noneDisplay = _setter("_none_display", str)
    showHidden = _setter("_show_hidden", bool)
    showChildNodeTypes = _setter("_show_children", bool)
    baseName = _setter("_base_name", str)
    del _setter

    def _lists(self, node: Any) -> bool:
        matching = [t for t in self._node_types if (node.IsA(t) if self._show_children else node.GetClassName() == t)]
        if not matching or any(node.IsA(t) for t in self._hidden_types):
            return False
        if node.GetHideFromEditors() and not self._show_hidden:
            return False
        wanted = [item for t in matching for item in self._attributes.get(t, {}).items()]
        return all(
            node.GetAttribute(name) is not None and (value in (None, "") or node.GetAttribute(name) == str(value))
            for name, value in wanted
        )

    def _update(self) -> None:
        """List the nodes as they are now; what was selected stays so if it can."""
        scene = self._follower.scene
        before = self._nodes
        everything = [scene.GetNthNode(i) for i in range(scene.GetNumberOfNodes())] if scene else []
        self._nodes = [node for node in everything if self._lists(node)]
        self._follow_names()
        selected = self._current if any(self._current is n for n in self._nodes) else None
        if selected is None and not self._none_enabled and self._nodes:
            # An empty QComboBox selects the first row that it gets; the real class replaces a removed node by the last.
            selected = self._nodes[0] if self._current is None else self._nodes[-1]
        self._fill(selected)
        for node in self._nodes:
            if not any(node is n for n in before):
                self.nodeAdded.emit(node)
        self._select(selected)

    def _follow_names(self) -> None:
        self._name_observers.clear()
        for node in self._nodes:
            self._name_observers.add(node, vtk.vtkCommand.ModifiedEvent, self._renamed)

    def _renamed(self, node: Any, event: str) -> None:
        index = next((i for i, n in enumerate(self._nodes) if n is node), None)
        if index is not None:
            self._combo.setItemText(index + self._none_enabled, node.GetName())

    def _fill(self, selected: Any) -> None:
        self._combo.blockSignals(True)
        self._combo.clear()
        if self._none_enabled:
            self._combo.addItem(self._none_display)
        self._combo.addItems([node.GetName() or "" for node in self._nodes])
        self._combo.setCurrentIndex(self._index_of(selected))
        self._combo.blockSignals(False)

    def _index_of(self, node: Any) -> int:
        position = next((i for i, n in enumerate(self._nodes) if n is node), -1)
        return position + self._none_enabled  # None is row 0 where it is enabled, and no row (-1) where it is not

    def _node_at(self, index: int) -> Any:
        return self.nodeFromIndex(index - self._none_enabled)

    def _index_changed(self, index: int) -> None:
        self._select(self._node_at(index))

    def _select(self, node: Any) -> None:
        if self._combo.currentIndex != self._index_of(node):
            self._combo.blockSignals(True)
            self._combo.setCurrentIndex(self._index_of(node))
            self._combo.blockSignals(False)
        if node is not self._current:
            self._current = node
            self.currentNodeChanged[object].emit(node)
            self.currentNodeChanged[bool].emit(node is not None)
            self.currentNodeIDChanged.emit(self._current_id())


@stands_in()
class qMRMLSliderWidget(ctkSliderWidget):
    quantity = stored(str, "")

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene


@stands_in()
class qMRMLSpinBox(ctkDoubleSpinBox):
    quantity = stored(str, "")

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._scene = None

    def mrmlScene(self) -> Any:
        return self._scene

    def setMRMLScene(self, scene: Any) -> None:
        self._scene = scene


@stands_in()
class qMRMLRangeWidget(ctkRangeWidget):
    quantity = stored(str, "")

    def setMRMLScene(self, scene: Any) -> None:
        """Only asked for the unit of the quantity."""


class SegmentationFollower:
    """Calls `changed` when the segments of a segmentation node come, go or change."""

    EVENTS = ("SegmentAdded", "SegmentRemoved", "SegmentModified", "SegmentsOrderModified")

    def __init__(self, owner: QWidget, changed: Callable[[], None]):
        self.node: Any = None
        self._observers = Observers(owner)
        self._changed = changed

    def follow(self, node: Any) -> None:
        import slicer

        self._observers.clear()
        self.node = node
        if node is not None:
            # The node repeats its segmentation's events, also after that was replaced.
            for event in self.EVENTS:
                self._observers.add(node, getattr(slicer.vtkSegmentation, event), lambda caller, name: self._changed())

    def segment_ids(self) -> list[str]:
        return list(self.node.GetSegmentation().GetSegmentIDs()) if self.node is not None else []


@stands_in("selectionChanged(QItemSelection,QItemSelection)", "segmentAboutToBeModified(QString)")
class qMRMLSegmentsTableView(qMRMLWidget):
    """One row per segment: visibility, colour, opacity, name."""

    selectionChanged = Signal(QItemSelection, QItemSelection)
    segmentAboutToBeModified = Signal(str)
    headerVisible = stored(bool, True)
    visibilityColumnVisible = stored(bool, True)
    colorColumnVisible = stored(bool, True)
    opacityColumnVisible = stored(bool, True)
    statusColumnVisible = stored(bool, False)
    layerColumnVisible = stored(bool, False)
    readOnly = stored(bool, False)
    filterBarVisible = stored(bool, False)
    textFilter = stored(str, "")
    jumpToSelectedSegmentEnabled = stored(bool, False)

    NAME_COLUMN = 3

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._table = QTableWidget(0, 4, self)
        self._table.setHorizontalHeaderLabels(["", "", "Opacity", "Name"])
        self._table.verticalHeader().hide()
        self._table.horizontalHeader().setSectionResizeMode(self.NAME_COLUMN, QHeaderView.ResizeMode.Stretch)
        self._table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._table)
        self._follower = SegmentationFollower(self, self._update)
        self._table.selectionModel().selectionChanged.connect(self.selectionChanged)

    def segmentationNode(self) -> Any:
        return self._follower.node

    def setSegmentationNode(self, node: Any) -> None:
        if node is not self._follower.node:
            self._follower.follow(node)
            self._update()

    def _update(self) -> None:
        kept = self.selectedSegmentIDs()
        ids = self._follower.segment_ids()
        display = self._follower.node.GetDisplayNode() if self._follower.node is not None else None
        self._table.setRowCount(len(ids))
        for row, segment_id in enumerate(ids):
            segment = self._follower.node.GetSegmentation().GetSegment(segment_id)
            name = QTableWidgetItem(segment.GetName())
            name.setData(Qt.ItemDataRole.UserRole, segment_id)
            colour = QTableWidgetItem()
            colour.setBackground(QColor.fromRgbF(*segment.GetColor()))
            self._table.setItem(row, 0, QTableWidgetItem("●" if _shown(display, segment_id) else "○"))
            self._table.setItem(row, 1, colour)
            self._table.setItem(row, 2, QTableWidgetItem(_opacity(display, segment_id)))
            self._table.setItem(row, self.NAME_COLUMN, name)
        self.setSelectedSegmentIDs(kept)

    def _segment_count(self) -> int:
        return self._table.rowCount

    segmentCount = Property(int, _segment_count)

    def selectedSegmentIDs(self) -> list[str]:
        rows = sorted({index.row() for index in self._table.selectionModel().selectedRows()})
        return [self.segmentIDForRow(row) for row in rows]

    def setSelectedSegmentIDs(self, segment_ids: list[str]) -> None:
        self._table.clearSelection()
        model, flags = self._table.selectionModel(), QItemSelectionModel.SelectionFlag
        for row in range(self._table.rowCount):
            if self.segmentIDForRow(row) in segment_ids:
                model.select(self._table.model().index(row, 0), flags.Select | flags.Rows)

    def clearSelection(self) -> None:
        self._table.clearSelection()

    def segmentIDForRow(self, row: int) -> str:
        item = self._table.item(row, self.NAME_COLUMN)
        return item.data(Qt.ItemDataRole.UserRole) if item is not None else ""

    def rowForSegmentID(self, segment_id: str) -> int:
        rows = [row for row in range(self._table.rowCount) if self.segmentIDForRow(row) == segment_id]
        return rows[0] if rows else -1

    def displayedSegmentIDs(self) -> list[str]:
        return [self.segmentIDForRow(row) for row in range(self._table.rowCount)]

    def tableWidget(self) -> QTableWidget:
        return self._table


def _shown(display: Any, segment_id: str) -> bool:
    return display is None or display.GetSegmentVisibility(segment_id)


def _opacity(display: Any, segment_id: str) -> str:
    return f"{display.GetSegmentOpacity3D(segment_id):.2f}" if display is not None else "1.00"


@stands_in("currentNodeChanged(vtkMRMLNode*)", "nodeAboutToBeEdited(vtkMRMLNode*)")
class qMRMLSegmentSelectorWidget(qMRMLWidget):
    """A segmentation and one of its segments."""

    currentNodeChanged = Signal((object,), (bool,))
    currentSegmentChanged = Signal(str)
    segmentSelectionChanged = Signal("QStringList")
    nodeAboutToBeEdited = Signal(object)
    editEnabled = stored(bool, False)
    multiSelection = stored(bool, False)
    horizontalLayout = stored(bool, False)
    selectNodeUponCreation = stored(bool, True)

    def __init__(self, parent: QWidget | None = None):
        super().__init__(parent)
        self._node_selector = qMRMLNodeComboBox(self)
        self._node_selector.nodeTypes = ["vtkMRMLSegmentationNode"]
        self._segments = QComboBox(self)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._node_selector)
        layout.addWidget(self._segments)
        self._follower = SegmentationFollower(self, self._update)
        self._node_selector.currentNodeChanged[object].connect(self._node_changed)
        self._segments.currentIndexChanged.connect(lambda _: self.currentSegmentChanged.emit(self.currentSegmentID()))

    def setMRMLScene(self, scene: Any) -> None:
        self._node_selector.setMRMLScene(scene)
        qMRMLWidget.setMRMLScene(self, scene)

    def currentNode(self) -> Any:
        return self._node_selector.currentNode()

    def setCurrentNode(self, node: Any) -> None:
        self._node_selector.setCurrentNode(node)

    def currentNodeID(self) -> str:
        return self._node_selector.currentNodeID

    def setCurrentNodeID(self, node_id: str) -> None:
        self._node_selector.setCurrentNodeID(node_id)

    def _node_changed(self, node: Any) -> None:
        self._follower.follow(node)
        self._update()
        self.currentNodeChanged[object].emit(node)
        self.currentNodeChanged[bool].emit(node is not None)

    def _update(self) -> None:
        kept = self.currentSegmentID()
        self._segments.clear()
        for segment_id in self._follower.segment_ids():
            self._segments.addItem(self._follower.node.GetSegmentation().GetSegment(segment_id).GetName(), segment_id)
        if kept:
            self.setCurrentSegmentID(kept)

    def segmentIDs(self) -> list[str]:
        return self._follower.segment_ids()

    def currentSegmentID(self) -> str:
        return self._segments.currentData() or ""

    def setCurrentSegmentID(self, segment_id: str) -> None:
        self._segments.setCurrentIndex(self._segments.findData(segment_id))

    def _none(self) -> bool:
        return self._node_selector.noneEnabled

    def _set_none(self, enabled: bool) -> None:
        self._node_selector.noneEnabled = enabled

    noneEnabled = Property(bool, _none, _set_none)

    def _selector_shown(self) -> bool:
        return not self._node_selector.isHidden()

    def _show_selector(self, shown: bool) -> None:
        self._node_selector.setVisible(shown)

    segmentationNodeSelectorVisible = Property(bool, _selector_shown, _show_selector)
