"""Where a tumour may lie: the right points, and never anything but a picture."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from result_folder import assessedAs, writeAssessed, writeResult
from scene_data import box, ctVoxels, pattern, rotation
from weaktumour.cases import read_case
from WeakTumourSegLib import assessment, geometry, position_regions, preselection, roles, scene_import, training_export
from WeakTumourSegLib.scene_export import RunInputs, exportInputs, segmentInWorld
from WeakTumourSegLib.tumour_table import updateEdited

SHAPE = (20, 22, 24)
FIGURES = {2: assessedAs("localised", 4.0), 3: assessedAs("approximate", 8.7)}


def labelsOnCT() -> np.ndarray:
    labels = box(SHAPE, (4, 16), (4, 18), (4, 20)).astype(np.uint8)
    labels[8:12, 8:12, 8:13] = 2
    labels[13:15, 14:17, 15:19] = 3
    return labels


@pytest.fixture
def inputs(addVolume, addSegmentation, addTransform) -> RunInputs:
    """An oblique CT under a rotation."""
    mr, ct = addVolume(pattern(SHAPE, 0, 800), name="MR"), addVolume(ctVoxels(SHAPE), name="CT")
    addTransform(rotation((0, 0, 1), 12, (3, 4, 5)), ct)
    masks = {"Liver": labelsOnCT() > 0, "HCC": labelsOnCT() == 2, "lesion": labelsOnCT() == 3}
    return RunInputs(mr, ct, addSegmentation(mr, masks))


@pytest.fixture
def assess(inputs, tmp_path):
    """Makes the nodes of an assessed run."""

    def make(runId: str = "run", figures: dict = FIGURES) -> scene_import.ResultNodes:
        folder = tmp_path / runId
        folder.mkdir()
        exported = exportInputs(inputs, folder)
        writeResult(folder / "result", exported.ct, labelsOnCT())
        writeAssessed(folder / "result", folder / "assessed", figures)
        nodes = scene_import.importResult(folder / "result", runId, inputs, np.eye(4), exported.labels)
        return assessment.take(nodes, folder / "assessed")

    return make


# -- the points -----------------------------------------------------------------------------------------------------
def distancesToBoxes(points: np.ndarray, indices: np.ndarray, toWorld: np.ndarray) -> np.ndarray:
    """Least distance (mm) of world points to voxels' boxes, each searched by a fine lattice of points in it."""
    steps = np.linspace(-0.5, 0.5, 7)
    offsets = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    samples = geometry.transformPoints(toWorld, (indices[:, None] + offsets).reshape(-1, 3))
    return np.array([np.sqrt(((samples - point) ** 2).sum(1).min()) for point in points])


def test_a_region_holds_all_points_within_p95_of_the_tumour_in_the_world(assess, inputs):
    regions = assess().regions
    toWorld = geometry.ijkToWorld(inputs.ct)
    for label, p95 in ((2, 4.0), (3, 8.7)):
        image = segmentInWorld(regions, f"region_{label}")
        voxels = np.argwhere(geometry.imageArray(image) >= 0)[:, ::-1] + image.GetExtent()[::2]
        points = geometry.transformPoints(geometry.imageToWorld(image), voxels)
        inside = geometry.imageArray(image).ravel() != 0
        some = np.random.default_rng(0).permutation(len(points))[:400]
        tumour = np.argwhere(labelsOnCT() == label)[:, ::-1]
        distance = distancesToBoxes(points[some], tumour, toWorld)
        near = np.abs(distance - p95) < 0.15  # the lattice of samples is that coarse
        assert np.array_equal(inside[some][~near], distance[~near] < p95)
        assert 0.05 < inside.mean() < 0.95
        # Nothing is cut off: as far from the tumour as a voxel's centre can be.
        extent = np.argwhere(geometry.imageArray(image)).max(0) - np.argwhere(geometry.imageArray(image)).min(0)
        size = np.argwhere(labelsOnCT() == label).max(0) - np.argwhere(labelsOnCT() == label).min(0)
        reach = 2 * np.floor(p95 / np.array([3.0, 1.2, 1.5]) + 0.5)
        assert np.array_equal(extent, size + reach)


def test_the_distance_is_exact_on_the_lattice():
    mask = np.random.default_rng(1).random((3, 4, 5)) < 0.1
    spacing, distance = np.array([2.5, 0.8, 1.1]), 3.3
    region, margin = position_regions.withinDistance(mask, spacing, distance)
    between = np.argwhere(np.ones(region.shape, bool))[:, None] - margin - np.argwhere(mask)
    toBox = np.linalg.norm(np.maximum(np.abs(between) - 0.5, 0) * spacing, axis=2).min(1)
    assert np.array_equal(region.ravel(), toBox <= distance)


def test_regions_may_overlap(assess):
    regions = assess(figures={2: assessedAs("approximate", 9.0), 3: assessedAs("approximate", 9.0)}).regions
    first, second = (segmentInWorld(regions, f"region_{label}") for label in (2, 3))
    index = {}
    for name, image in (("first", first), ("second", second)):
        places = np.argwhere(geometry.imageArray(image))[:, ::-1] + image.GetExtent()[::2]
        index[name] = {tuple(place) for place in places}
    assert index["first"] & index["second"]


def test_no_region_where_the_place_is_not_known(assess):
    figures = {2: assessedAs("cannot_be_localised", 4.0), 3: assessedAs("not_assessed", None)}
    assert assess(figures=figures).regions is None


# -- nothing but a picture ------------------------------------------------------------------------------------------
def test_regions_are_named_and_drawn_as_outlines(assess):
    result = assess()
    segments = roles.segmentsOf(result.regions)
    assert [segment.GetName() for _id, segment in segments] == [
        "HCC: 95 % position region",
        "lesion: 95 % position region",
    ]
    assert result.regions.GetName() == "CT position regions (1)"
    assert segments[0][1].GetColor() == result.segmentation.GetSegmentation().GetSegment("tumour_2").GetColor()
    display = result.regions.GetDisplayNode()
    assert (display.GetVisibility2DFill(), display.GetVisibility2DOutline(), display.GetVisibility3D()) == (0, 1, 0)
    assert result.regions.GetParentTransformNode() is result.segmentation.GetParentTransformNode()


def test_regions_are_not_offered_for_dicom_export_nor_taken_for_tumours(scene, inputs, assess):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.CreateItem(study, inputs.ct)
    result = assess()
    regions = result.regions
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(result.segmentation)) == study
    assert hierarchy.GetItemByDataNode(regions) == 0  # what is exported is found there
    assert regions.GetHideFromEditors()
    assert regions.GetNodeReference(regions.GetReferenceImageGeometryReferenceRole()) is None
    for _segmentId, segment in roles.segmentsOf(regions):
        assert roles.terminologyOf(segment).type.meaning == "Tissue"  # as Slicer calls what nobody has named
        assert roles.roleOf(segment) == roles.roleInResult(segment) == roles.NEITHER
    assert preselection.segmentationOf(inputs.ct) is None
    assert scene_import.resultSegmentations() == [result.segmentation]
    names = [segment.GetName() for _id, segment in roles.segmentsOf(result.segmentation)]
    assert not any("region" in name for name in names)


def test_regions_are_not_saved_for_training(assess, tmp_path):
    result = assess()
    case = read_case(training_export.saveForTraining(result.segmentation, tmp_path))
    assert np.array_equal(case.ct_labels.array, labelsOnCT())


# -- what is shown, and how long ------------------------------------------------------------------------------------
def shown(regions) -> dict[str, bool]:
    display = regions.GetDisplayNode()
    return {
        segmentId: bool(display.GetVisibility() and display.GetSegmentVisibility(segmentId))
        for segmentId, _segment in roles.segmentsOf(regions)
    }


def test_the_region_of_an_edited_tumour_is_hidden_until_the_edit_is_undone(assess, inputs):
    result = assess()

    def draw(mask: np.ndarray) -> None:
        image = geometry.orientedImage(mask.astype(np.uint8), geometry.ijkToNode(inputs.ct))
        slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, result.segmentation, "tumour_2")
        updateEdited(result.segmentation, "tumour_2")
        position_regions.show(result.segmentation, True)

    assert shown(result.regions) == {"region_2": True, "region_3": True}
    draw(np.roll(labelsOnCT() == 2, 1, axis=1))
    assert shown(result.regions) == {"region_2": False, "region_3": True}
    draw(labelsOnCT() == 2)
    assert shown(result.regions) == {"region_2": True, "region_3": True}
    result.segmentation.GetSegmentation().RemoveSegment("tumour_3")
    position_regions.show(result.segmentation, True)
    assert shown(result.regions) == {"region_2": True, "region_3": False}


def test_one_runs_regions_at_a_time_and_they_go_with_it(scene, assess):
    first, second = assess("first"), assess("second")
    assert first.regions is not second.regions
    assert not any(shown(first.regions).values())
    assert all(shown(second.regions).values())
    position_regions.show(first.segmentation, True)
    assert all(shown(first.regions).values())
    assert not any(shown(second.regions).values())
    scene.RemoveNode(first.segmentation)
    position_regions.removeOrphans()
    assert scene_import.nodesOfKind(scene_import.REGIONS) == [second.regions]


def test_regions_are_saved_with_the_scene(scene, assess, tmp_path):
    before = segmentInWorld(assess().regions, "region_3")
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"))
    scene.Clear(0)
    scene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    (segmentation,) = scene_import.resultSegmentations()
    result = scene_import.resultOf(segmentation)
    after = segmentInWorld(result.regions, "region_3")
    assert np.count_nonzero(geometry.imageArray(after)) == np.count_nonzero(geometry.imageArray(before))
    assert result.regions.GetHideFromEditors()
    assert not result.regions.GetDisplayNode().GetVisibility2DFill()
    assert result.probability is not None
    position_regions.show(segmentation, True)
    assert shown(result.regions) == {"region_2": True, "region_3": True}
