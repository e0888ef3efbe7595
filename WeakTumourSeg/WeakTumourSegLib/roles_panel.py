"""The table in which the user sees, and can change, what each segment of the MRI segmentation is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import qt
import slicer
from slicer.i18n import tr as _

from . import roles


class RolesPanel:
    """Fills a QTableWidget: a segment and its role in each row. onChanged is called after the user chose a role."""

    def __init__(self, table: qt.QTableWidget, onChanged: Callable[[], None]) -> None:
        self._table, self._onChanged = table, onChanged
        self._node: slicer.vtkMRMLSegmentationNode | None = None
        self._shown: list[tuple[str, str, str]] | None = None
        table.setColumnCount(2)
        table.setHorizontalHeaderLabels([_("Segment"), _("Is")])
        table.horizontalHeader().setStretchLastSection(True)
        table.verticalHeader().setVisible(False)

    def show(self, node: slicer.vtkMRMLSegmentationNode | None) -> None:
        self._node = node
        segments = roles.segmentsOf(node) if node is not None else []
        shown = [(segmentId, segment.GetName(), roles.roleOf(segment)) for segmentId, segment in segments]
        if shown == self._shown:
            return
        self._shown = shown
        self._table.setVisible(node is not None)
        self._table.setRowCount(0)  # takes the former choosers away
        self._table.setRowCount(len(segments))
        for row, (segmentId, segment) in enumerate(segments):
            self._table.setItem(row, 0, qt.QTableWidgetItem(segment.GetName()))
            self._table.setCellWidget(row, 1, self._roleChooser(segmentId, roles.roleOf(segment)))
        fitHeight(self._table, most=6)

    def _roleChooser(self, segmentId: str, role: str) -> qt.QComboBox:
        chooser = qt.QComboBox()
        for choice, text in _roleTexts().items():
            chooser.addItem(text, choice)
        chooser.setCurrentIndex(roles.ROLES.index(role))
        chooser.connect("activated(int)", partial(self._choose, segmentId))
        return chooser

    def _choose(self, segmentId: str, index: int) -> None:
        segment = self._node.GetSegmentation().GetSegment(segmentId) if self._node else None
        if segment is not None:
            roles.setRole(segment, roles.ROLES[index])
            self._onChanged()


def _roleTexts() -> dict[str, str]:
    return {roles.LIVER: _("liver"), roles.TUMOUR: _("tumour"), roles.NEITHER: _("neither (not carried over)")}


def fitHeight(table: qt.QTableWidget, most: int) -> None:
    """As high as its rows, of which `most` are shown without scrolling."""
    rows = sum(table.rowHeight(row) for row in range(min(table.rowCount, most)))
    frame = 2 * table.frameWidth
    table.setFixedHeight(table.horizontalHeader().sizeHint.height() + rows + frame)
