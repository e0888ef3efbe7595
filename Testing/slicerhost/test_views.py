"""What is drawn: pictures whose colours are known from the data."""

from __future__ import annotations

import numpy as np
import pytest

from slicerhost import missing_packages

if missing_packages():
    pytest.skip(missing_packages(), allow_module_level=True)

from slicerhost import views

BRIGHT = (slice(10, 20), slice(10, 30), slice(10, 40))  # k, j, i


@pytest.fixture
def egl(slicer_host):
    if views.missing_egl():
        pytest.skip(views.missing_egl())


@pytest.fixture
def scene_with_overlay(slicer_host, egl):
    """A grey block in a dark volume, and a red segment on the half of it to the patient's left (R below 0)."""
    import slicer

    values = np.zeros((30, 40, 50), np.int16)
    values[BRIGHT] = 100
    ijk_to_ras = np.diag([-2.0, -2.0, 2.0, 1.0])
    ijk_to_ras[:3, 3] = [50.0, 40.0, -30.0]
    volume = slicer.util.addVolumeFromArray(values, ijkToRAS=ijk_to_ras, name="CT")
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevelMinMax(0, 200)
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Labels")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment_id = segmentation.GetSegmentation().AddEmptySegment("tumour", "tumour", [1.0, 0.0, 0.0])
    mask = np.zeros(values.shape, np.uint8)
    mask[BRIGHT] = 1
    mask[:, :, :25] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, segmentation, segment_id, volume)
    slicer.util.setSliceViewerLayers(background=volume, fit=True)
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, 0.0, 0.0, 0.0)
    return segmentation


def reds(picture: np.ndarray) -> np.ndarray:
    """Where it is clearly more red than anything else, as on a red overlay over grey."""
    return picture[..., 0].astype(int) - picture[..., 1:].max(axis=2) > 30


def test_a_slice_shows_the_volume_and_the_segment_on_the_right_side(scene_with_overlay):
    picture = views.slice_picture("Red")
    grey = (np.ptp(picture, axis=2) < 5) & (picture[..., 0] > 100)
    assert grey.sum() > 1000
    assert reds(picture).sum() > 1000
    # The patient's left is on the right of the picture.
    assert np.nonzero(reds(picture))[1].mean() > np.nonzero(grey)[1].mean()


def test_a_hidden_segment_is_not_drawn(scene_with_overlay):
    scene_with_overlay.GetDisplayNode().SetVisibility(False)
    assert not reds(views.slice_picture("Red")).any()


def test_jumping_moves_all_three_slices(scene_with_overlay):
    import slicer

    before = {name: views.slice_picture(name) for name in ("Red", "Green", "Yellow")}
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, -40.0, 36.0, 26.0)  # outside the block
    for name, picture in before.items():
        assert picture.max() > 50, name
        assert views.slice_picture(name).max() < 30, name


def test_the_3d_view_shows_the_closed_surface(scene_with_overlay):
    assert not reds(views.three_d_picture()).any()
    scene_with_overlay.CreateClosedSurfaceRepresentation()
    assert reds(views.three_d_picture()).sum() > 1000


def test_an_empty_scene_is_drawn_black_and_after_a_full_one_too(slicer_host, scene_with_overlay):
    assert views.slice_picture("Red").any()
    slicer_host.close_scene()
    assert not reds(views.slice_picture("Red")).any()
    assert views.slice_picture("Red").max() < 30


def test_a_widget_is_pictured_and_saved(slicer_host, tmp_path):
    import qt

    label = qt.QLabel("seen")
    label.setStyleSheet("background-color: rgb(10, 200, 30)")
    label.resize(120, 40)
    picture = views.widget_picture(label)
    assert picture.shape == (40, 120, 3)
    assert tuple(picture[2, 2]) == (10, 200, 30)
    path = views.save_picture(picture, tmp_path / "label.png")
    assert qt.QImage(str(path)).size().width() == 120
