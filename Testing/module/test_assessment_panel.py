"""The panel while a run's uncertainty is assessed, and what it shows then. A scripted worker, no torch."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import slicer

from module_helpers import SCENE_TESTS
from result_folder import assessedAs, writeAssessed, writeResult
from scene_data import OBLIQUE, box, ctVoxels, pattern
from slicerhost import gestures

SHAPE = (20, 22, 24)
REASON = "Localised: in 95 of 100 cases within 4.0 mm."
VERDICT = 5


class SilentProbe:
    """In the place of the child process that asks torch for devices."""

    def abandon(self) -> None:
        pass


def labelsOnCT() -> np.ndarray:
    labels = box(SHAPE, (4, 16), (4, 18), (4, 20)).astype(np.uint8)
    labels[8:12, 8:12, 8:13] = 2
    labels[13:15, 14:17, 15:19] = 3
    return labels


def addVolume(voxels: np.ndarray, name: str):
    from WeakTumourSegLib import geometry

    node = slicer.util.addVolumeFromArray(voxels, name=name)
    node.SetIJKToRASMatrix(geometry.arrayToMatrix(OBLIQUE))
    return node


def addSegmentation(volume):
    from WeakTumourSegLib import geometry, scene_import

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "MRI segmentation")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name, mask in (("Liver", labelsOnCT() > 0), ("HCC", labelsOnCT() == 2), ("lesion", labelsOnCT() == 3)):
        segment = slicer.vtkSegment()
        segment.SetName(name)
        image = geometry.orientedImage(mask.astype(np.uint8), geometry.ijkToNode(volume))
        segment.AddRepresentation(scene_import.binaryLabelmap(), image)
        node.GetSegmentation().AddSegment(segment)
    return node


@pytest.fixture
def prepared(tmp_path) -> Path:
    folder = tmp_path / "prepared"
    folder.mkdir()
    return folder


@pytest.fixture
def ready2(slicer_host, monkeypatch, request, prepared):
    """The panel with small volumes chosen and a worker that brings its result in two steps."""
    from WeakTumourSegLib import installation, scene_export

    monkeypatch.setattr(installation, "probeMachine", lambda onDone, ticker: SilentProbe())
    panel = request.getfixturevalue("panel")
    mr, ct = addVolume(pattern(SHAPE, 0, 800), "MRI"), addVolume(ctVoxels(SHAPE), "CT")
    panel.ui.mrSelector.setCurrentNode(mr)
    panel.ui.ctSelector.setCurrentNode(ct)
    panel.ui.mrSegmentationSelector.setCurrentNode(addSegmentation(mr))
    scene_export.exportVolume(ct, prepared / "ct.nrrd")
    writeResult(prepared / "result", prepared / "ct.nrrd", labelsOnCT())
    figures = {2: assessedAs("localised", 4.0, REASON), 3: assessedAs("approximate", 9.0)}
    writeAssessed(prepared / "result", prepared / "assessed", figures)
    panel.logic.workerCommand = [sys.executable, str(SCENE_TESTS / "two_stage_worker.py"), str(prepared)]
    return panel


@pytest.fixture
def assessing(ready2, slicer_host):
    """The panel in the second stage of a run."""
    gestures.click(ready2.ui.applyButton)
    slicer_host.wait_until(lambda: ready2.logic.run.isAssessing, 120, "the result")
    return ready2


def go(prepared: Path, what: str) -> None:
    (prepared / "told").write_text(what)
    (prepared / "told").rename(prepared / "go")


def complete(panel, slicer_host, prepared: Path, what: str = "complete") -> None:
    go(prepared, what)
    slicer_host.wait_until(lambda: not panel.isRunning, 120, "the run's end")
    assert panel.logic.run.state == "done"


@pytest.fixture
def assessed(assessing, slicer_host, prepared):
    complete(assessing, slicer_host, prepared)
    return assessing


def draw(panel, segmentId: str, mask: np.ndarray) -> None:
    from WeakTumourSegLib import geometry

    image = geometry.orientedImage(mask.astype(np.uint8), geometry.ijkToNode(panel._parameterNode.ctVolume))
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, panel.resultPanel.node, segmentId)


def verdicts(panel) -> list[str]:
    table = panel.ui.tumourTable
    return [table.item(row, VERDICT).text() for row in range(table.rowCount)]


def regionsOf(node):
    from WeakTumourSegLib import scene_import

    return scene_import.resultOf(node).regions


def shown(panel, node=None) -> list[bool]:
    from WeakTumourSegLib import roles

    regions = regionsOf(node or panel.resultPanel.node)
    display = regions.GetDisplayNode()
    return [
        bool(display.GetVisibility() and display.GetSegmentVisibility(segmentId))
        for segmentId, _segment in roles.segmentsOf(regions)
    ]


# -- the second stage -----------------------------------------------------------------------------------------------
def test_the_result_is_reviewed_and_edited_while_it_is_assessed(assessing, slicer_host, prepared):
    import qt

    ui, table = assessing.ui, assessing.ui.tumourTable
    assert ui.applyButton.text == "Stop assessing"
    assert ui.applyButton.enabled
    assert "The result stays" in ui.applyButton.toolTip
    slicer_host.wait_until(lambda: "Assessing" in ui.statusLabel.text, 30, "its progress")
    assert ui.statusLabel.text == (
        "Assessing how far each tumour can be trusted, about 8 s left. The result can already be used."
    )
    assert ui.progressBar.isVisible()
    assert ui.resultSelector.currentNode() is assessing.logic.run.nodes.segmentation
    assert verdicts(assessing) == ["not assessed"] * 2
    assert table.isColumnHidden(3)
    assert not ui.regionsCheckBox.enabled
    edited = np.roll(labelsOnCT() == 2, 2, axis=1)
    draw(assessing, "tumour_2", edited)
    gestures.click(ui.nextTumourButton)
    assert table.currentRow() == 1
    complete(assessing, slicer_host, prepared)
    assert verdicts(assessing) == ["edited by hand", "approximate"]
    assert table.item(1, 3).text() == "4.5 / 9.0"
    assert not table.isColumnHidden(3)
    assert not table.isColumnHidden(4)
    assert table.currentRow() == 1  # the review goes on where it was
    cell = table.item(1, VERDICT)
    assert (cell.background().color().name(), cell.foreground().color().name()) == ("#ffd54f", "#000000")
    assert cell.data(qt.Qt.DecorationRole).name() == "#ffd54f"  # to be seen in a selected row too
    assert "every point within 9.0 mm" in " ".join(cell.toolTip().split())
    assert ui.applyButton.text == "Register && Propagate"
    assert "Done in" in ui.statusLabel.text
    assert not ui.progressBar.isVisible()
    assert shown(assessing) == [False, True]
    draw(assessing, "tumour_2", labelsOnCT() == 2)  # undone
    assessing.resultPanel.measureEdits()
    assert verdicts(assessing) == ["localised", "approximate"]
    assert REASON in table.item(0, VERDICT).toolTip()
    assert shown(assessing) == [True, True]


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_stopped_or_killed_the_result_stays(how, assessing, slicer_host, prepared):
    ui = assessing.ui
    if how == "stopped":
        gestures.click(ui.applyButton)
        assert (ui.applyButton.text, ui.applyButton.enabled) == ("Stopping...", False)
        slicer_host.wait_until(lambda: not assessing.isRunning, 120, "the run's end")
        sentence = "The assessment was stopped"
    else:
        complete(assessing, slicer_host, prepared, "killed")
        sentence = "could not be assessed. The worker was ended from outside"
    assert ui.applyButton.text == "Register && Propagate"
    assert ui.applyButton.enabled
    assert "Done in" in ui.statusLabel.text
    for text in (ui.statusLabel.text, ui.runVerdictLabel.text, ui.logText.toPlainText()):
        assert sentence in text
    assert verdicts(assessing) == ["not assessed"] * 2
    assert "has not been assessed" in ui.tumourTable.item(0, VERDICT).toolTip()
    assert os.listdir(slicer.app.temporaryPath) == []


def test_closing_the_scene_ends_the_assessment(assessing, slicer_host):
    slicer_host.close_scene()
    assert not assessing.isRunning
    assert assessing.ui.tumourTable.rowCount == 0
    assert assessing.ui.applyButton.text == "Choose the MRI"
    assert os.listdir(slicer.app.temporaryPath) == []


def test_a_result_deleted_meanwhile_does_no_harm(assessing, slicer_host, prepared):
    slicer.mrmlScene.RemoveNode(assessing.resultPanel.node)
    complete(assessing, slicer_host, prepared)
    assert "removed from the scene" in assessing.ui.statusLabel.text
    assert assessing.ui.runVerdictLabel.text == "No result yet."
    kinds = [node.GetAttribute("WeakTumourSeg.Kind") for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")]
    assert kinds == [None]  # the MRI's


def test_the_module_may_be_left_meanwhile(assessing, slicer_host, prepared):
    slicer_host.main_window.moduleSelector().selectModule("Volumes")
    complete(assessing, slicer_host, prepared)
    slicer_host.show_module("WeakTumourSeg")
    assert verdicts(assessing) == ["localised", "approximate"]
    assert all(shown(assessing))


# -- position regions -----------------------------------------------------------------------------------------------
def test_position_regions_are_switched_and_follow_the_result(assessed, slicer_host, prepared):
    ui, first = assessed.ui, assessed.resultPanel.node
    assert ui.regionsCheckBox.enabled
    assert "DICOM export" in ui.regionsCheckBox.toolTip
    assert all(shown(assessed))
    gestures.click(ui.regionsCheckBox)
    assert not any(shown(assessed))
    gestures.click(ui.regionsCheckBox)
    gestures.click(ui.beforeButton)
    assert not any(shown(assessed))
    gestures.click(ui.beforeButton)
    assert all(shown(assessed))
    # A further run, without an assessment, and back.
    (prepared / "go").unlink()
    gestures.click(ui.applyButton)
    slicer_host.wait_until(lambda: assessed.logic.run.isAssessing, 120, "the second result")
    assert assessed.resultPanel.node is not first
    assert not any(shown(assessed, first))
    assert not ui.regionsCheckBox.enabled
    complete(assessed, slicer_host, prepared, "silent")
    ui.resultSelector.setCurrentNode(first)
    assert all(shown(assessed, first))
    regions = regionsOf(first)
    slicer.mrmlScene.RemoveNode(first)
    assert not slicer.mrmlScene.IsNodePresent(regions)


def test_position_regions_are_offered_nowhere_and_saved(assessed, slicer_host, tmp_path):
    ui = assessed.ui

    def isHidden(regions) -> bool:
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        offered = [
            selector.nodeFromIndex(index)
            for selector in (ui.mrSegmentationSelector, ui.ctLiverSelector, ui.resultSelector)
            for index in range(selector.nodeCount())
        ]
        return hierarchy.GetItemByDataNode(regions) == 0 and regions not in offered

    assert isHidden(regionsOf(assessed.resultPanel.node))
    assert ui.segmentEditorWidget.segmentationNode() is assessed.resultPanel.node
    ui.uncertaintyComboBox.setCurrentText("on")
    ui.localisedSpinBox.value = 3.5
    gestures.click(ui.regionsCheckBox)
    path = slicer_host.save_scene(tmp_path / "scene.mrb")
    slicer_host.close_scene()
    slicer_host.load_scene(path)
    assert verdicts(assessed) == ["localised", "approximate"]
    assert ui.uncertaintyComboBox.currentText == "on"
    assert (ui.localisedSpinBox.value, ui.approximateSpinBox.value) == (3.5, 10.0)
    assert not ui.regionsCheckBox.checked
    assert not any(shown(assessed))
    assert isHidden(regionsOf(assessed.resultPanel.node))
    gestures.click(ui.regionsCheckBox)
    assert all(shown(assessed))


def test_position_regions_are_drawn_in_the_views(assessed, slicer_host):
    from slicerhost import views

    assessed.resultPanel.step(1)
    slicer_host.process_events(0.2)
    withRegions = views.slice_picture("Red")
    gestures.click(assessed.ui.regionsCheckBox)
    slicer_host.process_events(0.2)
    assert np.any(views.slice_picture("Red") != withRegions)


# -- the choice -----------------------------------------------------------------------------------------------------
def test_the_uncertainty_is_chosen_and_explained(ready2, slicer_host, prepared, monkeypatch):
    import qt

    module = sys.modules["WeakTumourSeg"]
    monkeypatch.setattr(module, "workerAccepts", lambda option: True)
    ready2._explainUncertainty()
    choices = ready2.ui.uncertaintyComboBox
    assert choices.enabled
    tips = [choices.itemData(index, qt.Qt.ToolTipRole) for index in range(choices.count)]
    assert len(tips) == 3
    assert all(tips)
    choices.setCurrentText("on")
    assert (ready2.ui.localisedSpinBox.value, ready2.ui.approximateSpinBox.value) == (5.0, 10.0)
    ready2.ui.localisedSpinBox.value, ready2.ui.approximateSpinBox.value = 4.0, 7.5
    gestures.click(ready2.ui.applyButton)
    complete(ready2, slicer_host, prepared)
    arguments = json.loads((prepared / "request.json").read_text())["arguments"]
    assert (arguments["uncertainty"], arguments["verdict_mm"]) == ("on", "4,7.5")
