"""Result, Review and Correct: the table of tumours, the views, hand edits and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from weaktumour.errors import InputError

from . import position_regions, review, scene_import, training_export, tumour_table
from .logic import temporaryFolder
from .roles_panel import fitHeight

_EDIT_DELAY_MS = 300


class ResultPanel(VTKObservationMixin):
    """Follows one result segmentation. `ui`: the panel's widgets by name."""

    def __init__(self, ui: Any, shortcutParent: qt.QWidget) -> None:
        VTKObservationMixin.__init__(self)
        self.ui = ui
        self._node: slicer.vtkMRMLSegmentationNode | None = None
        self._rows: list[tumour_table.TumourRow] = []
        self._hadResult: bool | None = None
        self._shortcutParent = shortcutParent
        self._shortcuts: list[qt.QShortcut] = []
        # An edit with the brush comes as many changes: measure once they pause.
        self._editTimer = qt.QTimer(shortcutParent)
        self._editTimer.setSingleShot(True)
        self._editTimer.setInterval(_EDIT_DELAY_MS)
        self._editTimer.connect("timeout()", self.measureEdits)
        self._setUpTable()
        ui.tumourTable.connect("cellClicked(int,int)", self._onCellClicked)
        ui.tumourTable.connect("currentCellChanged(int,int,int,int)", self._onCurrentCell)
        ui.previousTumourButton.connect("clicked(bool)", lambda checked=False: self.step(-1))
        ui.nextTumourButton.connect("clicked(bool)", lambda checked=False: self.step(1))
        ui.blendSlider.connect("valueChanged(double)", self._onBlend)
        ui.beforeButton.connect("toggled(bool)", self._onBefore)
        ui.checkerboardButton.connect("toggled(bool)", self._onCheckerboard)
        ui.outlineCheckBox.connect("toggled(bool)", self._onOutline)
        ui.regionsCheckBox.connect("toggled(bool)", lambda checked: self._showRegions())
        ui.showRegisteredButton.connect("clicked(bool)", self._onShowRegistered)
        ui.saveForTrainingButton.connect("clicked(bool)", self._onSaveForTraining)
        ui.reportButton.connect("clicked(bool)", self._onReport)

    # -- which result -----------------------------------------------------------------------------------------------
    @property
    def node(self) -> slicer.vtkMRMLSegmentationNode | None:
        return self._node

    def show(self, node: slicer.vtkMRMLSegmentationNode | None) -> None:
        """Follow another result; None: show nothing. A segmentation that no run made is no result."""
        if scene_import.resultOf(node) is None:
            node = None
        if node is self._node:
            self.refresh()
            return
        switched = None not in (node, self._node)
        self.measureEditsNow()
        self.removeObservers()
        self._removeCheckerboard()
        self._node = node
        if node is not None:
            self._follow(node)
        self.measureEdits()  # somebody may have edited it while nobody here looked
        if switched:
            review.setOutline(node, self.ui.outlineCheckBox.checked)
            self.showImages()
        elif node is not None:
            _setQuietly(self.ui.outlineCheckBox, review.isOutline(node))

    def _follow(self, node: slicer.vtkMRMLSegmentationNode) -> None:
        # The node repeats the events of its segmentation, whichever that is.
        events = slicer.vtkSegmentation
        for event in (events.SegmentAdded, events.SegmentRemoved, events.SegmentModified):
            self.addObserver(node, event, self._onSegmentsChanged)
        self.addObserver(node, events.SourceRepresentationModified, self._onEdited)
        self.addObserver(segmentEditorNode(), vtk.vtkCommand.ModifiedEvent, self._onEditorChanged)

    def present(self) -> None:
        """Show a result that has just been made as a whole, then its first tumour; nothing of an earlier review."""
        if self._node is None:
            return
        self._removeCheckerboard()
        _setQuietly(self.ui.beforeButton, False)
        review.setOutline(self._node, self.ui.outlineCheckBox.checked)
        self.showImages()
        review.fitViews()
        self.ui.tumourTable.setCurrentCell(-1, -1)
        self.step(1)

    def close(self) -> None:
        """Let go of everything, for the scene's or the module's end."""
        self._editTimer.stop()
        self.removeShortcuts()
        self.removeObservers()
        self._node = None

    # -- table ------------------------------------------------------------------------------------------------------
    def _setUpTable(self) -> None:
        table, titles = self.ui.tumourTable, tumour_table.columnTitles()
        table.setColumnCount(len(titles))
        table.setHorizontalHeaderLabels(titles)
        for column, tip in enumerate(tumour_table.columnToolTips()):
            table.horizontalHeaderItem(column).setToolTip(tip)
        table.horizontalHeader().setStretchLastSection(True)
        table.verticalHeader().setVisible(False)
        self.refresh()

    def refresh(self) -> None:
        """Show the node as it is."""
        self._rows = tumour_table.rows(self._node)
        table = self.ui.tumourTable
        table.blockSignals(True)  # nobody chose another tumour
        table.setRowCount(len(self._rows))
        for index, row in enumerate(self._rows):
            for column, text in enumerate(tumour_table.cells(row)):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(tumour_table.tooltip(row))
                table.setItem(index, column, item)
            _explainVerdict(table.item(index, tumour_table.VERDICT_COLUMN), row)
        table.blockSignals(False)
        for column in tumour_table.COLUMNS_OF_UNCERTAINTY:
            unknown = all(tumour_table.cells(row)[column] == tumour_table.UNKNOWN for row in self._rows)
            table.setColumnHidden(column, unknown)
        table.resizeColumnsToContents()
        fitHeight(table, most=8)
        self.ui.runVerdictLabel.text = self._verdictText()
        self.ui.runVerdictLabel.visible = bool(self.ui.runVerdictLabel.text)
        hasResult = self._node is not None
        for widget in (
            self.ui.previousTumourButton,
            self.ui.nextTumourButton,
            self.ui.blendSlider,
            self.ui.beforeButton,
            self.ui.checkerboardButton,
            self.ui.outlineCheckBox,
            self.ui.showRegisteredButton,
            self.ui.saveForTrainingButton,
        ):
            widget.enabled = hasResult
        self.ui.tumourTable.visible = hasResult
        self._refreshRegions()
        if hasResult is not self._hadResult:  # between that, a section stays as the user opened or closed it
            self.ui.reviewSection.collapsed, self._hadResult = not hasResult, hasResult
        hasReport = bool(scene_import.reportOf(self._node))
        self.ui.reportButton.enabled = hasReport
        self.ui.reportButton.toolTip = (
            _("The page with this run's pictures and figures; it is kept in the scene.")
            if hasReport
            else _("This run has no report.")
            if hasResult
            else _("A run brings a report.")
        )

    def _refreshRegions(self) -> None:
        hasRegions = self._node is not None and scene_import.resultOf(self._node).regions is not None
        self.ui.regionsCheckBox.enabled = hasRegions
        self.ui.regionsCheckBox.toolTip = (
            _(
                "Outlines of all points within p95 of each tumour as the run computed it: where it may lie. Hidden for "
                "a tumour that was edited by hand, since they belong to the computed place. They are no part of the "
                "result, of cases for training or of a DICOM export."
            )
            if hasRegions
            else _("No tumour of this result has one: they come with the uncertainty, see Advanced.")
        )
        self._showRegions()

    def _showRegions(self) -> None:
        """Those of this result, while that is what the views show."""
        if self._node is not None:
            shown = self.ui.regionsCheckBox.checked and not self.ui.beforeButton.checked
            position_regions.show(self._node, shown)

    def _verdictText(self) -> str:
        if self._node is None:
            return _("No result yet.")
        content = tumour_table.resultContent(self._node)
        run = content.get("run", {})
        sentences = [*run.get("reasons", []), *content.get("warnings", []), content.get("assessment", "")]
        sentences += [warning for row in self._rows if not row.edited for warning in row.warnings]
        if run.get("verdict") == "check_alignment":
            sentences.insert(0, _("Check the alignment before you use this result."))
        if not self._rows:
            sentences.append(_("The result holds no tumour."))
        return "\n".join(sentence for sentence in dict.fromkeys(sentences) if sentence)

    def _onSegmentsChanged(self, caller: Any, event: Any) -> None:
        self.refresh()

    def _onEdited(self, caller: Any, event: Any) -> None:
        self._editTimer.start()

    def measureEditsNow(self) -> None:
        """As `measureEdits`, but only if an edit waits for it."""
        if self._editTimer.active:
            self.measureEdits()

    def measureEdits(self) -> None:
        """Compare every tumour with what the run put there, and measure those that differ."""
        self._editTimer.stop()
        if self._node is not None:
            tumour_table.updateAllEdited(self._node)
        self.refresh()

    # -- views ------------------------------------------------------------------------------------------------------
    def _onCellClicked(self, row: int, column: int) -> None:
        self._centreOn(row)

    def _onCurrentCell(self, row: int, column: int, formerRow: int, formerColumn: int) -> None:
        if row != formerRow:
            self._centreOn(row)

    def _centreOn(self, row: int) -> None:
        if self._node is None or not 0 <= row < len(self._rows):
            return
        segmentId = self._rows[row].segmentId
        if segmentId is None:
            slicer.util.showStatusMessage(
                _("{name} lies outside the CT; there is nothing to show.").format(name=self._rows[row].name), 5000
            )
            return
        review.centreOn(self._node, segmentId)
        self.ui.segmentEditorWidget.setCurrentSegmentID(segmentId)

    def step(self, by: int) -> None:
        """The next (1) or previous (-1) tumour on the CT: selected in the table, in the middle of the views."""
        ids = [row.segmentId for row in self._rows]
        current = self.ui.tumourTable.currentRow()
        onCT = [segmentId for segmentId in ids if segmentId is not None]
        target = review.neighbour(onCT, ids[current] if 0 <= current < len(ids) else None, by)
        if target is None:
            return
        row = ids.index(target)
        if row == current:
            self._centreOn(row)
        else:
            self.ui.tumourTable.setCurrentCell(row, 0)  # centres

    def showImages(self) -> None:
        """The CT with the MRI over it and the segmentation that belongs to it, as slider and before/after say."""
        if self._blend():
            review.showSegmentation(scene_import.resultOf(self._node), not self.ui.beforeButton.checked)
            self._showRegions()

    def _blend(self) -> bool:
        """The images alone; whether there are any."""
        result = scene_import.resultOf(self._node)
        if result is None:
            return False
        with slicer.util.tryWithErrorDisplay(_("The images cannot be shown.")):
            review.blend(result, self.ui.blendSlider.value, registered=not self.ui.beforeButton.checked)
        return True

    def _onBlend(self, value: float) -> None:
        self._removeCheckerboard()
        self._blend()  # which segments are shown is the user's choice meanwhile

    def _onBefore(self, checked: bool) -> None:
        self._removeCheckerboard()
        if checked:  # the result is hidden then: nobody can see what is painted
            self.ui.segmentEditorWidget.setActiveEffectByName("")
        self.showImages()

    def _onEditorChanged(self, caller: Any, event: Any) -> None:
        if caller.GetActiveEffectName() and self.ui.beforeButton.checked:
            self.ui.beforeButton.checked = False

    def _onCheckerboard(self, checked: bool) -> None:
        result = scene_import.resultOf(self._node)
        if checked and result is not None:
            _setQuietly(self.ui.beforeButton, False)
            with slicer.util.tryWithErrorDisplay(_("The checkerboard cannot be shown."), waitCursor=True):
                review.showCheckerboard(result)
            self._showRegions()
        else:
            review.removeCheckerboard()
            self.showImages()

    def _removeCheckerboard(self) -> None:
        review.removeCheckerboard()
        _setQuietly(self.ui.checkerboardButton, False)

    def _onOutline(self, checked: bool) -> None:
        if self._node is not None:
            review.setOutline(self._node, checked)

    def _onShowRegistered(self, checked: bool = False) -> None:
        result = scene_import.resultOf(self._node)
        with slicer.util.tryWithErrorDisplay(_("The registered MRI cannot be shown.")):
            shown = scene_import.showRegistered(result)
            self._removeCheckerboard()
            _setQuietly(self.ui.beforeButton, False)
            if not self.ui.blendSlider.value:
                self.ui.blendSlider.value = 0.5
            review.showOverCT(result, shown, self.ui.blendSlider.value)
            review.showSegmentation(result, True)
            self._showRegions()

    # -- keys -------------------------------------------------------------------------------------------------------
    def installShortcuts(self) -> None:
        """While the module is open: [ and ] tumour to tumour, \\ before and after, ; outlines.

        The slice views and the Segment Editor use most letters, digits and , . / * < >; one key for two of them is
        dead.
        """
        self.removeShortcuts()
        for key, action in (
            ("[", lambda: self.step(-1)),
            ("]", lambda: self.step(1)),
            ("\\", self.ui.beforeButton.toggle),
            (";", self.ui.outlineCheckBox.toggle),
        ):
            shortcut = qt.QShortcut(self._shortcutParent)
            shortcut.setKey(qt.QKeySequence(key))
            shortcut.connect("activated()", action)
            self._shortcuts.append(shortcut)

    def removeShortcuts(self) -> None:
        for shortcut in self._shortcuts:
            shortcut.disconnect("activated()")
            shortcut.setParent(None)
            shortcut.deleteLater()
        self._shortcuts = []

    # -- files ------------------------------------------------------------------------------------------------------
    def _onReport(self, checked: bool = False) -> None:
        page, runId = scene_import.reportOf(self._node), self._node.GetAttribute(scene_import.RUN_ATTRIBUTE)
        with slicer.util.tryWithErrorDisplay(_("The report cannot be opened.")):
            path = temporaryFolder() / f"WeakTumourSeg report {runId}.html"
            path.write_text(page, encoding="utf-8")
            if not qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(path))):
                raise RuntimeError(_("No program opens it; open {file} in a browser.").format(file=path))

    def _onSaveForTraining(self, checked: bool = False) -> None:
        folder = qt.QFileDialog.getExistingDirectory(
            self._shortcutParent, _("Folder of cases in which to save this one")
        )
        if folder:
            self.saveForTraining(Path(folder))

    def saveForTraining(self, cohort: Path) -> Path | None:
        """Write the case; says where, or why not."""
        try:
            with slicer.util.WaitCursor():
                case = training_export.saveForTraining(self._node, cohort)
        except (InputError, OSError) as error:
            slicer.util.errorDisplay(str(error), windowTitle=_("The case was not saved"))
            return None
        slicer.util.showStatusMessage(_("Saved as {folder}.").format(folder=case), 5000)
        return case


def _explainVerdict(item: qt.QTableWidgetItem, row: tumour_table.TumourRow) -> None:
    item.setToolTip(tumour_table.verdictToolTip(row))
    colours = tumour_table.VERDICT_COLOURS.get(row.verdict)
    if colours is not None:
        background, text = (qt.QBrush(qt.QColor(colour)) for colour in colours)
        item.setBackground(background)
        item.setForeground(text)
        item.setData(qt.Qt.DecorationRole, qt.QColor(colours[0]))  # a square, which a selected row shows as well


def _setQuietly(button: qt.QAbstractButton, checked: bool) -> None:
    """Press or release a button, and leave what that means to the caller."""
    blocked = button.blockSignals(True)
    button.setChecked(checked)
    button.blockSignals(blocked)


def openSegmentEditor(
    widget: Any, result: slicer.vtkMRMLSegmentationNode | None, editorNode: slicer.vtkMRMLSegmentEditorNode
) -> None:
    """Point the embedded Segment Editor at a result and its CT."""
    if widget.mrmlSegmentEditorNode() is not editorNode:
        widget.setMRMLSegmentEditorNode(editorNode)
    widget.setSegmentationNode(result)
    if result is not None:
        widget.setSourceVolumeNode(result.GetNodeReference(scene_import.FIXED_ROLE))


def segmentEditorNode() -> slicer.vtkMRMLSegmentEditorNode:
    """The module's own editor state, one in each scene."""
    tag = "WeakTumourSeg"
    node = slicer.mrmlScene.GetSingletonNode(tag, "vtkMRMLSegmentEditorNode")
    if node is None:
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
        node.UnRegister(None)
        node.SetSingletonTag(tag)
        node = slicer.mrmlScene.AddNode(node)
    return node
