"""Result nodes: voxel by voxel on the CT, the transform as SimpleITK sees it, named for DICOM, beside the CT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import slicer
import vtk

from result_folder import writeResult
from scene_data import OBLIQUE, box, ctVoxels, pattern, rotation
from weaktumour.errors import InputError
from WeakTumourSegLib import geometry, roles, scene_export, scene_import
from WeakTumourSegLib.scene_export import RunInputs, exportInputs

SHAPE = (20, 22, 24)
MR_MOTION = rotation((1, 1, 0), 21, (14, 3, -30))
CT_MOTION = rotation((-0.2, 0.1, 1), -38, (-25, 44, 9))


def labelsOnCT() -> np.ndarray:
    labels = box(SHAPE, (4, 16), (4, 18), (4, 20)).astype(np.uint8)
    labels[8:12, 8:12, 8:13] = 2
    labels[3:6, 15:19, 15:21] = 5
    return labels


@pytest.fixture
def inputs(addVolume, addSegmentation, addTransform) -> RunInputs:
    """MR under one rotation, CT under another; the CT in a study of a patient."""
    mr = addVolume(pattern(SHAPE, 0, 800), rotation((0, 1, 1), -15) @ np.diag([1.4, 1.4, 2.5, 1]), "MR")
    ct = addVolume(ctVoxels(SHAPE), OBLIQUE, "CT")
    addTransform(MR_MOTION, mr)
    addTransform(CT_MOTION, ct)
    segmentation = addSegmentation(mr, {"Liver": box(SHAPE, (4, 16), (4, 18), (4, 20)), "HCC": labelsOnCT() == 2})
    segmentation.GetSegmentation().GetNthSegment(1).SetColor(0.1, 0.9, 0.3)
    return RunInputs(mr, ct, segmentation)


@pytest.fixture
def result(inputs, tmp_path) -> tuple[scene_import.ResultNodes, sitk.Transform, Path]:
    exported = exportInputs(inputs, tmp_path)
    transform = writeResult(tmp_path / "result", exported.ct, labelsOnCT(), {1: "Liver", 2: "HCC", 5: "Tumour 2"})
    movingToWorld = geometry.nodeToWorld(inputs.mr)
    nodes = scene_import.importResult(tmp_path / "result", "run-a", inputs, movingToWorld, exported.labels)
    return nodes, transform, tmp_path / "result"


def voxelsOnCT(segmentation, ct) -> np.ndarray:
    """Through Slicer's own export, on the CT's grid."""
    labelmap = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "exported")
    ids = [segmentId for segmentId, _segment in roles.segmentsOf(segmentation)]
    extent = slicer.vtkSegmentation.EXTENT_REFERENCE_GEOMETRY
    assert slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsToLabelmapNode(
        segmentation, ids, labelmap, ct, extent
    )
    voxels = slicer.util.arrayFromVolume(labelmap).copy()
    order = {
        index + 1: int(roles.segmentTag(segment, scene_import.LABEL_TAG))
        for index, (_id, segment) in enumerate(roles.segmentsOf(segmentation))
    }
    slicer.mrmlScene.RemoveNode(labelmap)
    return np.vectorize(lambda value: order.get(value, 0))(voxels)


# -- segmentation ---------------------------------------------------------------------------------------------------
def test_the_segmentation_is_the_label_map_voxel_by_voxel(result, inputs):
    nodes, _transform, folder = result
    file = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "ct_labels.nii.gz")))
    assert np.array_equal(voxelsOnCT(nodes.segmentation, inputs.ct), file)
    assert nodes.segmentation.GetParentTransformNode() is inputs.ct.GetParentTransformNode()


def test_segments_stand_at_the_labels_place_in_the_world(result):
    nodes, _transform, folder = result
    image = sitk.ReadImage(str(folder / "ct_labels.nii.gz"))
    (tumour,) = (
        segmentId
        for segmentId, segment in roles.segmentsOf(nodes.segmentation)
        if roles.segmentTag(segment, scene_import.LABEL_TAG) == "2"
    )
    voxels = scene_export.segmentInWorld(nodes.segmentation, tumour)
    index = np.argwhere(geometry.imageArray(voxels) != 0)[:, ::-1] + voxels.GetExtent()[::2]
    found = geometry.transformPoints(geometry.imageToWorld(voxels), index)
    expected = [
        image.TransformIndexToPhysicalPoint([int(n) for n in place[::-1]])
        for place in np.argwhere(sitk.GetArrayFromImage(image) == 2)
    ]
    assert np.abs(found - np.array(expected) * [-1, -1, 1]).max() < 0.01


def test_names_colours_and_terminology(result):
    nodes = result[0]
    segments = {roles.segmentTag(s, scene_import.LABEL_TAG): s for _id, s in roles.segmentsOf(nodes.segmentation)}
    assert {key: segment.GetName() for key, segment in segments.items()} == {"1": "Liver", "2": "HCC", "5": "Tumour 2"}
    assert segments["2"].GetColor() == pytest.approx((0.1, 0.9, 0.3))  # as drawn by the user
    types = {key: roles.terminologyOf(segment).type.value for key, segment in segments.items()}
    assert types == {"1": "10200004", "2": "4147007", "5": "4147007"}
    categories = {key: roles.terminologyOf(segment).category.value for key, segment in segments.items()}
    assert categories == {"1": "123037004", "2": "49755003", "5": "49755003"}


def test_references_for_dicom_export(result, inputs):
    nodes = result[0]
    reference = nodes.segmentation.GetNodeReference(nodes.segmentation.GetReferenceImageGeometryReferenceRole())
    assert reference is inputs.ct
    parameter = slicer.vtkSegmentationConverter.GetReferenceImageGeometryParameterName()
    assert nodes.segmentation.GetSegmentation().GetConversionParameter(parameter) != ""
    for node in (nodes.segmentation, nodes.transform, nodes.registeredMR):
        assert node.GetNodeReference(scene_import.FIXED_ROLE) is inputs.ct
        assert node.GetNodeReference(scene_import.MOVING_ROLE) is inputs.mr
        assert node.GetAttribute(scene_import.RUN_ATTRIBUTE) == "run-a"


def test_nodes_stand_beside_the_ct_in_its_study(scene, inputs, tmp_path):
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    patient = hierarchy.CreateSubjectItem(hierarchy.GetSceneItemID(), "patient")
    study = hierarchy.CreateStudyItem(patient, "study")
    hierarchy.CreateItem(study, inputs.ct)  # the application does so for every node
    exported = exportInputs(inputs, tmp_path)
    writeResult(tmp_path / "result", exported.ct, labelsOnCT())
    nodes = scene_import.importResult(tmp_path / "result", "run", inputs, np.eye(4), exported.labels)
    for node in (nodes.segmentation, nodes.transform, nodes.registeredMR):
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study


# -- registered MRI -------------------------------------------------------------------------------------------------
def test_the_registered_mri_lies_on_the_ct(result, inputs):
    nodes = result[0]
    assert np.array_equal(
        slicer.util.arrayFromVolume(nodes.registeredMR), slicer.util.arrayFromVolume(inputs.ct).astype(np.float32) + 7
    )
    assert np.allclose(geometry.ijkToWorld(nodes.registeredMR), geometry.ijkToWorld(inputs.ct))


# -- transform ------------------------------------------------------------------------------------------------------
def worldPointsOfCT(ct, count: int = 40) -> np.ndarray:
    index = np.random.default_rng(1).uniform(0, np.array(geometry.sizeOf(ct)) - 1, (count, 3))
    return geometry.transformPoints(geometry.ijkToWorld(ct), index)


def assertMapsAs(node, transform: sitk.Transform, points: np.ndarray, tolerance: float = 0.01) -> None:
    """From-parent of the node against SimpleITK, world RAS points."""
    fromParent = node.GetTransformFromParent()
    for point in points:
        expected = np.array(transform.TransformPoint((point * [-1, -1, 1]).tolist())) * [-1, -1, 1]
        assert np.linalg.norm(np.array(fromParent.TransformPoint(point)) - expected) < tolerance


def test_the_transform_maps_points_as_the_file_does(result, inputs):
    nodes, transform, folder = result
    points = worldPointsOfCT(inputs.ct)
    assertMapsAs(nodes.transform, transform, points)
    assertMapsAs(nodes.transform, sitk.ReadTransform(str(folder / "transform.h5")), points)
    assert type(nodes.transform).__name__ == "vtkMRMLTransformNode"
    assert nodes.transform.GetParentTransformNode() is None


def test_a_saved_transform_file_maps_the_same_in_simpleitk(scene, result, inputs, tmp_path):
    nodes, transform, _folder = result
    path = tmp_path / "saved.h5"
    nodes.transform.AddDefaultStorageNode()
    nodes.transform.GetStorageNode().SetFileName(str(path))
    assert nodes.transform.GetStorageNode().WriteData(nodes.transform)
    saved = sitk.ReadTransform(str(path))
    for point in worldPointsOfCT(inputs.ct, 10) * [-1, -1, 1]:
        assert np.linalg.norm(np.subtract(saved.TransformPoint(point), transform.TransformPoint(point))) < 0.1


def test_everything_survives_saving_the_scene(scene, result, inputs, tmp_path):
    nodes, transform, _folder = result
    points, file = worldPointsOfCT(inputs.ct), voxelsOnCT(nodes.segmentation, inputs.ct)
    bundle = str(tmp_path / "scene.mrb")
    assert scene.WriteToMRB(bundle)
    scene.Clear(0)
    assert scene_import.resultSegmentations() == []
    scene.ReadFromMRB(bundle)
    (segmentation,) = scene_import.resultSegmentations()
    again = scene_import.resultOf(segmentation)
    ct = segmentation.GetNodeReference(scene_import.FIXED_ROLE)
    assert ct.GetName() == "CT"
    assert np.array_equal(voxelsOnCT(segmentation, ct), file)
    assertMapsAs(again.transform, transform, points, 0.1)
    assert again.transform.GetTransformFromParent().GetClassName() == "vtkOrientedGridTransform"
    assert again.registeredMR.GetNodeReference(scene_import.MOVING_ROLE).GetName() == "MR"
    (liver, hcc, _other) = (segment for _id, segment in roles.segmentsOf(segmentation))
    assert (liver.GetName(), hcc.GetName()) == ("Liver", "HCC")
    assert roles.terminologyOf(hcc) == roles.TERMINOLOGY[roles.TUMOUR]
    assertShownOnCT(scene_import.showRegistered(again), transform, points)


# -- show registered ------------------------------------------------------------------------------------------------
def assertShownOnCT(shown, transform: sitk.Transform, points: np.ndarray) -> None:
    """What the file says belongs to a point of the CT is shown there. points: CT, world RAS mm, as at the run."""
    toWorld = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(shown.GetParentTransformNode(), None, toWorld)
    for point in points:
        moving = np.array(transform.TransformPoint((point * [-1, -1, 1]).tolist())) * [-1, -1, 1]
        own = geometry.transformPoints(np.linalg.inv(MR_MOTION), moving)
        assert np.linalg.norm(np.array(toWorld.TransformPoint(own)) - point) < 0.1


def test_the_mri_is_shown_registered_by_a_copy(scene, result, inputs):
    nodes, transform, _folder = result
    parent = inputs.mr.GetParentTransformNode()
    shown = scene_import.showRegistered(nodes)
    assert shown is not inputs.mr
    assert inputs.mr.GetParentTransformNode() is parent
    assert parent.GetParentTransformNode() is None
    assertShownOnCT(shown, transform, worldPointsOfCT(inputs.ct))
    assert scene_import.showRegistered(nodes) is shown


def test_what_is_shown_registered_has_the_mris_window(result, inputs):
    inputs.mr.CreateDefaultDisplayNodes()
    inputs.mr.GetDisplayNode().SetAutoWindowLevel(False)
    inputs.mr.GetDisplayNode().SetWindowLevel(321, 123)
    display = scene_import.showRegistered(result[0]).GetDisplayNode()
    assert (display.GetAutoWindowLevel(), display.GetWindow(), display.GetLevel()) == (0, 321, 123)


def test_the_report_stays_with_the_scene(scene, inputs, tmp_path):
    exported = exportInputs(inputs, tmp_path)
    writeResult(tmp_path / "result", exported.ct, labelsOnCT())
    page = "<html>" + "é <b>&amp;</b>\n" * 100000 + "</html>"
    (tmp_path / "result/report.html").write_text(page, encoding="utf-8")
    nodes = scene_import.importResult(tmp_path / "result", "run", inputs, np.eye(4), exported.labels)
    assert scene_import.reportOf(nodes.segmentation) == page
    assert scene_import.reportOf(inputs.mrSegmentation) == scene_import.reportOf(None) == ""
    assert scene.WriteToMRB(str(tmp_path / "scene.mrb"))
    scene.Clear(0)
    scene.ReadFromMRB(str(tmp_path / "scene.mrb"))
    (segmentation,) = scene_import.resultSegmentations()
    assert scene_import.reportOf(segmentation) == page


def test_a_moved_mri_does_not_move_what_is_shown(result, inputs, addTransform):
    nodes, transform, _folder = result
    addTransform(rotation((1, 0, 0), 77, (100, 0, 0)), inputs.mr)
    assertShownOnCT(scene_import.showRegistered(nodes), transform, worldPointsOfCT(inputs.ct))


# -- more than one run, and none ------------------------------------------------------------------------------------
def test_a_second_run_leaves_the_first(result, inputs):
    nodes, _transform, folder = result
    before = voxelsOnCT(nodes.segmentation, inputs.ct)
    second = scene_import.importResult(folder, "run-b", inputs, np.eye(4))
    assert second.segmentation is not nodes.segmentation
    assert second.segmentation.GetName() != nodes.segmentation.GetName()
    assert second.segmentation.GetDisplayNode() is not nodes.segmentation.GetDisplayNode()
    assert np.array_equal(voxelsOnCT(nodes.segmentation, inputs.ct), before)
    assert [node.GetAttribute(scene_import.RUN_ATTRIBUTE) for node in scene_import.resultSegmentations()] == [
        "run-a",
        "run-b",
    ]
    assert scene_import.resultOf(nodes.segmentation) == nodes
    assert scene_import.resultOf(inputs.mrSegmentation) is None
    assert scene_import.resultOf(None) is None


@pytest.mark.parametrize("missing", ["ct_labels.nii.gz", "transform.h5", "mr_on_ct.nii.gz", "labels.json"])
def test_a_broken_result_leaves_no_node(missing, scene, inputs, tmp_path):
    exported = exportInputs(inputs, tmp_path)
    writeResult(tmp_path / "result", exported.ct, labelsOnCT())
    (tmp_path / "result" / missing).unlink()
    before = [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())]
    with pytest.raises((InputError, OSError)):
        scene_import.importResult(tmp_path / "result", "run", inputs, np.eye(4))
    assert [scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())] == before


def test_a_ct_that_moved_during_the_run_is_noticed(scene, inputs, addTransform, tmp_path):
    exported = exportInputs(inputs, tmp_path)
    writeResult(tmp_path / "result", exported.ct, labelsOnCT())
    addTransform(rotation((1, 0, 0), 5), inputs.ct)
    with pytest.raises(InputError, match="changed or moved during the run"):
        scene_import.importResult(tmp_path / "result", "run", inputs, np.eye(4))
