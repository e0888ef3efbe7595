"""What the worker gets is what stands in the scene, in the world; what cannot be run is refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer

from scene_data import LEFT_HANDED, OBLIQUE, box, ctVoxels, pattern, rotation
from weaktumour.errors import InputError
from weaktumour.labels import read_labels
from weaktumour.volumes import read_volume
from WeakTumourSegLib import roles
from WeakTumourSegLib.scene_export import RunInputs, checkInputs, exportInputs, exportVolume, labelMap

SHAPE = (20, 22, 24)
TURN = rotation((0.3, -1, 0.4), 33, (5, 60, -8))


def lpsOfFile(path: Path, index: tuple[int, int, int]) -> np.ndarray:
    return np.array(sitk.ReadImage(str(path)).TransformIndexToPhysicalPoint(index))


# -- geometry -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".nrrd", ".nii.gz"])
@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("oblique", [OBLIQUE, LEFT_HANDED])
def test_a_volume_keeps_its_place_in_the_world(suffix, transformed, oblique, addVolume, addTransform, tmp_path):
    node = addVolume(pattern(SHAPE, 0, 1000), oblique)
    world = oblique
    if transformed:  # two transforms, one above the other
        above = addTransform(TURN)
        addTransform(rotation((0, 0, 1), -12, (1, 2, 3)), node, parent=above)
        world = TURN @ rotation((0, 0, 1), -12, (1, 2, 3)) @ oblique
    path = tmp_path / f"volume{suffix}"
    exportVolume(node, path)
    for index in ((0, 0, 0), (23, 0, 0), (0, 21, 0), (23, 21, 19), (5, 7, 11)):
        ras = (world @ [*index, 1])[:3]
        assert np.abs(lpsOfFile(path, index) - ras * [-1, -1, 1]).max() < 0.01
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), slicer.util.arrayFromVolume(node))
    # The engine's own reader takes it too.
    assert read_volume(path, "MRI").grid.size == (24, 22, 20)


@pytest.mark.parametrize("type_", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_every_voxel_type_can_be_exported(type_, addVolume, tmp_path):
    node = addVolume(pattern(SHAPE, 0, 200).astype(type_))
    exportVolume(node, tmp_path / "volume.nrrd")
    assert np.array_equal(read_volume(tmp_path / "volume.nrrd", "MRI").array, slicer.util.arrayFromVolume(node))


# -- labels ---------------------------------------------------------------------------------------------------------
def masks() -> dict[str, np.ndarray]:
    return {
        "Other organ": box(SHAPE, (0, 4), (0, 4), (0, 4)),
        "HCC 1": box(SHAPE, (8, 11), (8, 12), (8, 13)),
        "Liver": box(SHAPE, (5, 15), (5, 17), (5, 19)),
        "metastasis": box(SHAPE, (10, 13), (11, 15), (11, 15)),
    }


def expected() -> np.ndarray:
    drawn = masks()
    labels = np.zeros(SHAPE, np.uint8)
    labels[drawn["Liver"]] = 1
    labels[drawn["HCC 1"]] = 2
    labels[drawn["metastasis"]] = 3
    return labels


def test_segments_become_the_label_map_of_the_scheme(addVolume, addSegmentation, tmp_path):
    mr, ct = addVolume(pattern(SHAPE, 0, 800), name="MR"), addVolume(ctVoxels(), name="CT")
    segmentation = addSegmentation(mr, masks())
    segmentation.GetSegmentation().GetNthSegment(1).SetColor(0.2, 0.4, 0.6)
    exported = exportInputs(RunInputs(mr, ct, segmentation), tmp_path)
    labels = read_labels(exported.mrLabels, "MRI labels")
    assert np.array_equal(labels.volume.array, expected())
    assert [(label.value, label.name, label.role) for label in labels.labels] == [
        (1, "Liver", "liver"),
        (2, "HCC 1", "tumour"),
        (3, "metastasis", "tumour"),
    ]
    assert labels.volume.grid.same_as(read_volume(exported.mr, "MRI").grid)
    entries = json.loads((exported.mrLabels.parent / "labels.json").read_text())["labels"]
    assert entries[1]["colour"] == [51, 102, 153]
    assert entries[1]["terminology"]["type"] == {"scheme": "SCT", "value": "4147007", "meaning": "Mass"}
    assert entries[0]["terminology"]["type"]["value"] == "10200004"


def test_a_segmentation_on_another_grid_and_under_another_transform_lies_right(
    addVolume, addSegmentation, addTransform
):
    mr = addVolume(pattern(SHAPE, 0, 800), OBLIQUE)
    fine = addVolume(np.zeros((60, 66, 72), np.int16), rotation((0, 1, 0), 10, (0, -40, 40)) @ np.diag([1, 1, 1, 1]))
    ball = np.linalg.norm(np.argwhere(np.ones((60, 66, 72))) - [30, 33, 36], axis=1).reshape(60, 66, 72) < 9
    segmentation = addSegmentation(fine, {"liver": ball})
    # Where the ball's centre is to be: in the middle of the MR, both moved about in the world.
    addTransform(TURN, mr)
    centre = (TURN @ OBLIQUE @ [12, 11, 10, 1])[:3]
    addTransform(np.eye(4), segmentation)
    move = rotation((1, 0, 0), 40)
    fromNode = (rotation((0, 1, 0), 10, (0, -40, 40)) @ [36, 33, 30, 1])[:3]
    move[:3, 3] = centre - move[:3, :3] @ fromNode
    addTransform(move, segmentation)
    voxels, _labels = labelMap(segmentation, mr)
    index = np.argwhere(voxels == 1)[:, ::-1]
    points = np.c_[index, np.ones(len(index))] @ (TURN @ OBLIQUE).T
    assert np.linalg.norm(points[:, :3].mean(0) - centre) < 0.5
    volume = len(index) * 1.5 * 1.2 * 3.0
    assert volume == pytest.approx(4 / 3 * np.pi * 9**3, rel=0.05)
    assert np.linalg.norm(points[:, :3] - centre, axis=1).max() < 9 + 0.87  # half a voxel of the fine grid


def test_a_closed_surface_alone_is_enough(addVolume, addSegmentation):
    mr = addVolume(pattern(SHAPE, 0, 800))
    segmentation = addSegmentation(mr, {"liver": box(SHAPE, (5, 15), (5, 17), (5, 19))})
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    segmentation.GetSegmentation().CreateRepresentation(surface)
    segmentation.GetSegmentation().SetSourceRepresentationName(surface)
    segmentation.GetSegmentation().RemoveRepresentation("Binary labelmap")
    voxels, _labels = labelMap(segmentation, mr)
    assert np.count_nonzero(voxels) == pytest.approx(10 * 12 * 14, rel=0.1)


def test_the_scene_is_left_as_it_was(scene, addVolume, addSegmentation, addTransform, tmp_path):
    mr, ct = addVolume(pattern(SHAPE, 0, 800)), addVolume(ctVoxels())
    addTransform(TURN, mr)
    segmentation = addSegmentation(mr, masks())
    before = [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())]
    times = [node.GetMTime() for node in (mr, ct, segmentation.GetSegmentation())]
    exportInputs(RunInputs(mr, ct, segmentation), tmp_path)
    assert [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())] == before
    assert [node.GetMTime() for node in (mr, ct, segmentation.GetSegmentation())] == times


# -- roles ----------------------------------------------------------------------------------------------------------
def segment(name: str, code: str | None = None) -> object:
    made = slicer.vtkSegment()
    made.SetName(name)
    if code is not None:
        terminology = roles.Terminology(roles.Code("SCT", "1", "x"), roles.Code("SCT", code, "y"))
        made.SetTag(made.GetTerminologyEntryTagName(), terminology.serialize())
    return made


@pytest.mark.parametrize(
    ("name", "code", "role"),
    [
        ("Liver", None, "liver"),
        ("liver parenchyma", None, "liver"),
        ("Segment_1", "10200004", "liver"),
        ("liver_tumor", None, "tumour"),
        ("Tumour2", None, "tumour"),
        ("Lesion 3", None, "tumour"),
        ("liver metastases", None, "tumour"),
        ("HCC_seg8", None, "tumour"),
        ("Segment_2", "108369006", "tumour"),
        ("Liver mass", "10200004", "liver"),  # the code goes before the name
        ("liver vessels", None, "neither"),
        ("portal vein", None, "neither"),
        ("metal clip", None, "neither"),
        ("spleen", None, "neither"),
        ("delivery", None, "neither"),
        ("Segment_3", "85756007", "neither"),
        ("Liver without tumours", None, "liver"),
        ("liver_minus_tumour", None, "liver"),
        ("Non-tumour liver", None, "liver"),
        ("tumour-free liver", None, "liver"),
        ("tumour without necrosis", None, "tumour"),
        ("left liver lobe", None, "liver"),
        ("right liver lobe", None, "liver"),
        ("Liver, left lobe", None, "liver"),
        ("right lobe of the lung", None, "neither"),
        ("left lobe vessels of the liver", None, "neither"),
        ("caudate lobe of the liver", None, "neither"),
    ],
)
def test_roles_are_recognised(name, code, role):
    assert roles.recognisedRole(segment(name, code)) == role


@pytest.mark.parametrize(
    ("name", "role"),
    [("Segment_1", "tumour"), ("Liver_1", "liver"), ("portal vein", "neither"), ("new lesion", "tumour")],
)
def test_what_is_drawn_into_a_result_is_a_tumour(name, role):
    """The Segment Editor gives a new segment the terminology of the one before it, here the liver's."""
    made = segment(name, "10200004")
    assert roles.roleInResult(made) == role
    made.SetTag(roles.LABEL_TAG, "1")
    assert roles.roleInResult(made) == roles.LIVER


def test_a_chosen_role_goes_before_the_recognised_one():
    made = segment("Liver")
    roles.setRole(made, roles.NEITHER)
    assert roles.roleOf(made) == roles.NEITHER
    roles.setRole(made, roles.LIVER)  # back to what is recognised: nothing is kept
    assert roles.segmentTag(made, roles.ROLE_TAG) == ""
    with pytest.raises(ValueError, match="role"):
        roles.setRole(made, "spleen")


def test_terminology_survives_its_text():
    text = roles.TERMINOLOGY[roles.TUMOUR].serialize()
    assert "~SCT^49755003^Morphologically Altered Structure~SCT^4147007^Mass~" in text
    assert roles.Terminology.parse(text) == roles.TERMINOLOGY[roles.TUMOUR]
    assert roles.Terminology.parse("anything") is None


def test_a_neoplasm_keeps_its_own_code():
    made = segment("t", "86049000")
    assert roles.terminologyFor(made, roles.TUMOUR).type.value == "86049000"
    assert roles.terminologyFor(segment("t", "85756007"), roles.TUMOUR).type.value == "4147007"


# -- refusals -------------------------------------------------------------------------------------------------------
@pytest.fixture
def good(addVolume, addSegmentation) -> RunInputs:
    mr = addVolume(pattern(SHAPE, 0, 800), name="MR")
    ct = addVolume(ctVoxels(), name="CT")
    return RunInputs(mr, ct, addSegmentation(mr, masks(), "drawn"))


def refusal(inputs: RunInputs, folder: Path, networkFindsLivers: bool = True) -> str:
    with pytest.raises(InputError) as caught:
        exportInputs(inputs, folder, networkFindsLivers)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def test_good_inputs_are_not_refused(good):
    checkInputs(good)
    checkInputs(RunInputs(good.mr, good.ct))


def test_missing_and_equal_volumes(good, tmp_path):
    assert "Choose the MRI" in refusal(RunInputs(None, good.ct), tmp_path)
    assert "Choose the CT" in refusal(RunInputs(good.mr, None), tmp_path)
    assert "same volume" in refusal(RunInputs(good.ct, good.ct), tmp_path)


def test_exchanged_volumes(good, addVolume, tmp_path):
    assert "exchanged" in refusal(RunInputs(good.ct, good.mr), tmp_path)
    assert "Hounsfield units, as of a CT" in refusal(RunInputs(addVolume(ctVoxels()), good.ct), tmp_path)
    assert "cannot be Hounsfield" in refusal(RunInputs(good.mr, addVolume(pattern(SHAPE, 0, 800))), tmp_path)


def test_unusable_volumes(good, scene, addVolume, tmp_path):
    import vtk

    thin = addVolume(pattern((1, 22, 24), 0, 800))
    assert "single slice" in refusal(RunInputs(thin, good.ct), tmp_path)
    empty = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    assert "no voxels" in refusal(RunInputs(empty, good.ct), tmp_path)
    fourD = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "4-D")
    image = vtk.vtkImageData()
    image.SetDimensions(8, 8, 8)
    image.AllocateScalars(vtk.VTK_SHORT, 5)
    fourD.SetAndObserveImageData(image)
    assert "5 values a voxel" in refusal(RunInputs(fourD, good.ct), tmp_path)
    scalar4D = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "4-D")
    scalar4D.SetAndObserveImageData(image)
    assert "5 values a voxel" in refusal(RunInputs(scalar4D, good.ct), tmp_path)
    sequence = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "phases")
    assert "sequence" in refusal(RunInputs(sequence, good.ct), tmp_path)
    assert "label map" in refusal(RunInputs(scene.CopyNode(_labelVolume(scene, good.mr)), good.ct), tmp_path)


def _labelVolume(scene, volume):
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    node.SetAndObserveImageData(volume.GetImageData())
    return node


def test_non_linear_parents(good, bend, tmp_path):
    for name, node in (("MRI", good.mr), ("CT", good.ct), ("drawn", good.mrSegmentation)):
        transform = bend(node)
        sentence = refusal(good, tmp_path)
        assert "non-linear transform" in sentence
        assert name in sentence
        node.SetAndObserveTransformNodeID(None)
        slicer.mrmlScene.RemoveNode(transform)


def test_a_sheared_volume(good, addTransform, tmp_path):
    shear = np.eye(4)
    shear[0, 1] = 0.2
    addTransform(shear, good.mr)
    assert "not perpendicular" in refusal(RunInputs(good.mr, good.ct), tmp_path)


def test_unusable_segmentations(good, addSegmentation, addTransform, addVolume, tmp_path):
    mr, ct = good.mr, good.ct
    assert "is empty" in refusal(RunInputs(mr, ct, addSegmentation(mr, {}, "none")), tmp_path)
    nothing = addSegmentation(mr, {"liver": np.zeros(SHAPE, bool)}, "nothing")
    assert 'segments of "nothing" are empty' in refusal(RunInputs(mr, ct, nothing), fresh(tmp_path))
    ofCt = addSegmentation(ct, masks(), "on CT")
    assert 'was drawn on "CT"' in refusal(RunInputs(mr, ct, ofCt), fresh(tmp_path))
    unknown = addSegmentation(mr, {"Segment_1": masks()["Liver"]}, "unnamed")
    assert "recognised as liver or tumour" in refusal(RunInputs(mr, ct, unknown), fresh(tmp_path))
    elsewhere = addSegmentation(addVolume(pattern(SHAPE, 0, 9), rotation((0, 0, 1), 0, (900, 0, 0))), masks(), "far")
    assert "does not lie in" in refusal(RunInputs(mr, ct, elsewhere), fresh(tmp_path))


def test_a_missing_liver_is_fine_only_where_the_network_finds_it(good, addSegmentation, tmp_path):
    tumours = addSegmentation(good.mr, {"tumour": masks()["HCC 1"]}, "tumours")
    checkInputs(RunInputs(good.mr, good.ct, tumours))
    assert "is the liver" in refusal(RunInputs(good.mr, good.ct, tumours), tmp_path, networkFindsLivers=False)
    assert "MRI segmentation" in refusal(RunInputs(good.mr, good.ct), tmp_path, networkFindsLivers=False)


def test_a_ct_liver_is_exported_as_a_mask(good, addSegmentation, tmp_path):
    segments = {"any": box(SHAPE, (4, 12), (4, 12), (4, 12))}
    inputs = RunInputs(good.mr, good.ct, None, addSegmentation(good.ct, segments, "CT liver"))
    exported = exportInputs(inputs, tmp_path)
    assert np.array_equal(read_volume(exported.ctLiver, "CT liver").array, segments["any"])
    two = addSegmentation(good.ct, {"a": segments["any"], "b": segments["any"]}, "two")
    assert 'name it "Liver"' in refusal(RunInputs(good.mr, good.ct, None, two), fresh(tmp_path))


def fresh(folder: Path) -> Path:
    """An empty folder of its own for each refusal."""
    made = folder / f"run{sum(1 for _ in folder.iterdir())}"
    made.mkdir()
    return made
