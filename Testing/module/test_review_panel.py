"""What a reviewer does with a result: keys, before and after, the Segment Editor, the report. Ready-made results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import slicer

from module_helpers import run
from slicerhost import gestures


def composites() -> list:
    return slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")


def foregrounds() -> set[str]:
    return {composite.GetForegroundVolumeID() for composite in composites()}


def centres() -> list[tuple[float, ...]]:
    nodes = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    return [tuple(round(node.GetSliceToRAS().GetElement(axis, 3), 2) for axis in range(3)) for node in nodes]


def press(panel, text: str) -> None:
    """A key as the user presses it, with the panel in front: a key that two want reaches neither."""
    from PySide6.QtTest import QTest

    window = slicer.util.mainWindow()
    window.show()
    window.activateWindow()
    panel._uiWidget.setFocus()
    QTest.keyClicks(panel._uiWidget, text)
    slicer.app.processEvents()


# -- keys -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("correcting", [False, True])
def test_the_review_keys_work_beside_the_segment_editors(correcting, reviewed):
    ui = reviewed.ui
    ui.correctSection.collapsed = not correcting
    assert bool(ui.segmentEditorWidget._shortcuts) is correcting
    press(reviewed, "\\")
    assert ui.beforeButton.checked
    press(reviewed, "\\")
    assert not ui.beforeButton.checked
    press(reviewed, ";")
    assert ui.outlineCheckBox.checked
    row = ui.tumourTable.currentRow()
    press(reviewed, "]")
    assert ui.tumourTable.currentRow() == (row + 1) % ui.tumourTable.rowCount
    press(reviewed, "[")
    assert ui.tumourTable.currentRow() == row
    told = {"[": ui.previousTumourButton, "]": ui.nextTumourButton, "\\": ui.beforeButton, ";": ui.outlineCheckBox}
    for text, widget in told.items():
        assert widget.toolTip.endswith(f"Key: {text}")


def test_the_segment_editor_is_idle_while_its_section_is_closed(reviewed):
    ui = reviewed.ui
    gestures.click(ui.correctSection)
    ui.segmentEditorWidget.setActiveEffectByName("Paint")
    ui.correctSection.collapsed = True
    assert ui.segmentEditorWidget.activeEffect() is None
    press(reviewed, "1")
    assert ui.segmentEditorWidget.activeEffect() is None
    ui.correctSection.collapsed = False
    press(reviewed, "1")
    assert ui.segmentEditorWidget.activeEffect() is not None
    reviewed.exit()
    assert ui.segmentEditorWidget._shortcuts == []


def test_a_new_segment_is_called_a_tumour(reviewed):
    from WeakTumourSegLib import roles

    entry = reviewed.ui.segmentEditorWidget.defaultTerminologyEntry
    assert roles.Terminology.parse(entry) == roles.TERMINOLOGY[roles.TUMOUR]


# -- the table ------------------------------------------------------------------------------------------------------
def test_a_tumour_outside_the_ct_is_said_and_does_no_harm(reviewed):
    import json

    from WeakTumourSegLib import scene_import

    node, ui = reviewed.resultPanel.node, reviewed.ui
    content = json.loads(node.GetAttribute(scene_import.RESULT_ATTRIBUTE))
    outside = {**content["tumours"][0], "label": 77, "name": "far away", "volume_mm3": 0.0, "verdict": "outside_ct"}
    outside["warnings"] = ["far away lies outside the CT; it is not in the result."]
    content["tumours"].append(outside)
    node.SetAttribute(scene_import.RESULT_ATTRIBUTE, json.dumps(content))
    reviewed.resultPanel.refresh()
    last = ui.tumourTable.rowCount - 1
    assert ui.tumourTable.item(last, 0).text() == "far away"
    assert "far away lies outside the CT" in ui.runVerdictLabel.text
    before = centres()
    gestures.click_cell(ui.tumourTable, last, 0)
    assert centres() == before
    for _ in range(3):
        reviewed.resultPanel.step(1)
        assert ui.tumourTable.currentRow() != last


def test_arrow_keys_in_the_table_lead_to_the_tumour(reviewed):
    from PySide6.QtCore import Qt

    from WeakTumourSegLib import geometry, tumour_table

    table, node = reviewed.ui.tumourTable, reviewed.resultPanel.node
    node.GetSegmentation().AddEmptySegment("new", "Tumour by hand")
    image = geometry.orientedImage(np.ones((4, 4, 4), np.uint8), geometry.ijkToNode(reviewed._parameterNode.ctVolume))
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, node, "new")
    gestures.click_cell(table, 0, 0)
    for _ in range(table.rowCount - 1):
        gestures.press_key(table, Qt.Key.Key_Down)
    rows = tumour_table.rows(node)
    assert table.currentRow() == len(rows) - 1
    centre = tumour_table.measure(node, rows[-1].segmentId).centroidRAS
    assert np.allclose(centres(), [centre] * len(centres()), atol=0.01)


def test_an_edit_made_elsewhere_is_noticed(reviewed, slicer_host):
    """The first result is edited while the second is looked at."""
    from WeakTumourSegLib import geometry

    first = reviewed.resultPanel.node
    segmentId = reviewed.resultPanel._rows[0].segmentId
    run(reviewed, slicer_host)
    assert reviewed.resultPanel.node is not first
    image = geometry.orientedImage(np.ones((4, 4, 4), np.uint8), geometry.ijkToNode(reviewed._parameterNode.ctVolume))
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, first, segmentId)
    reviewed.ui.resultSelector.setCurrentNode(first)
    assert reviewed.ui.tumourTable.item(0, 5).text() == "edited by hand"


# -- images ---------------------------------------------------------------------------------------------------------
def test_a_new_result_is_shown_afresh(reviewed, slicer_host):
    ui = reviewed.ui
    gestures.click(ui.outlineCheckBox)
    reviewed.resultPanel.step(1)
    gestures.click(ui.checkerboardButton)
    gestures.click(ui.beforeButton)
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.SetFieldOfView(1.0, 1.0, 1.0)
    run(reviewed, slicer_host)
    assert not ui.beforeButton.checked
    assert not ui.checkerboardButton.checked
    assert ui.tumourTable.currentRow() == 0
    nodes = reviewed.logic.run.nodes
    assert foregrounds() == {nodes.registeredMR.GetID()}
    assert not nodes.segmentation.GetDisplayNode().GetVisibility2DFill()
    assert min(node.GetFieldOfView()[0] for node in slicer.util.getNodesByClass("vtkMRMLSliceNode")) > 50


def test_the_slider_and_before_end_the_checkerboard(reviewed):
    ui = reviewed.ui
    gestures.click(ui.checkerboardButton)
    ui.blendSlider.value = 0.3
    assert not ui.checkerboardButton.checked
    assert {composite.GetBackgroundVolumeID() for composite in composites()} == {ui.ctSelector.currentNodeID}
    gestures.click(ui.checkerboardButton)
    gestures.click(ui.beforeButton)
    assert not ui.checkerboardButton.checked
    assert foregrounds() == {ui.mrSelector.currentNodeID}
    gestures.click(ui.checkerboardButton)
    assert not ui.beforeButton.checked


def test_the_slider_leaves_the_segments_as_they_are(reviewed):
    display = reviewed.resultPanel.node.GetDisplayNode()
    display.SetVisibility(False)
    reviewed.ui.blendSlider.value = 0.3
    assert not display.GetVisibility()


def test_painting_and_before_exclude_each_other(reviewed):
    ui = reviewed.ui
    ui.correctSection.collapsed = False
    gestures.click(ui.beforeButton)
    ui.segmentEditorWidget.setActiveEffectByName("Paint")
    assert not ui.beforeButton.checked
    assert reviewed.resultPanel.node.GetDisplayNode().GetVisibility()
    gestures.click(ui.beforeButton)
    assert ui.segmentEditorWidget.activeEffect() is None


def test_the_registered_mri_comes_to_the_front(reviewed):
    gestures.click(reviewed.ui.beforeButton)
    reviewed.ui.blendSlider.value = 0.0
    gestures.click(reviewed.ui.showRegisteredButton)
    (shown,) = (slicer.mrmlScene.GetNodeByID(nodeId) for nodeId in foregrounds())
    assert "shown registered" in shown.GetName()
    assert {composite.GetForegroundOpacity() for composite in composites()} == {0.5}
    assert not reviewed.ui.beforeButton.checked


# -- coming and going -----------------------------------------------------------------------------------------------
def test_a_result_that_came_while_the_module_was_left_is_shown(quick, slicer_host):
    selector = slicer_host.main_window.moduleSelector()
    gestures.click(quick.ui.applyButton)
    selector.selectModule("Volumes")
    slicer_host.wait_until(lambda: not quick.isRunning, 60, "the run's end")
    assert foregrounds() != {quick.logic.run.nodes.registeredMR.GetID()}
    slicer_host.show_module("WeakTumourSeg")
    assert foregrounds() == {quick.logic.run.nodes.registeredMR.GetID()}
    assert quick.ui.tumourTable.currentRow() == 0
    quick.ui.tumourTable.selectRow(0)
    quick.ui.blendSlider.value = 0.1
    before = centres()
    selector.selectModule("Volumes")
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, 1, 2, 3, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
    slicer_host.show_module("WeakTumourSeg")
    assert centres() != before  # shown once; then the views stay as the user left them


def test_the_memory_is_looked_up_again_after_a_run(quick, slicer_host, monkeypatch):
    from WeakTumourSegLib import installation

    slicer_host.wait_until(lambda: quick._probe is None, 60, "the machine's description")
    asked, told = [], []

    def probe(onDone, ticker):
        asked.append(1)
        told.append(onDone)
        return installation.Child.__new__(installation.Child)

    monkeypatch.setattr(installation, "probeMachine", probe)
    run(quick, slicer_host)
    assert asked == [1]
    assert "Looking" not in quick.ui.deviceInfoLabel.text
    told[0](installation.Machine(problem="no memory to tell"))
    assert "no memory" not in quick.ui.deviceInfoLabel.text
    assert quick.ui.applyButton.enabled


# -- the report -----------------------------------------------------------------------------------------------------
def test_the_report_opens_without_a_working_folder_and_from_a_loaded_scene(
    reviewed, slicer_host, small_result, tmp_path, monkeypatch
):
    import qt

    opened = []

    class Services:
        @staticmethod
        def openUrl(url):
            opened.append(Path(url.toLocalFile()))
            return True

    monkeypatch.setattr(qt, "QDesktopServices", Services)
    gestures.click(reviewed.ui.reportButton)
    page = (small_result / "report.html").read_text()
    assert opened[-1].read_text() == page
    path = slicer_host.save_scene(tmp_path / "scene.mrb")
    slicer_host.close_scene()
    assert not reviewed.ui.reportButton.enabled
    assert reviewed.ui.reportButton.toolTip == "A run brings a report."
    opened[-1].unlink()
    slicer_host.load_scene(path)
    gestures.click(reviewed.ui.reportButton)
    assert opened[-1].read_text() == page
