"""The tumour table, hand edits, looking at a result, and saving it for training."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer

from result_folder import writeResult
from scene_data import box, ctVoxels, pattern, rotation
from weaktumour.cases import read_case
from weaktumour.errors import InputError
from WeakTumourSegLib import geometry, installation, review, roles, scene_import, training_export, tumour_table
from WeakTumourSegLib.scene_export import RunInputs, exportInputs

SHAPE = (20, 22, 24)


def labelsOnCT() -> np.ndarray:
    labels = box(SHAPE, (4, 16), (4, 18), (4, 20)).astype(np.uint8)
    labels[8:12, 8:12, 8:13] = 2
    labels[13:15, 14:17, 15:19] = 3
    return labels


@pytest.fixture
def inputs(addVolume, addSegmentation, addTransform) -> RunInputs:
    mr, ct = addVolume(pattern(SHAPE, 0, 800), name="Doe^Jane MR"), addVolume(ctVoxels(SHAPE), name="Doe^Jane CT")
    addTransform(rotation((0, 0, 1), 12, (3, 4, 5)), ct)
    masks = {"Liver": labelsOnCT() > 0, "HCC of Jane": labelsOnCT() == 2, "lesion": labelsOnCT() == 3}
    return RunInputs(mr, ct, addSegmentation(mr, masks))


@pytest.fixture
def result(inputs, tmp_path) -> scene_import.ResultNodes:
    exported = exportInputs(inputs, tmp_path)
    writeResult(tmp_path / "result", exported.ct, labelsOnCT())
    return scene_import.importResult(tmp_path / "result", "run", inputs, np.eye(4), exported.labels)


def draw(segmentation: object, segmentId: str, mask: np.ndarray, ct: object) -> None:
    """As the Segment Editor does: set a segment's voxels (k, j, i) on the CT's grid, overwriting others."""
    image = geometry.orientedImage(mask.astype(np.uint8), geometry.ijkToNode(ct))
    assert slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, segmentation, segmentId)


# -- the table ------------------------------------------------------------------------------------------------------
def test_rows_show_what_the_run_computed(result):
    first, second = tumour_table.rows(result.segmentation)
    assert (first.name, second.name) == ("HCC of Jane", "lesion")
    assert first.volumeMm3 == 1234.5
    assert tumour_table.cells(first) == ["HCC of Jane", "1.2", "13.3", "-", "-", "not assessed"]
    assert len(tumour_table.columnTitles()) == 6
    assert tumour_table.rows(None) == []


def test_measures_are_those_of_the_voxels(result, inputs):
    found = tumour_table.measure(result.segmentation, "tumour_2")
    assert found.volumeMm3 == pytest.approx(4 * 4 * 5 * 1.5 * 1.2 * 3.0)
    assert found.diameterMm == pytest.approx((6 * found.volumeMm3 / np.pi) ** (1 / 3))
    centre = geometry.transformPoints(geometry.ijkToWorld(inputs.ct), np.array([10, 9.5, 9.5]))
    assert np.allclose(found.centroidRAS, centre, atol=1e-3)


def test_a_hand_edit_is_measured_and_said(result, inputs):
    edited = labelsOnCT() == 2
    edited[8:12, 8:12, 8] = False
    draw(result.segmentation, "tumour_2", edited, inputs.ct)
    assert tumour_table.updateEdited(result.segmentation, "tumour_2")
    first, second = tumour_table.rows(result.segmentation)
    assert (first.edited, second.edited) == (True, False)
    assert tumour_table.cells(first)[-1] == "edited by hand"
    assert first.volumeMm3 == pytest.approx(4 * 4 * 4 * 1.5 * 1.2 * 3.0)
    assert "not assessed, 1.2 ml" in tumour_table.tooltip(first)
    # Undone: computed again.
    draw(result.segmentation, "tumour_2", labelsOnCT() == 2, inputs.ct)
    assert not tumour_table.updateEdited(result.segmentation, "tumour_2")
    assert tumour_table.rows(result.segmentation)[0].volumeMm3 == 1234.5


def test_a_tumour_moved_as_it_is_counts_as_edited(result, inputs):
    draw(result.segmentation, "tumour_2", np.roll(labelsOnCT() == 2, 1, axis=0), inputs.ct)
    assert tumour_table.updateEdited(result.segmentation, "tumour_2")


def test_an_emptied_a_new_and_a_removed_tumour(result, inputs):
    draw(result.segmentation, "tumour_2", np.zeros(SHAPE, bool), inputs.ct)
    tumour_table.updateEdited(result.segmentation, "tumour_2")
    assert tumour_table.rows(result.segmentation)[0].volumeMm3 == 0
    assert review.centreOn(result.segmentation, "tumour_2") is None
    result.segmentation.GetSegmentation().AddEmptySegment("new", "Tumour by hand")
    draw(result.segmentation, "new", box(SHAPE, (5, 7), (5, 7), (5, 7)), inputs.ct)
    result.segmentation.GetSegmentation().RemoveSegment("tumour_3")
    _emptied, new = tumour_table.rows(result.segmentation)
    assert (new.name, new.edited) == ("Tumour by hand", True)
    assert new.volumeMm3 == pytest.approx(8 * 1.5 * 1.2 * 3.0)
    assert "Drawn by hand" in tumour_table.tooltip(new)
    assert not tumour_table.updateEdited(result.segmentation, "tumour_3")


def test_a_tumour_outside_the_ct_has_a_row(inputs, tmp_path):
    """It has no voxel in the result, and so no segment; it must not vanish without a word."""
    exported = exportInputs(inputs, tmp_path)
    writeResult(tmp_path / "result", exported.ct, labelsOnCT() * (labelsOnCT() < 3))
    path = tmp_path / "result/result.json"
    content = json.loads(path.read_text())
    sentence = "lesion lies outside the CT; it is not in the result."
    content["tumours"].append(
        {
            **content["tumours"][0],
            "label": 3,
            "name": "lesion",
            "volume_mm3": 0.0,
            "diameter_mm": 0.0,
            "centroid_lps_mm": None,
            "verdict": "outside_ct",
            "warnings": [sentence],
        }
    )
    path.write_text(json.dumps(content))
    nodes = scene_import.importResult(tmp_path / "result", "run", inputs, np.eye(4), exported.labels)
    first, second = tumour_table.rows(nodes.segmentation)
    assert (first.segmentId, second.segmentId) == ("tumour_2", None)
    assert tumour_table.cells(second) == ["lesion", "-", "-", "-", "-", "outside the CT"]
    assert sentence in tumour_table.tooltip(second)


def test_looking_at_the_table_changes_nothing(result, inputs):
    result.segmentation.GetSegmentation().AddEmptySegment("new", "Tumour by hand")
    draw(result.segmentation, "new", box(SHAPE, (5, 7), (5, 7), (5, 7)), inputs.ct)
    events = []
    tags = [
        result.segmentation.AddObserver(event, lambda caller, event: events.append(event))
        for event in (slicer.vtkSegmentation.SegmentModified, "ModifiedEvent")
    ]
    assert tumour_table.rows(result.segmentation)[-1].volumeMm3 > 0
    assert not tumour_table.updateEdited(result.segmentation, "tumour_3")
    assert events == []
    for tag in tags:
        result.segmentation.RemoveObserver(tag)


def test_edits_are_saved_with_the_scene(scene, result, inputs, tmp_path):
    draw(result.segmentation, "tumour_2", labelsOnCT() == 3, inputs.ct)
    tumour_table.updateEdited(result.segmentation, "tumour_2")
    before = [tumour_table.cells(row) for row in tumour_table.rows(result.segmentation)]
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"))
    scene.Clear(0)
    scene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    (segmentation,) = scene_import.resultSegmentations()
    assert [tumour_table.cells(row) for row in tumour_table.rows(segmentation)] == before
    # What was not edited is still recognised as the run's, although Slicer numbers the voxels anew.
    assert not tumour_table.updateEdited(segmentation, "tumour_3")


# -- looking --------------------------------------------------------------------------------------------------------
@pytest.fixture
def sliceView(scene) -> tuple[object, object]:
    node = scene.AddNewNodeByClass("vtkMRMLSliceNode", "Red")
    node.SetLayoutName("Red")
    return node, scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode", "Red")


def test_views_go_to_the_tumour(result, sliceView):
    centre = review.centreOn(result.segmentation, "tumour_3")
    matrix = geometry.matrixToArray(sliceView[0].GetSliceToRAS())
    assert np.allclose(matrix[:3, 3], centre, atol=1e-3)


def test_blend_and_before_and_after(result, inputs, sliceView):
    composite = sliceView[1]
    review.blend(result, 0.4)
    assert composite.GetBackgroundVolumeID() == inputs.ct.GetID()
    assert composite.GetForegroundVolumeID() == result.registeredMR.GetID()
    assert composite.GetForegroundOpacity() == pytest.approx(0.4)
    review.blend(result, 0.4, registered=False)
    assert composite.GetForegroundVolumeID() == inputs.mr.GetID()
    slicer.mrmlScene.RemoveNode(result.registeredMR)
    with pytest.raises(InputError, match="no longer in the scene"):
        review.blend(scene_import.resultOf(result.segmentation), 0.5)


def test_a_checkerboard_shows_both_and_is_not_saved(scene, result, inputs, sliceView):
    count = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    for node, low, high in ((inputs.ct, -160, 240), (result.registeredMR, 0, 1)):
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetAutoWindowLevel(False)
        node.GetDisplayNode().SetWindowLevel(high - low, (high + low) / 2)
    slicer.util.arrayFromVolume(inputs.ct)[:] = -500  # black; the MRI is white
    slicer.util.arrayFromVolume(result.registeredMR)[:] = 5
    node = review.showCheckerboard(result)
    assert not node.GetSaveWithScene()
    assert sliceView[1].GetBackgroundVolumeID() == node.GetID()
    voxels = slicer.util.arrayFromVolume(node)
    assert set(np.unique(voxels)) == {0, 255}
    # 30 mm are 20 voxels of 1.5 mm, 25 of 1.2 mm, 10 of 3 mm.
    assert (voxels[0, 0, 0], voxels[0, 0, 20], voxels[10, 0, 0], voxels[10, 0, 20]) == (0, 255, 255, 0)
    assert review.showCheckerboard(result) is not None
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == count + 1
    review.removeCheckerboard()
    assert scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == count


def test_outline_or_fill(result):
    review.setOutline(result.segmentation, True)
    assert not result.segmentation.GetDisplayNode().GetVisibility2DFill()
    assert result.segmentation.GetDisplayNode().GetVisibility2DOutline()
    review.setOutline(result.segmentation, False)
    assert result.segmentation.GetDisplayNode().GetVisibility2DFill()


def test_the_next_tumour_goes_round():
    assert review.neighbour(["a", "b"], None, 1) == "a"
    assert review.neighbour(["a", "b"], "b", 1) == "a"
    assert review.neighbour(["a", "b"], "a", -1) == "b"
    assert review.neighbour([], None, 1) is None


# -- training -------------------------------------------------------------------------------------------------------
def test_corrected_labels_become_a_case(result, inputs, tmp_path):
    corrected = labelsOnCT()
    corrected[8:12, 8:12, 12] = 1
    draw(result.segmentation, "tumour_2", corrected == 2, inputs.ct)
    draw(result.segmentation, "liver_1", corrected == 1, inputs.ct)
    cohort = tmp_path / "cohort"
    cohort.mkdir()
    folder = training_export.saveForTraining(result.segmentation, cohort)
    case = read_case(folder)
    assert np.array_equal(case.ct_labels.array, corrected)
    assert np.array_equal(case.mr_labels.array, labelsOnCT())
    assert case.info["kind"] == case.info["ct_labels"] == "corrected"
    assert case.info["id"] == folder.name
    assert case.label_names == {1: "Liver", 2: "Tumour 1", 3: "Tumour 2"}
    assert np.array_equal(case.ct.array, slicer.util.arrayFromVolume(inputs.ct))
    corner = geometry.transformPoints(geometry.RAS_TO_LPS @ geometry.ijkToWorld(inputs.ct), np.array([3, 4, 5]))
    assert np.allclose(case.ct.grid.index_to_world([3, 4, 5]), corner, atol=0.01)
    for path in folder.iterdir():  # no patient's name, in no file
        assert b"Jane" not in path.read_bytes()
        assert "Jane" not in path.name
    assert [path.name for path in cohort.iterdir()] == [folder.name]


def test_a_new_tumour_gets_the_next_value(result, inputs, tmp_path):
    result.segmentation.GetSegmentation().AddEmptySegment("new", "lesion by hand")
    draw(result.segmentation, "new", box(SHAPE, (5, 7), (5, 7), (5, 7)), inputs.ct)
    case = read_case(training_export.saveForTraining(result.segmentation, tmp_path))
    assert set(np.unique(case.ct_labels.array)) == {0, 1, 2, 3, 4}
    assert np.array_equal(case.ct_labels.array == 4, box(SHAPE, (5, 7), (5, 7), (5, 7)))


def test_the_place_of_a_deleted_tumour_is_liver_again(result, inputs, tmp_path):
    result.segmentation.GetSegmentation().RemoveSegment("tumour_2")
    expected = labelsOnCT()
    expected[expected == 2] = 1
    assert np.array_equal(training_export.labelsOnCT(result.segmentation, inputs.ct), expected)
    case = read_case(training_export.saveForTraining(result.segmentation, tmp_path))
    assert np.array_equal(case.ct_labels.array, expected)


def test_the_place_that_a_moved_tumour_left_is_liver_again(result, inputs):
    moved = np.roll(labelsOnCT() == 2, -2, axis=1)
    draw(result.segmentation, "tumour_2", moved, inputs.ct)
    expected = np.where(moved, 2, np.where(labelsOnCT() == 2, 1, labelsOnCT()))
    assert np.array_equal(training_export.labelsOnCT(result.segmentation, inputs.ct), expected)


@pytest.mark.parametrize("kept", [False, True])
def test_a_tumour_that_lay_half_in_the_fat_leaves_half_of_it_to_the_liver(kept, result, inputs):
    """The liver ends within what the run called tumour, as a person draws it; the tumour is deleted or made smaller."""
    liver = labelsOnCT() == 1
    liver[:, :, 10:] = False
    draw(result.segmentation, "liver_1", liver, inputs.ct)
    small = box(SHAPE, (9, 11), (9, 11), (9, 11)) & kept
    draw(result.segmentation, "tumour_2", small, inputs.ct)
    found = training_export.labelsOnCT(result.segmentation, inputs.ct)
    inside, outside = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    inside[8:12, 8:12, 8:10], outside[8:12, 8:12, 10:13] = True, True
    assert (found[inside & ~small] == 1).all()
    assert (found[outside & ~small] == 0).all()
    assert ((found == 2) == small).all()


def test_what_was_painted_over_a_tumour_is_not_called_liver(result, inputs):
    labels = labelsOnCT()
    vessel = box(SHAPE, (8, 12), (8, 10), (8, 13))
    segmentation = result.segmentation.GetSegmentation()
    segmentation.AddEmptySegment("vessel", "portal vein")
    roles.setRole(segmentation.GetSegment("vessel"), roles.NEITHER)
    draw(result.segmentation, "vessel", vessel, inputs.ct)
    segmentation.RemoveSegment("tumour_2")
    expected = np.where(vessel, 0, np.where(labels == 2, 1, labels))
    assert np.array_equal(training_export.labelsOnCT(result.segmentation, inputs.ct), expected)


def test_a_result_that_does_not_say_what_it_computed_is_taken_as_it_is(result, inputs):
    result.segmentation.GetSegmentation().RemoveSegment("tumour_2")
    whole = json.loads(result.segmentation.GetAttribute(scene_import.COMPUTED_ATTRIBUTE))
    damaged = [json.dumps({**whole, "bits": bits}) for bits in ("!", "AAAA", whole["bits"][:20])]
    for value in (None, "", "{", "[]", '{"size": [20, 22, 24]}', '{"size": [1, 2, 3], "low": 1}', *damaged):
        result.segmentation.SetAttribute(scene_import.COMPUTED_ATTRIBUTE, value)
        found = training_export.labelsOnCT(result.segmentation, inputs.ct)
        assert np.array_equal(found, np.where(labelsOnCT() == 2, 0, labelsOnCT()))


def test_tumours_stay_paired_when_the_mris_segments_change(result, inputs, tmp_path):
    """After the run: a new lesion before the others on the MRI, one deleted there and in the result, a new one here."""
    segmentation, labels = inputs.mrSegmentation.GetSegmentation(), labelsOnCT()
    first = segmentation.GetSegmentIdBySegmentName("HCC of Jane")
    segmentation.AddEmptySegment("seen later", "lesion seen later")
    draw(inputs.mrSegmentation, "seen later", box(SHAPE, (5, 7), (15, 17), (5, 7)), inputs.mr)
    segmentation.SetSegmentIndex("seen later", 0)
    segmentation.RemoveSegment(first)
    result.segmentation.GetSegmentation().RemoveSegment("tumour_2")
    result.segmentation.GetSegmentation().AddEmptySegment("new", "by hand")
    draw(result.segmentation, "new", box(SHAPE, (5, 7), (5, 7), (5, 7)), inputs.ct)
    case = read_case(training_export.saveForTraining(result.segmentation, tmp_path))
    assert np.array_equal(case.mr_labels.array == 3, labels == 3)
    assert np.array_equal(case.ct_labels.array == 3, labels == 3)
    later, byHand = set(np.unique(case.mr_labels.array)) - {0, 1, 3}, set(np.unique(case.ct_labels.array)) - {0, 1, 3}
    assert len(later) == len(byHand) == 1
    assert min(later | byHand) > 3
    assert later != byHand


def test_a_segment_deleted_on_the_mri_is_not_mistaken_for_another(result, inputs, tmp_path):
    segmentation = inputs.mrSegmentation.GetSegmentation()
    segmentation.RemoveSegment(segmentation.GetSegmentIdBySegmentName("HCC of Jane"))
    with pytest.raises(InputError, match='"HCC of Jane" is no longer a tumour in it'):
        training_export.saveForTraining(result.segmentation, tmp_path)


def test_what_cannot_be_saved_is_said(scene, result, inputs, tmp_path):
    (_liver, tumour, _lesion) = (segment for _id, segment in roles.segmentsOf(inputs.mrSegmentation))
    roles.setRole(tumour, roles.NEITHER)
    with pytest.raises(InputError, match="has changed since the run"):
        training_export.saveForTraining(result.segmentation, tmp_path)
    scene.RemoveNode(inputs.mrSegmentation)
    with pytest.raises(InputError, match="MRI's segmentation is no longer"):
        training_export.saveForTraining(result.segmentation, tmp_path)
    scene.RemoveNode(inputs.ct)
    with pytest.raises(InputError, match="no longer in the scene"):
        training_export.saveForTraining(result.segmentation, tmp_path)


# -- the machine ----------------------------------------------------------------------------------------------------
MACHINE = (
    '{"event": "machine", "torch": "2.9", "seconds": {"fast": 13}, "devices": ['
    '{"id": "cuda", "name": "GPU X", "free_mb": 2000}, {"id": "cpu", "name": "CPU Y", "free_mb": 8192}]}'
)


def test_devices_are_described():
    machine = installation.parseMachine(0, ["a warning", MACHINE])
    assert "GPU X, 2.0 GB free: little for a GPU" in installation.describeDevice(machine, "auto")
    assert installation.describeDevice(machine, "cpu") == "CPU Y, 8.0 GB free"
    assert "sees no mps" in installation.describeDevice(machine, "mps")
    del machine.devices["cuda"]
    assert "No GPU was found" in installation.describeDevice(machine, "auto")
    broken = installation.parseMachine(1, ["Traceback", "OSError: libcudart.so: not found"])
    assert "libcudart.so" in installation.describeDevice(broken, "auto")


def test_the_probe_asks_the_workers_python():
    pytest.importorskip("torch", reason="the probe imports torch in its child")
    polls, found = [], []

    def ticker(milliseconds, function):
        polls.append(function)
        return lambda: polls.remove(function)

    installation.probeMachine(found.append, ticker)
    while polls:
        polls[0]()
    (machine,) = found
    assert machine.problem == ""
    assert "cpu" in machine.devices
    assert set(machine.seconds) == {"fast", "balanced", "thorough"}


def test_torch_is_only_installed_by_its_extension():
    with pytest.raises(RuntimeError, match="PyTorch extension is not installed"):
        installation.installTorch()
