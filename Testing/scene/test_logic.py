"""registerAndPropagate as script and button call it, with a scripted worker and, where torch is there, the real one."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer

from result_folder import writeResult
from scene_data import box, ctVoxels, pattern, rotation
from test_worker_process import SCRIPTED, needsTorch
from weaktumour.errors import InputError
from WeakTumourSegLib import geometry, logic, scene_export, scene_import
from WeakTumourSegLib.worker_process import CANCELLED, DONE, FAILED

SHAPE = (20, 22, 24)
SHIM = """
import json, shutil, sys
from pathlib import Path
request = json.loads(Path(sys.argv[2]).read_text())
Path(sys.argv[1], "request.json").write_text(json.dumps(request))
shutil.copytree(Path(sys.argv[1], "result"), request["out"])
print(json.dumps({"event": "progress", "stage": "refinement", "fraction": 0.5, "remaining_s": 3}))
print(json.dumps({"event": "result", "folder": request["out"]}))
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(logic, "temporaryFolder", lambda: folder)
    return folder


@pytest.fixture
def nodes(addVolume, addSegmentation):
    mr, ct = addVolume(pattern(SHAPE, 0, 800), name="MR"), addVolume(ctVoxels(SHAPE), name="CT")
    masks = {"Liver": box(SHAPE, (4, 16), (4, 18), (4, 20)), "HCC": box(SHAPE, (8, 12), (8, 12), (8, 13))}
    return mr, ct, addSegmentation(mr, masks)


def scripted(mode: str) -> logic.RegistrationLogic:
    made = logic.RegistrationLogic()
    made.workerCommand = [sys.executable, str(SCRIPTED), mode]
    return made


@pytest.fixture
def working(nodes, tmp_path) -> logic.RegistrationLogic:
    """A worker that returns a ready-made result at once."""
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    ct = prepared / "ct.nrrd"
    scene_export.exportVolume(nodes[1], ct)
    labels = box(SHAPE, (5, 15), (5, 17), (5, 19)).astype(np.uint8)
    labels[8:12, 8:12, 8:13] = 2
    writeResult(prepared / "result", ct, labels)
    shim = prepared / "shim.py"
    shim.write_text(SHIM)
    made = logic.RegistrationLogic()
    made.workerCommand = [sys.executable, str(shim), str(prepared)]
    return made


def ids(scene) -> list[str]:
    return [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())]


def test_a_script_gets_the_nodes(working, nodes, temporary):
    events, finished = [], []
    run = working.registerAndPropagate(*nodes, preset="fast", onEvent=events.append, onFinished=finished.append)
    assert run.state == DONE
    assert finished == [run]
    assert run.nodes.segmentation.GetSegmentation().GetNumberOfSegments() == 2
    assert run.nodes.transform.GetTransformFromParent() is not None
    assert [event["fraction"] for event in events if event["event"] == "progress"] == [0.5]
    assert list(temporary.iterdir()) == []


def test_the_worker_is_asked_for_what_was_chosen(working, nodes, temporary, tmp_path):
    from weaktumour.worker import Request

    working.registerAndPropagate(
        *nodes, preset="thorough", device="cpu", stages=("alignment",), seed=7, segmentationModel="none"
    )
    request = Request.read(tmp_path / "prepared/request.json")  # the engine's own check of it
    chosen = {name: request.arguments[name] for name in ("preset", "device", "stages", "seed", "segmentation_model")}
    assert chosen == {
        "preset": "thorough",
        "device": "cpu",
        "stages": "alignment",
        "seed": 7,
        "segmentation_model": "none",
    }
    assert Path(request.arguments["mr_labels"]).name == "mr_labels.nrrd"
    assert "ct_liver" not in request.arguments


def test_without_waiting_the_call_returns_at_once(working, nodes, temporary):
    polls, finished = [], []

    def ticker(milliseconds, function):
        polls.append(function)
        return lambda: polls.remove(function)

    working.ticker = ticker
    run = working.registerAndPropagate(*nodes, onFinished=finished.append, wait=False)
    assert run.isRunning
    with pytest.raises(InputError, match="under way"):
        working.registerAndPropagate(*nodes)
    while polls:
        polls[0]()
    assert (run.state, finished) == (DONE, [run])


def test_the_result_folder_is_kept_in_a_working_folder(working, nodes, temporary, tmp_path):
    folder = tmp_path / "my work"
    folder.mkdir()
    run = working.registerAndPropagate(*nodes, workingFolder=folder)
    assert [path.name for path in folder.iterdir()] == [run.keptFolder.name]
    assert (run.keptFolder / "report.html").is_file()
    with pytest.raises(InputError, match="choose another working folder"):
        working.registerAndPropagate(*nodes, workingFolder=tmp_path / "missing")


def test_a_result_that_cannot_be_kept_leaves_no_node(scene, working, nodes, temporary, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logic.shutil, "move", full)
    before = ids(scene)
    with pytest.raises(logic.RunFailed, match="No space left on device"):
        working.registerAndPropagate(*nodes, workingFolder=tmp_path / "prepared")
    assert ids(scene) == before


def test_a_result_that_does_not_fit_is_not_kept(scene, working, nodes, temporary, tmp_path):
    (tmp_path / "prepared/result/mr_on_ct.nii.gz").write_bytes(b"")
    folder = tmp_path / "work"
    folder.mkdir()
    before = ids(scene)
    with pytest.raises(logic.RunFailed, match="cannot be read"):
        working.registerAndPropagate(*nodes, workingFolder=folder)
    assert ids(scene) == before
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("mode", ["killed", "memory", "garbage", "disk", "error", "no torch", "silent"])
def test_a_failure_leaves_the_scene_as_it_was(mode, scene, nodes, temporary):
    before = ids(scene)
    with pytest.raises(logic.RunFailed) as caught:
        scripted(mode).registerAndPropagate(*nodes)
    assert str(caught.value).endswith(".")
    assert ids(scene) == before
    assert list(temporary.iterdir()) == []


def test_a_cancel_leaves_the_scene_as_it_was(scene, nodes, temporary):
    before = ids(scene)
    made = scripted("deaf")
    made.ticker = lambda milliseconds, function: lambda: None
    run = made.registerAndPropagate(*nodes, wait=False)
    run.cancel()
    with pytest.raises(logic.RunCancelled):
        run.wait()
    assert run.state == CANCELLED
    assert ids(scene) == before
    assert list(temporary.iterdir()) == []


def test_a_wrong_input_starts_nothing(scene, nodes, temporary):
    before = ids(scene)
    made = scripted("deaf")
    with pytest.raises(InputError, match="same volume"):
        made.registerAndPropagate(nodes[1], nodes[1])
    assert made.run is None
    assert ids(scene) == before
    assert list(temporary.iterdir()) == []


def test_an_input_removed_during_the_run_is_said(scene, working, nodes, temporary):
    working.ticker = lambda milliseconds, function: lambda: None
    run = working.registerAndPropagate(*nodes, wait=False)
    scene.RemoveNode(nodes[0])
    before = ids(scene)
    with pytest.raises(logic.RunFailed, match="removed during the run"):
        run.wait()
    assert run.state == FAILED
    assert ids(scene) == before


# -- the real worker ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def smallPatient(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from weaktumour.cases import write_case
    from weaktumour.simulation import simulate_patient

    folder = tmp_path_factory.mktemp("small") / "case"
    write_case(folder, simulate_patient(1, ct_spacing_mm=4, mr_spacing_mm=4, anatomy_spacing_mm=2.5, needle=False))
    return folder


@needsTorch
def test_a_turned_patient_is_registered_in_the_world(scene, smallPatient, temporary, addTransform, tmp_path):
    """MR under one rotation (nearly right, as a user would place it) and CT under another, against the known truth."""
    from weaktumour.volumes import read_volume

    patient = logic.loadCase(smallPatient)
    mrMotion, ctMotion = rotation((0, 0, 1), 24, (30, -12, 8)), rotation((0.1, 0, 1), 20, (25, -20, 15))
    addTransform(mrMotion, patient.mr, patient.segmentation)
    addTransform(ctMotion, patient.ct)
    made = logic.RegistrationLogic()
    run = made.registerAndPropagate(*patient, preset="fast", device="cpu", workingFolder=tmp_path)

    # Voxel by voxel what the worker wrote, at the worker's place in the world.
    file = sitk.ReadImage(str(run.keptFolder / "ct_labels.nii.gz"))
    labels = sitk.GetArrayFromImage(file)
    voxels, _labels = scene_export.labelMap(run.nodes.segmentation, patient.ct)
    assert np.array_equal(voxels, labels)
    place = np.array(file.TransformIndexToPhysicalPoint((3, 5, 7))) * [-1, -1, 1]
    assert np.linalg.norm(geometry.transformPoints(geometry.ijkToWorld(patient.ct), np.array([3, 5, 7])) - place) < 0.01
    # The transform node and the file agree.
    transform = sitk.ReadTransform(str(run.keptFolder / "transform.h5"))
    for point in geometry.transformPoints(geometry.ijkToWorld(patient.ct), np.array([[20, 20, 20], [40, 30, 40]])):
        expected = np.array(transform.TransformPoint((point * [-1, -1, 1]).tolist())) * [-1, -1, 1]
        mapped = run.nodes.transform.GetTransformFromParent().TransformPoint(point)
        assert np.linalg.norm(np.array(mapped) - expected) < 0.1
    # And both are right: the liver lies on the true one, known points of CT and MR belong together.
    truth = read_volume(smallPatient / "ct_labels.nii.gz", "truth").array > 0
    assert 2 * (truth & (labels > 0)).sum() / (truth.sum() + (labels > 0).sum()) > 0.85
    points = np.loadtxt(smallPatient / "truth_points.csv", delimiter=",", skiprows=1) * [-1, -1, 1, -1, -1, 1]
    found = np.array(
        [
            run.nodes.transform.GetTransformFromParent().TransformPoint(point)
            for point in geometry.transformPoints(ctMotion, points[:, :3])
        ]
    )
    error = np.linalg.norm(found - geometry.transformPoints(mrMotion, points[:, 3:]), axis=1)
    assert np.median(error) < 6  # a coarse patient and the fast preset; not turned with the nodes it would be 40
    assert scene_import.resultOf(run.nodes.segmentation) == run.nodes


@needsTorch
def test_the_sample_patient_is_made_here(scene, temporary, monkeypatch, smallPatient):
    # The real operation takes half a minute; here its case folder is ready made.
    shim = temporary.parent / "shim.py"
    shim.write_text(SHIM)
    (temporary.parent / "ready").mkdir()
    shutil.copytree(smallPatient, temporary.parent / "ready/result")
    made = logic.RegistrationLogic()
    made.workerCommand = [sys.executable, str(shim), str(temporary.parent / "ready")]
    mr, ct, segmentation = made.simulatePatient().loaded
    scene_export.checkInputs(scene_export.RunInputs(mr, ct, segmentation))
    image = sitk.ReadImage(str(smallPatient / "mr.nii.gz"))
    corner = np.array(image.TransformIndexToPhysicalPoint((9, 8, 7))) * [-1, -1, 1]
    assert np.allclose(geometry.transformPoints(geometry.ijkToWorld(mr), np.array([9, 8, 7])), corner, atol=1e-3)
    voxels, labels = scene_export.labelMap(segmentation, mr)
    assert np.array_equal(voxels, sitk.GetArrayFromImage(sitk.ReadImage(str(smallPatient / "mr_labels.nii.gz"))))
    assert labels[0].role == "liver"
    assert slicer.mrmlScene.IsNodePresent(ct)
