"""Painting in the Segment Editor stand-in goes through Slicer's own logic."""

from __future__ import annotations

import numpy as np
import pytest

from slicerhost import missing_packages

if missing_packages():
    pytest.skip(missing_packages(), allow_module_level=True)

from slicerhost import gestures, segment_editor


@pytest.fixture
def volume(slicer_host):
    import slicer

    ijk_to_ras = np.diag([-2.0, -2.0, 3.0, 1.0])
    ijk_to_ras[:3, 3] = [40.0, 40.0, -30.0]
    return slicer.util.addVolumeFromArray(np.zeros((20, 40, 40), np.int16), ijkToRAS=ijk_to_ras, name="CT")


@pytest.fixture
def segmentation(volume):
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Result")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for name in ("liver", "tumour"):
        node.GetSegmentation().AddEmptySegment(name, name, [1.0, 0.0, 0.0])
    return node


@pytest.fixture
def editor(volume, segmentation):
    import slicer

    widget = slicer.qMRMLSegmentEditorWidget()
    widget.setMRMLScene(slicer.mrmlScene)
    widget.setMRMLSegmentEditorNode(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentEditorNode"))
    widget.setSegmentationNode(segmentation)
    widget.setSourceVolumeNode(volume)
    widget.resize(500, 500)
    widget.show()
    return widget


def voxels(segmentation, name, volume):
    import slicer

    return slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, name, volume)


def test_a_dab_fills_a_sphere_at_the_point(editor, segmentation, volume):
    editor.setCurrentSegmentID("tumour")
    editor.setActiveEffectByName("Paint")
    segment_editor.paint(editor, (10.0, -4.0, 3.0), 9.0)
    painted = voxels(segmentation, "tumour", volume)
    centre = np.argwhere(painted).mean(axis=0)  # k, j, i
    np.testing.assert_allclose(centre, [11, 22, 15])
    assert painted.sum() * 12 == pytest.approx(4 / 3 * np.pi * 9.0**3, rel=0.1)  # 12 mm3 a voxel
    assert not voxels(segmentation, "liver", volume).any()


def test_undo_and_redo_by_the_mouse(editor, segmentation, volume):
    gestures.click(editor.findChild("QToolButton", "Paint"))
    assert editor.mrmlSegmentEditorNode().GetActiveEffectName() == "Paint"
    segment_editor.paint(editor, (0.0, 0.0, 0.0), 8.0)
    first = voxels(segmentation, "liver", volume).sum()
    segment_editor.paint(editor, (20.0, 0.0, 0.0), 8.0)
    assert voxels(segmentation, "liver", volume).sum() > first
    gestures.click(editor._undo_button)
    assert voxels(segmentation, "liver", volume).sum() == first
    gestures.click(editor._undo_button)
    assert not voxels(segmentation, "liver", volume).any()
    gestures.click(editor._redo_button)
    assert voxels(segmentation, "liver", volume).sum() == first


def test_erasing_takes_away(editor, segmentation, volume):
    editor.setActiveEffectByName("Paint")
    segment_editor.paint(editor, (0.0, 0.0, 0.0), 12.0)
    before = voxels(segmentation, "liver", volume).sum()
    editor.setActiveEffectByName("Erase")
    segment_editor.erase(editor, (0.0, 0.0, 0.0), 6.0)
    assert 0 < voxels(segmentation, "liver", volume).sum() < before


def test_painting_one_segment_over_another_takes_it_from_there(editor, segmentation, volume):
    editor.setActiveEffectByName("Paint")
    segment_editor.paint(editor, (0.0, 0.0, 0.0), 12.0)
    editor.setCurrentSegmentID("tumour")
    segment_editor.paint(editor, (0.0, 0.0, 0.0), 6.0)
    overlap = voxels(segmentation, "liver", volume).astype(bool) & voxels(segmentation, "tumour", volume).astype(bool)
    assert not overlap.any()


def test_nobody_paints_without_the_effect(editor):
    with pytest.raises(AssertionError, match="not active"):
        segment_editor.paint(editor, (0.0, 0.0, 0.0), 5.0)
    assert editor.activeEffect() is None


def test_the_first_segment_is_selected_and_the_table_chooses_another(editor):
    chosen = []
    editor.connect("currentSegmentIDChanged(QString)", chosen.append)
    assert editor.currentSegmentID() == "liver"
    gestures.click_cell(editor._table.tableWidget(), 1, 3)
    assert editor.currentSegmentID() == "tumour"
    assert chosen == ["tumour"]


def test_its_keys_are_the_main_windows_until_they_are_taken_back(editor, slicer_host):
    """Slicer's editor claims them for the whole window: a module that wants one of them too gets nothing."""
    from PySide6.QtGui import QShortcut
    from PySide6.QtTest import QTest

    window = slicer_host.main_window
    window.show()
    window.activateWindow()
    slicer_host.process_events(0.1)
    fired = []
    ours = QShortcut(window)
    ours.setKey(",")
    ours.activated.connect(lambda: fired.append(","))
    editor.installKeyboardShortcuts()
    QTest.keyClicks(window, "w")
    assert editor.currentSegmentID() == "tumour"
    QTest.keyClicks(window, "2")
    assert editor.activeEffect() == "Paint"
    QTest.keyClicks(window, ",")
    assert fired == []
    editor.uninstallKeyboardShortcuts()
    QTest.keyClicks(window, ",w")
    assert fired == [","]
    assert editor.currentSegmentID() == "tumour"
    ours.setParent(None)
