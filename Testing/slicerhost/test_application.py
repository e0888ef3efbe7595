"""The application: settings, dialogs, processes, files and views as a script finds them in Slicer."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from slicerhost import missing_packages

if missing_packages():
    pytest.skip(missing_packages(), allow_module_level=True)


@pytest.fixture
def volume(slicer_host):
    import slicer

    values = np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
    turned = np.array([[0.0, -1.5, 0.0, 5.0], [2.0, 0.0, 0.0, -6.0], [0.0, 0.0, 3.0, 7.0], [0.0, 0.0, 0.0, 1.0]])
    return slicer.util.addVolumeFromArray(values, ijkToRAS=turned, name="CT")


def test_the_application_says_what_it_is(slicer_host):
    import slicer

    assert (slicer.app.majorVersion, slicer.app.minorVersion) == (5, 12)
    assert slicer.app.applicationName == "Slicer"
    assert os.path.isdir(slicer.app.temporaryPath)
    assert slicer.app.mrmlScene() is slicer.mrmlScene
    assert slicer.util.mainWindow() is slicer_host.main_window
    with pytest.raises(AttributeError):
        slicer.app.no_such_thing  # noqa: B018


def test_the_window_lives_while_a_process_runs(slicer_host):
    import qt
    import slicer

    ticks, lines, ended = [], [], []
    timer = qt.QTimer()
    timer.connect("timeout()", lambda: ticks.append(time.monotonic()))
    timer.start(10)
    script = "import time\nfor n in range(4):\n    print(n, flush=True)\n    time.sleep(0.1)\nraise SystemExit(3)"
    program = [shutil.which("PythonSlicer"), "-c", script]
    slicer.util.launchConsoleProcess(
        program,
        blocking=False,
        logCallback=lines.append,
        completedCallback=ended.append,
    )
    slicer_host.wait_until(lambda: ended, timeout_s=20, what="the end of the process")
    assert lines == ["0", "1", "2", "3"]
    assert ended == [3]
    assert len(ticks) > 10
    assert max(np.diff(ticks)) < 0.5


def test_python_slicer_is_found_on_slicers_path_only(slicer_host):
    import slicer

    assert shutil.which("PythonSlicer") == str(slicer_host.folder / "bin" / "PythonSlicer")
    with pytest.raises(FileNotFoundError):
        slicer.util.launchConsoleProcess(["PythonSlicer", "-c", ""])


@pytest.mark.skipif(os.name == "nt", reason="the launcher is a shell script")
def test_killing_the_launcher_leaves_its_interpreter_as_in_slicer(slicer_host):
    launcher = subprocess.Popen(
        ["PythonSlicer", "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"],
        stdout=subprocess.PIPE,
        text=True,
    )
    interpreter = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    launcher.stdout.close()
    assert interpreter != launcher.pid
    os.kill(interpreter, 0)  # still there
    os.kill(interpreter, signal.SIGKILL)


def test_questions_are_answered_as_the_test_said_and_written_down(slicer_host):
    import qt
    import slicer

    assert slicer.util.confirmYesNoDisplay("Install it?") is True
    slicer_host.answer(False, False)
    assert slicer.util.confirmYesNoDisplay("Install it?") is False
    assert slicer.util.confirmOkCancelDisplay("Overwrite?") is False
    slicer.util.warningDisplay("Little memory.")
    box = qt.QMessageBox()
    box.text = "Sure?"
    box.exec_()
    assert [(m.kind, m.text) for m in slicer_host.messages] == [
        ("question", "Install it?"),
        ("question", "Install it?"),
        ("question", "Overwrite?"),
        ("warning", "Little memory."),
        ("info", "Sure?"),
    ]
    with pytest.raises(RuntimeError, match="wait for ever"):
        qt.QDialog().exec_()


def test_file_dialogs_are_cancelled_unless_the_test_chooses(slicer_host, tmp_path):
    import qt

    assert qt.QFileDialog.getOpenFileName(None, "Weights", "", "*.pt") == ""
    slicer_host.answer(tmp_path / "weights.pt")
    assert qt.QFileDialog.getOpenFileName(None, "Weights", "", "*.pt") == str(tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["ct.nrrd", "ct.nii.gz", "ct.mha"])
def test_volumes_are_written_and_read_with_their_geometry(slicer_host, volume, tmp_path, name):
    import slicer

    path = tmp_path / name
    assert slicer.util.exportNode(volume, str(path), {})
    again = slicer.util.loadVolume(str(path), {})
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(again), slicer.util.arrayFromVolume(volume))
    matrices = [slicer.vtkMRMLScalarVolumeNode.GetIJKToRASMatrix, slicer.util.arrayFromVTKMatrix]
    first, second = np.eye(4), np.eye(4)
    for node, target in ((volume, first), (again, second)):
        matrix = slicer.util.vtkMatrixFromArray(np.eye(4))
        matrices[0](node, matrix)
        target[:] = matrices[1](matrix)
    np.testing.assert_allclose(second, first, atol=1e-6)


def test_a_file_that_is_not_there_is_an_error(slicer_host, tmp_path):
    import slicer

    with pytest.raises(RuntimeError, match="Failed to load"):
        slicer.util.loadVolume(str(tmp_path / "none.nrrd"), {})


def test_showing_a_volume_and_jumping_reach_all_slice_views(slicer_host, volume):
    import slicer

    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, 1.0, 2.0, 13.0)
    manager = slicer.app.layoutManager()
    for name, axis, position in (("Red", 2, 13.0), ("Green", 1, 2.0), ("Yellow", 0, 1.0)):
        widget = manager.sliceWidget(name)
        assert widget.mrmlSliceCompositeNode().GetBackgroundVolumeID() == volume.GetID()
        assert widget.mrmlSliceNode().GetSliceToRAS().GetElement(axis, 3) == pytest.approx(position)


def test_slicers_own_modules_have_their_logics(slicer_host, volume):
    import slicer

    labels = slicer.modules.volumes.logic().CreateAndAddLabelVolume(volume, "labels")
    slicer.util.arrayFromVolume(labels)[2:4, 2:4, 2:4] = 1
    slicer.util.arrayFromVolumeModified(labels)
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    assert slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(labels, segmentation)
    (segment_id,) = segmentation.GetSegmentation().GetSegmentIDs()
    assert slicer.util.arrayFromSegmentBinaryLabelmap(segmentation, segment_id, volume).sum() == 8


def test_data_nodes_have_their_place_in_the_subject_hierarchy(slicer_host, volume, tmp_path):
    import slicer

    def hierarchy():
        return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)

    item = hierarchy().GetItemByDataNode(volume)
    assert hierarchy().GetItemName(item) == "CT"
    study = hierarchy().CreateStudyItem(hierarchy().GetSceneItemID(), "study")
    hierarchy().SetItemParent(item, study)
    path = slicer_host.save_scene(tmp_path / "case.mrb")
    slicer.mrmlScene.RemoveNode(volume)
    assert hierarchy().GetNumberOfItems() == 1
    slicer_host.close_scene()
    slicer_host.load_scene(path)
    item = hierarchy().GetItemByDataNode(slicer.util.getNode("CT"))
    assert hierarchy().GetItemName(hierarchy().GetItemParent(item)) == "study"
    assert len(slicer.util.getNodesByClass("vtkMRMLSubjectHierarchyNode")) == 1


def test_closing_the_scene_tells_so_and_empties_it(slicer_host, volume):
    import slicer

    events = []
    scene = slicer.mrmlScene
    tags = [
        scene.AddObserver(getattr(scene, name), lambda caller, event, name=name: events.append(name))
        for name in ("StartCloseEvent", "EndCloseEvent")
    ]
    slicer_host.close_scene()
    for tag in tags:
        scene.RemoveObserver(tag)
    assert events == ["StartCloseEvent", "EndCloseEvent"]
    assert slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") == []
