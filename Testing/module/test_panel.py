"""The module as a clinician uses it: real clicks, the real worker process, a small simulated patient."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import slicer

from module_helpers import MODULE, run
from slicerhost import gestures
from weaktumour.workspace import process_is_alive


def nodeIds() -> set[str]:
    return {slicer.mrmlScene.GetNthNode(i).GetID() for i in range(slicer.mrmlScene.GetNumberOfNodes())}


def temporaryFiles() -> list[str]:
    return os.listdir(slicer.app.temporaryPath)


def drawOnResult(panel, segmentId: str, mask: np.ndarray) -> None:
    """A stroke of the brush, as the Segment Editor makes it: undo state first, then the segment's new voxels."""
    from WeakTumourSegLib import geometry

    node, ct = panel.resultPanel.node, panel._parameterNode.ctVolume
    panel.ui.segmentEditorWidget.saveStateForUndo()
    image = geometry.orientedImage(mask.astype(np.uint8), geometry.ijkToNode(ct))
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, node, segmentId)


def voxels(panel, segmentId: str, node=None) -> np.ndarray:
    from WeakTumourSegLib.scene_export import segmentsOnGrid

    return segmentsOnGrid(node or panel.resultPanel.node, [segmentId], panel._parameterNode.ctVolume)


# -- before a run ---------------------------------------------------------------------------------------------------
def test_the_button_says_what_is_missing(panel, patient, slicer_host):
    assert panel.ui.applyButton.text == "Choose the MRI"
    assert panel.ui.applyButton.toolTip == "Choose the MRI."
    assert not panel.ui.applyButton.enabled
    panel.ui.mrSelector.setCurrentNode(patient.mr)
    assert panel.ui.applyButton.text == "Choose the CT"
    panel.ui.ctSelector.setCurrentNode(patient.mr)
    assert "same volume" in panel.ui.applyButton.toolTip
    panel.ui.ctSelector.setCurrentNode(patient.ct)
    assert panel.ui.applyButton.text == "Register && Propagate"
    assert panel.ui.applyButton.enabled
    panel.ui.mrSelector.setCurrentNode(patient.ct)
    panel.ui.ctSelector.setCurrentNode(patient.mr)
    assert "exchanged" in panel.ui.statusLabel.text
    assert not panel.ui.applyButton.enabled


def flatVolume(shape: tuple[int, ...], name: str):
    return slicer.util.addVolumeFromArray(np.random.default_rng(0).integers(0, 900, shape).astype(np.int16), name=name)


def fourD():
    import vtk

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "4-D")
    image = vtk.vtkImageData()
    image.SetDimensions(9, 8, 7)
    image.AllocateScalars(vtk.VTK_SHORT, 4)
    node.SetAndObserveImageData(image)
    return node


def bent(node):
    import vtk

    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "bend")
    spline = vtk.vtkThinPlateSplineTransform()
    points = vtk.vtkPoints()
    for corner in ((0, 0, 0), (100, 0, 0), (0, 100, 0), (0, 0, 100), (100, 100, 100)):
        points.InsertNextPoint(corner)
    moved = vtk.vtkPoints()
    moved.DeepCopy(points)
    moved.SetPoint(4, 110, 100, 100)
    spline.SetSourceLandmarks(points)
    spline.SetTargetLandmarks(moved)
    transform.SetAndObserveTransformToParent(spline)
    node.SetAndObserveTransformNodeID(transform.GetID())
    return node


def emptySegmentation(patient):
    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "empty")


def segmentationOfCT(patient):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "of the CT")
    node.SetReferenceImageGeometryParameterFromVolumeNode(patient.ct)
    node.GetSegmentation().AddEmptySegment("liver", "liver")
    return node


@pytest.mark.parametrize(
    ("selector", "make", "sentence"),
    [
        ("mrSelector", lambda patient: None, "Choose the MRI"),
        ("ctSelector", lambda patient: None, "Choose the CT"),
        ("mrSelector", lambda patient: patient.ct, "same volume"),
        ("mrSelector", lambda patient: flatVolume((1, 20, 20), "thin"), "single slice"),
        ("mrSelector", lambda patient: fourD(), "4 values a voxel"),
        ("ctSelector", lambda patient: flatVolume((9, 20, 20), "no CT"), "cannot be Hounsfield units"),
        ("mrSelector", lambda patient: bent(patient.mr), "non-linear transform"),
        ("mrSegmentationSelector", emptySegmentation, "is empty"),
        ("mrSegmentationSelector", segmentationOfCT, "was drawn on"),
    ],
)
def test_wrong_inputs_are_said_before_a_run(selector, make, sentence, ready, patient):
    node = make(patient)
    getattr(ready.ui, selector).setCurrentNode(None)
    getattr(ready.ui, selector).setCurrentNode(node)
    assert sentence in ready.ui.applyButton.toolTip
    assert sentence in ready.ui.statusLabel.text
    assert not ready.ui.applyButton.enabled


def test_what_only_the_voxels_tell_is_said_instead_of_a_run(ready, patient, slicer_host):
    from WeakTumourSegLib import roles

    for _segmentId, segment in roles.segmentsOf(patient.segmentation):
        segment.RemoveAllRepresentations()
    before = nodeIds()
    gestures.click(ready.ui.applyButton)
    assert not ready.isRunning
    assert "empty" in ready.ui.statusLabel.text or "label map" in ready.ui.statusLabel.text
    assert nodeIds() == before
    assert temporaryFiles() == []


def test_roles_are_shown_and_changed(ready, patient):
    from WeakTumourSegLib import roles

    table = ready.ui.rolesTable
    segments = roles.segmentsOf(patient.segmentation)
    assert table.rowCount == len(segments)
    assert table.cellWidget(0, 1).currentText == "liver"
    chooser = table.cellWidget(1, 1)
    assert chooser.currentText == "tumour"
    gestures.choose(chooser, "neither (not carried over)")
    assert roles.roleOf(segments[1][1]) == roles.NEITHER


def test_without_torch_it_explains_and_offers_the_extension(slicer_host, panel, patient, monkeypatch):
    from WeakTumourSegLib import installation

    monkeypatch.setattr(installation, "hasTorch", lambda: False)
    panel.exit()
    panel.enter()
    assert panel.ui.installationFrame.isVisible()
    assert "PyTorch" in panel.ui.applyButton.text
    gestures.click(panel.ui.installTorchButton)
    (message,) = slicer_host.messages
    assert "Extensions Manager" in message.text
    slicer_host.errors.clear()  # tryWithErrorDisplay raises it again


@pytest.mark.parametrize(
    ("torch", "problem", "sentence"),
    [
        (None, "PyTorch does not work here (OSError: libcudart.so: not found).", "libcudart.so"),
        ("2.3.1+cpu", "", "PyTorch 2.3.1+cpu is too old; 2.4 or later is needed."),
    ],
)
def test_a_torch_that_is_of_no_use_is_said(torch, problem, sentence, slicer_host, ready, monkeypatch):
    from WeakTumourSegLib import installation

    slicer_host.wait_until(lambda: ready._probe is None, 60, "the machine's description")
    assert not ready.ui.installationFrame.isVisible()
    assert ready.ui.applyButton.enabled
    ready._machine = installation.Machine()
    devices = {} if problem else {"cpu": {"name": "CPU", "free_mb": None}}
    ready._onMachine(installation.Machine(torch, devices, problem=problem))
    assert ready.ui.installationFrame.isVisible()
    assert sentence in ready.ui.installationLabel.text
    assert sentence in ready.ui.statusLabel.text
    assert not ready.ui.applyButton.enabled
    # Installed anew: asked again, and the way is free.
    monkeypatch.setattr(installation, "installTorch", lambda: True)
    gestures.click(ready.ui.installTorchButton)
    slicer_host.wait_until(lambda: ready._probe is None, 60, "the machine's description")
    assert not ready.ui.installationFrame.isVisible()
    assert ready.ui.applyButton.enabled


def volumeOf(voxels: np.ndarray, name: str):
    return slicer.util.addVolumeFromArray(voxels.astype(np.int16), name=name)


def test_mri_and_ct_are_preselected_where_there_is_no_doubt(panel, slicer_host):
    def enter():
        panel.exit()
        panel.enter()
        return panel._parameterNode

    rng = np.random.default_rng(0)
    mr = volumeOf(rng.integers(0, 900, (9, 20, 20)), "A")
    enter()
    assert panel._parameterNode.mrVolume is None  # no CT yet
    voxels = np.full((9, 20, 20), -1000)
    voxels[2:7, 4:16, 4:16] = 60
    ct = volumeOf(voxels, "B")
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "of A")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(mr)
    chosen = enter()
    assert (chosen.mrVolume, chosen.ctVolume, chosen.mrSegmentation) == (mr, ct, segmentation)
    assert panel.ui.mrSelector.currentNode() is mr
    chosen.mrSegmentation = None
    assert enter().mrSegmentation is None  # the user wants none
    # What the user chose stays; a second MRI leaves a doubt.
    other = volumeOf(rng.integers(0, 900, (9, 20, 20)), "C")
    panel._parameterNode.mrVolume = other
    assert enter().mrVolume is other
    panel._parameterNode.mrVolume = None
    assert enter().mrVolume is None


def test_device_and_time_are_shown(ready, slicer_host):
    slicer_host.wait_until(lambda: ready._probe is None, 60, "the machine's description")
    assert "GB free" in ready.ui.deviceInfoLabel.text
    assert "about" in ready.ui.presetTimeLabel.text


# -- a run ----------------------------------------------------------------------------------------------------------
def test_a_click_registers_and_propagates(ready, patient, slicer_host, tmp_path):
    import SimpleITK as sitk

    from WeakTumourSegLib import roles, scene_export

    work = tmp_path / "work"
    work.mkdir()
    ready.ui.workingFolderEdit.currentPath = str(work)
    seen = []
    gestures.click(ready.ui.applyButton)
    assert ready.ui.applyButton.text == "Cancel"
    longest = 0.0
    while ready.isRunning:
        begun = time.monotonic()
        slicer_host.app.processEvents()
        longest = max(longest, time.monotonic() - begun)
        seen.append((ready.ui.progressBar.value, ready.ui.statusLabel.text))
        time.sleep(0.005)
    assert ready.logic.run.state == "done", ready.logic.run.message
    moved = sorted({value for value, _text in seen})
    assert len(moved) > 5
    assert [value for value, _text in seen] == sorted(value for value, _text in seen)
    assert any("left" in text for _value, text in seen)
    assert longest < 3  # the import of the result included
    assert ready.ui.applyButton.text == "Register && Propagate"
    assert "Done in" in ready.ui.statusLabel.text

    result = ready._parameterNode.result
    (folder,) = work.iterdir()
    file = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "ct_labels.nii.gz")))
    mapped, labels = scene_export.labelMap(result, patient.ct)
    assert np.array_equal(mapped, file)
    assert [label.name for label in labels] == [
        segment.GetName() for _id, segment in roles.segmentsOf(patient.segmentation)
    ]
    for _segmentId, segment in roles.segmentsOf(result):
        assert roles.terminologyOf(segment).type.value in ("10200004", "4147007")
    assert ready.ui.reportButton.enabled
    assert temporaryFiles() == []
    assert "worker" in ready.ui.logText.toPlainText()
    gestures.click(ready.ui.logSection)
    gestures.click(ready.ui.copyLogButton)
    assert slicer.app.clipboard().text() == ready.ui.logText.toPlainText()


def test_leaving_the_module_does_not_lose_the_run(ready, slicer_host):
    selector = slicer_host.main_window.moduleSelector()
    gestures.click(ready.ui.applyButton)
    slicer_host.process_events(0.5)
    selector.selectModule("Volumes")
    slicer_host.wait_until(lambda: not ready.isRunning, 240, "the run's end")
    panel = slicer_host.show_module("WeakTumourSeg")
    assert panel._parameterNode.result is panel.logic.run.nodes.segmentation
    assert panel.ui.tumourTable.rowCount >= 1
    assert panel.ui.applyButton.text == "Register && Propagate"


def test_the_table_leads_to_the_tumours(reviewed, slicer_host):
    from WeakTumourSegLib import geometry, tumour_table

    table = reviewed.ui.tumourTable
    rows = tumour_table.rows(reviewed.resultPanel.node)
    assert table.rowCount == len(rows) >= 1
    gestures.click_cell(table, len(rows) - 1, 1)
    centre = tumour_table.measure(reviewed.resultPanel.node, rows[-1].segmentId).centroidRAS
    sliceNodes = slicer.util.getNodesByClass("vtkMRMLSliceNode")
    assert sliceNodes
    for node in sliceNodes:
        assert np.allclose(geometry.matrixToArray(node.GetSliceToRAS())[:3, 3], centre, atol=1e-3)
    gestures.click(reviewed.ui.nextTumourButton)
    assert table.currentRow() == 0


def test_review_shows_before_after_blend_and_checkerboard(reviewed, slicer_host):
    nodes = reviewed.logic.run.nodes
    composites = slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")
    assert {c.GetForegroundVolumeID() for c in composites} == {nodes.registeredMR.GetID()}
    gestures.click(reviewed.ui.beforeButton)
    assert {c.GetForegroundVolumeID() for c in composites} == {reviewed._parameterNode.mrVolume.GetID()}
    gestures.click(reviewed.ui.beforeButton)
    reviewed.ui.blendSlider.value = 0.25
    assert {round(c.GetForegroundOpacity(), 3) for c in composites} == {0.25}
    gestures.click(reviewed.ui.checkerboardButton)
    assert all("checkerboard" in slicer.mrmlScene.GetNodeByID(c.GetBackgroundVolumeID()).GetName() for c in composites)
    gestures.click(reviewed.ui.checkerboardButton)
    assert {c.GetBackgroundVolumeID() for c in composites} == {reviewed._parameterNode.ctVolume.GetID()}
    gestures.click(reviewed.ui.outlineCheckBox)
    assert not reviewed.resultPanel.node.GetDisplayNode().GetVisibility2DFill()
    gestures.click(reviewed.ui.showRegisteredButton)
    gestures.click(reviewed.ui.showRegisteredButton)
    names = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
    assert sum("shown registered" in name for name in names) == 1


def test_an_edit_is_told_and_undone(reviewed, slicer_host):
    from slicerhost import segment_editor

    table, editor = reviewed.ui.tumourTable, reviewed.ui.segmentEditorWidget
    before = [table.item(0, column).text() for column in range(table.columnCount)]
    gestures.click_cell(table, 0, 0)
    segmentId = reviewed.resultPanel._rows[0].segmentId
    assert editor.currentSegmentID() == segmentId
    assert editor.sourceVolumeNode() is reviewed._parameterNode.ctVolume
    drawn = voxels(reviewed, segmentId)
    editor.setActiveEffectByName("Paint")
    centre = slicer.util.getNodesByClass("vtkMRMLSliceNode")[0].GetSliceToRAS()
    beside = [centre.GetElement(axis, 3) + 15 * (axis == 0) for axis in range(3)]
    segment_editor.paint(editor, tuple(beside), 9.0)
    assert voxels(reviewed, segmentId).sum() > drawn.sum()
    slicer_host.wait_until(lambda: table.item(0, 5).text() == "edited by hand", 5, "the edit in the table")
    assert float(table.item(0, 1).text()) > float(before[1])
    assert "Computed: not assessed" in table.item(0, 5).toolTip()
    editor.undo()
    slicer_host.wait_until(lambda: table.item(0, 5).text() != "edited by hand", 5, "the computed verdict")
    assert [table.item(0, column).text() for column in range(table.columnCount)] == before
    assert np.array_equal(voxels(reviewed, segmentId), drawn)


def test_a_second_run_leaves_what_was_painted(reviewed, slicer_host):
    first = reviewed._parameterNode.result
    segmentId = reviewed.resultPanel._rows[0].segmentId
    painted = np.roll(voxels(reviewed, segmentId), 3, axis=1)
    drawOnResult(reviewed, segmentId, painted)
    run(reviewed, slicer_host)
    second = reviewed._parameterNode.result
    assert second is not first
    assert second.GetName() != first.GetName()
    assert np.array_equal(voxels(reviewed, segmentId, first), painted)
    assert not np.array_equal(voxels(reviewed, segmentId, second), painted)
    assert reviewed.ui.segmentEditorWidget.segmentationNode() is second
    reviewed.ui.resultSelector.setCurrentNode(first)
    assert reviewed.ui.tumourTable.item(0, 5).text() == "edited by hand"


def test_the_scene_file_brings_everything_back(reviewed, slicer_host, tmp_path):
    segmentId = reviewed.resultPanel._rows[0].segmentId
    drawOnResult(reviewed, segmentId, np.roll(voxels(reviewed, segmentId), 2, axis=2))
    reviewed.resultPanel.measureEdits()
    reviewed.ui.seedSpinBox.value = 42
    table = reviewed.ui.tumourTable

    def shown() -> list[list[str]]:
        return [[table.item(r, c).text() for c in range(table.columnCount)] for r in range(table.rowCount)]

    before, drawn = shown(), voxels(reviewed, segmentId)
    path = slicer_host.save_scene(tmp_path / "scene.mrb")
    slicer_host.close_scene()
    assert table.rowCount == 0
    assert reviewed.ui.mrSelector.currentNode() is None
    slicer_host.load_scene(path)
    assert reviewed.ui.mrSelector.currentNode().GetName() == "Simulated MRI"
    assert reviewed.ui.presetComboBox.currentText == "fast"
    assert reviewed.ui.seedSpinBox.value == 42
    assert shown() == before
    assert np.array_equal(voxels(reviewed, segmentId), drawn)
    assert reviewed.ui.applyButton.text == "Register && Propagate"


def test_save_for_training_writes_a_case(reviewed, slicer_host, tmp_path):
    from weaktumour.cases import read_case

    slicer_host.answer(str(tmp_path))
    gestures.click(reviewed.ui.correctSection)
    gestures.click(reviewed.ui.saveForTrainingButton)
    (folder,) = tmp_path.glob("case-*")
    assert read_case(folder).info["kind"] == "corrected"


def test_what_the_network_found_on_the_mri_can_be_corrected_and_saved(ready, slicer_host, tmp_path):
    """Without an MRI segmentation the run brings its own: on the MRI's voxels, and good for training."""
    from weaktumour.cases import read_case
    from WeakTumourSegLib import roles, scene_export
    from WeakTumourSegLib.scene_import import MOVING_SEGMENTATION_ROLE

    ready.ui.mrSegmentationSelector.setCurrentNode(None)
    run(ready, slicer_host)
    found = ready.resultPanel.node.GetNodeReference(MOVING_SEGMENTATION_ROLE)
    voxels, labels = scene_export.labelMap(found, ready._parameterNode.mrVolume)
    assert [label.role for label in labels][:1] == [roles.LIVER]
    assert 0.5e6 < (voxels > 0).sum() * 64 < 4e6  # mm3, at 4 mm: a liver
    assert not found.GetDisplayNode().GetVisibility()
    slicer_host.answer(str(tmp_path))
    assert ready.resultPanel.saveForTraining(tmp_path) is not None
    (folder,) = tmp_path.glob("case-*")
    assert np.array_equal(read_case(folder).mr_labels.array, voxels)


def test_one_segmentation_at_a_time_is_shown(reviewed, patient, slicer_host):
    shown = [node.GetDisplayNode() for node in (reviewed.resultPanel.node, patient.segmentation)]
    assert [display.GetVisibility() for display in shown] == [1, 0]
    gestures.click(reviewed.ui.beforeButton)
    assert [display.GetVisibility() for display in shown] == [0, 1]
    gestures.click(reviewed.ui.beforeButton)
    first = reviewed.resultPanel.node
    run(reviewed, slicer_host)
    assert not first.GetDisplayNode().GetVisibility()
    reviewed.ui.resultSelector.setCurrentNode(first)
    assert first.GetDisplayNode().GetVisibility()
    assert not reviewed.logic.run.nodes.segmentation.GetDisplayNode().GetVisibility()


def test_the_panel_shows_what_there_is(ready, slicer_host):
    ui = ready.ui
    assert ui.runVerdictLabel.text == "No result yet."
    assert not ui.tumourTable.isVisible()
    assert not any(button.enabled for button in (ui.reportButton, ui.beforeButton, ui.saveForTrainingButton))
    assert ui.reviewSection.collapsed
    run(ready, slicer_host)
    assert ui.resultSelector.currentNode() is ready.resultPanel.node
    assert ui.tumourTable.isVisible()
    assert not ui.reviewSection.collapsed
    titles = [ui.tumourTable.horizontalHeaderItem(c).text() for c in range(ui.tumourTable.columnCount)]
    hidden = {title.split("\n")[0] for c, title in enumerate(titles) if ui.tumourTable.isColumnHidden(c)}
    assert hidden == {"p50 / p95"}  # of preset fast nothing is known of it


def test_keys_lead_from_tumour_to_tumour(reviewed, slicer_host):
    texts = {shortcut.key.toString(): shortcut for shortcut in reviewed.resultPanel._shortcuts}
    assert set(texts) == {"[", "]", "\\", ";"}
    reviewed.ui.tumourTable.selectRow(0)
    texts["]"].activated.emit()
    assert reviewed.ui.tumourTable.currentRow() == 1 % reviewed.ui.tumourTable.rowCount
    texts["\\"].activated.emit()
    assert reviewed.ui.beforeButton.checked
    reviewed.exit()
    assert reviewed.resultPanel._shortcuts == []


# -- models and sample data -----------------------------------------------------------------------------------------
def test_models_are_listed_verified_and_imported(panel, slicer_host, tmp_path, monkeypatch):
    monkeypatch.setenv("WEAKTUMOUR_MODELS", str(tmp_path / "mine"))
    models = panel.modelsPanel
    assert panel.ui.registrationModelComboBox.count >= 2
    gestures.click(panel.ui.advancedSection)
    gestures.click(panel.ui.verifyModelsButton)
    slicer_host.wait_until(lambda: not models.isBusy, 60, "the models' check")
    assert "checksum and weights are right" in panel.ui.modelsLabel.text
    copy = tmp_path / "copy.pt"
    copy.write_bytes(next((MODULE / "Resources/Models").glob("unet-*.pt")).read_bytes())
    slicer_host.answer(str(copy))
    gestures.click(panel.ui.importModelButton)
    slicer_host.wait_until(lambda: not models.isBusy, 60, "the import")
    combo = panel.ui.segmentationModelComboBox
    assert "Imported copy" in panel.ui.modelsLabel.text
    gestures.choose(combo, "copy (yours)")
    assert panel._parameterNode.segmentationModel == "copy"
    (tmp_path / "no model.pt").write_text("no model")
    models.importFile(str(tmp_path / "no model.pt"))
    slicer_host.wait_until(lambda: not models.isBusy, 60, "the refusal")
    assert "no model.pt" in panel.ui.modelsLabel.text
    slicer_host.answer(True)
    gestures.click(panel.ui.removeModelButton)
    slicer_host.wait_until(lambda: not models.isBusy, 60, "the removal")
    assert combo.findText("copy (yours)") == -1
    assert "torch" not in sys.modules


def test_a_model_that_is_not_there_is_said(ready, slicer_host, tmp_path, monkeypatch):
    """As in a scene from another computer."""
    monkeypatch.setenv("WEAKTUMOUR_MODELS", str(tmp_path / "mine"))
    combo = ready.ui.segmentationModelComboBox
    ready._parameterNode.segmentationModel = "theirs"
    assert combo.currentText == "theirs (missing)"
    assert 'The segmentation model "theirs" is not installed' in ready.ui.statusLabel.text
    assert not ready.ui.applyButton.enabled
    gestures.click(ready.ui.advancedSection)
    gestures.choose(combo, "default")
    assert ready.ui.applyButton.enabled
    assert combo.findText("theirs (missing)") == -1


def test_a_removed_model_is_no_longer_chosen(ready, slicer_host, tmp_path, monkeypatch):
    monkeypatch.setenv("WEAKTUMOUR_MODELS", str(tmp_path / "mine"))
    copy = tmp_path / "copy.pt"
    copy.write_bytes(next((MODULE / "Resources/Models").glob("unet-*.pt")).read_bytes())
    ready.modelsPanel.importFile(str(copy))
    slicer_host.wait_until(lambda: not ready.modelsPanel.isBusy, 60, "the import")
    ready._parameterNode.segmentationModel = "copy"
    gestures.click(ready.ui.advancedSection)
    gestures.click(ready.ui.removeModelButton)
    slicer_host.wait_until(lambda: not ready.modelsPanel.isBusy, 60, "the removal")
    assert ready._parameterNode.segmentationModel == ""
    assert ready.ui.applyButton.enabled


def test_weights_can_be_imported_where_there_are_none(ready, slicer_host, tmp_path, monkeypatch):
    from WeakTumourSegLib import models_panel

    monkeypatch.setenv("WEAKTUMOUR_MODELS", str(tmp_path / "mine"))
    assert not ready.ui.importModelHintButton.isVisible()
    listed = models_panel.models.list_models
    monkeypatch.setattr(models_panel.models, "list_models", list)
    ready.modelsPanel.refresh()
    ready._checkCanApply()
    assert "No network's weights are installed" in ready.ui.statusLabel.text
    assert not ready.ui.applyButton.enabled
    monkeypatch.setattr(models_panel.models, "list_models", listed)
    copy = tmp_path / "copy.pt"
    copy.write_bytes(next((MODULE / "Resources/Models").glob("unet-*.pt")).read_bytes())
    slicer_host.answer(str(copy))
    gestures.click(ready.ui.importModelHintButton)
    slicer_host.wait_until(lambda: not ready.modelsPanel.isBusy, 60, "the import")
    assert "Imported copy" in ready.ui.statusLabel.text
    assert not ready.ui.importModelHintButton.isVisible()
    assert ready.ui.applyButton.enabled


def test_the_simulated_patient_is_offered_and_made_here(slicer_host, panel, patient, monkeypatch):
    import types

    registered = []
    sampleData = types.ModuleType("SampleData")
    sampleData.SampleDataLogic = types.SimpleNamespace(
        registerCustomSampleDataSource=lambda **source: registered.append(source)
    )
    monkeypatch.setitem(sys.modules, "SampleData", sampleData)
    module = sys.modules["WeakTumourSeg"]
    module.registerSampleData()
    (source,) = registered
    assert source["sampleName"] == "Simulated liver patient"
    assert source["uris"] == []  # nothing is downloaded
    assert os.path.isfile(source["thumbnailFileName"])
    from WeakTumourSegLib.logic import RegistrationLogic, Run

    made = Run()
    made.loaded = patient
    monkeypatch.setattr(RegistrationLogic, "simulatePatient", lambda self, **keywords: made)
    assert source["customDownloader"](None) == list(patient)
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        assert composite.GetBackgroundVolumeID() == patient.ct.GetID()
        assert composite.GetForegroundVolumeID() == patient.mr.GetID()
        assert composite.GetForegroundOpacity() == 0.5


# -- endings --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("moment", [0.0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0])
def test_cancel_at_any_moment_leaves_nothing(moment, ready, slicer_host):
    before = nodeIds()
    gestures.click(ready.ui.applyButton)
    slicer_host.process_events(moment)
    pid = ready.logic.run._worker.pid
    begun = time.monotonic()
    gestures.click(ready.ui.applyButton)
    slicer_host.wait_until(lambda: not ready.isRunning, 5, "the end of the run")
    assert time.monotonic() - begun < 2
    assert ready.ui.applyButton.enabled
    assert ready.ui.applyButton.text == "Register && Propagate"
    assert "Cancelled" in ready.ui.statusLabel.text
    assert nodeIds() == before
    assert temporaryFiles() == []
    assert not process_is_alive(pid)
    group = subprocess.run(["ps", "-o", "pid=", "-g", str(pid)], capture_output=True, text=True, check=False)
    assert group.stdout.split() == []


def test_a_killed_worker_is_said_in_the_panel(ready, slicer_host):
    before = nodeIds()
    gestures.click(ready.ui.applyButton)
    slicer_host.process_events(1.0)
    os.killpg(ready.logic.run._worker.pid, signal.SIGKILL)
    slicer_host.wait_until(lambda: not ready.isRunning, 5, "the end of the run")
    assert "memory ran out" in ready.ui.statusLabel.text
    assert nodeIds() == before
    assert temporaryFiles() == []
    assert ready.ui.applyButton.enabled


def test_closing_the_scene_ends_a_run(ready, slicer_host):
    gestures.click(ready.ui.applyButton)
    slicer_host.process_events(0.5)
    pid = ready.logic.run._worker.pid
    slicer_host.close_scene()
    assert not ready.isRunning
    assert not process_is_alive(pid)
    assert temporaryFiles() == []
    assert ready.ui.applyButton.text == "Choose the MRI"


def test_help_leads_to_pages_that_exist(slicer_host, panel):
    from WeakTumourSeg import PAGES

    linked = re.findall(r'href="([^"]+)"', slicer.modules.weaktumourseg.helpText)
    assert len(linked) == 2
    for address in linked:
        assert (MODULE.parent / address.removeprefix(PAGES + "/")).is_file()


# -- what the application's process is spared -----------------------------------------------------------------------
def test_the_application_never_imports_torch(done):
    assert "torch" not in sys.modules


def test_the_module_is_imported_quickly(slicer_host):
    """Beyond what Slicer itself has imported, in a fresh process of the host."""
    code = (
        "import sys, time; sys.path[:0] = [{testing!r}, {module!r}];"
        "from slicerhost import start; host = start();"
        "import qt, ctk, vtk, numpy, slicer.util, slicer.ScriptedLoadableModule, slicer.parameterNodeWrapper;"
        "begun = time.process_time(); import WeakTumourSeg; took = time.process_time() - begun;"
        "print(took); assert 'torch' not in sys.modules and 'SimpleITK' not in sys.modules, 'heavy'"
    ).format(testing=str(MODULE.parent / "Testing"), module=str(MODULE))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 0.3


def test_no_observer_is_left_behind(slicer_host, panel):
    """20 times: choose a volume, leave, come back, reload, close the scene."""
    from PySide6 import QtCore

    from slicerhost import observers

    selector = slicer_host.main_window.moduleSelector()

    def live_once() -> None:
        widget = slicer_host.show_module("WeakTumourSeg")
        widget.ui.mrSelector.setCurrentNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "MRI"))
        selector.selectModule("Volumes")
        widget = slicer_host.show_module("WeakTumourSeg")
        widget.onReload()
        slicer_host.process_events()
        slicer_host.close_scene()
        selector.selectModule("Volumes")
        slicer_host.process_events()
        # deleteLater() waits for the application's own event loop, which does not run here.
        QtCore.QCoreApplication.sendPostedEvents(None, QtCore.QEvent.Type.DeferredDelete.value)

    live_once()  # the parameter node and the panel are made once
    before = observers.count()
    for _ in range(20):
        live_once()
    assert observers.growth(before, observers.count()) == {}


def test_coming_and_going_leaves_no_observer(slicer_host, panel):
    """20 times, without a reload, which would take what was forgotten with it."""
    from slicerhost import observers

    selector = slicer_host.main_window.moduleSelector()
    slicer_host.wait_until(lambda: panel._probe is None, 60, "the machine's description")

    def comeAndGo() -> None:
        selector.selectModule("Volumes")
        slicer_host.show_module("WeakTumourSeg")

    comeAndGo()
    before = observers.count()
    for _ in range(20):
        comeAndGo()
    assert observers.growth(before, observers.count()) == {}


def test_a_reload_while_it_is_shown_brings_a_working_panel(slicer_host, panel, monkeypatch):
    """Slicer does not call enter() then; and the editor is left before its node is taken away."""
    editor, calls = panel.ui.segmentEditorWidget, []
    for name in ("setActiveEffectByName", "removeViewObservations", "setMRMLSegmentEditorNode"):
        method = getattr(type(editor), name)
        monkeypatch.setattr(
            type(editor), name, lambda self, *values, m=method, n=name: (calls.append((self, n)), m(self, *values))
        )
    panel.onReload()
    assert [name for widget, name in calls if widget is editor] == [
        "setActiveEffectByName",
        "removeViewObservations",
        "setMRMLSegmentEditorNode",
    ]
    again = slicer.util.getModuleWidget("WeakTumourSeg")
    assert again is not panel
    assert len(again.resultPanel._shortcuts) == 4
    assert again._probe is not None or again._machine.devices


def test_the_library_is_reloaded_with_the_module(slicer_host, panel):
    module = importlib.import_module("WeakTumourSegLib.geometry")
    panel.onReload()
    assert importlib.import_module("WeakTumourSegLib.geometry") is not module
    again = slicer_host.show_module("WeakTumourSeg")
    assert again.ui.applyButton.text == "Choose the MRI"
