"""Labels through a transform, judged by SimpleITK and by volumes that are known."""

import numpy as np
import pytest
import SimpleITK as sitk

from weaktumour.deformation import Affine, DisplacementField
from weaktumour.labels import LabelMap, boundary_level_set, name_labels
from weaktumour.progress import Monitor
from weaktumour.propagation import propagate_labels
from weaktumour.volumes import Grid, Volume

MR_GRID = Grid(
    (60, 56, 30), (1.5, 1.5, 4.0), (-40.0, -45.0, -60.0), sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.1).GetMatrix()
)
CENTRE = MR_GRID.corners().mean(0)


def label_map(*balls: tuple[int, np.ndarray, float], grid: Grid = MR_GRID) -> LabelMap:
    """A liver of 60 mm diameter at the centre and balls (value, centre offset in mm, diameter in mm)."""
    points = grid.points()
    array = (np.linalg.norm(points - CENTRE, axis=-1) < 30).astype(np.uint8)
    for value, offset, diameter in balls:
        array[np.linalg.norm(points - CENTRE - offset, axis=-1) < diameter / 2] = value
    values = [int(v) for v in np.unique(array) if v]
    return LabelMap(Volume(array, grid), name_labels(values, None))


def ct_grid(size=(80, 76, 60), spacing=(1.3, 1.3, 2.0), angle=-0.2) -> Grid:
    rotation = np.asarray(sitk.Euler3DTransform((0, 0, 0), 0.0, angle, 0.0).GetMatrix()).reshape(3, 3)
    origin = CENTRE + np.array([5, -8, 3]) - rotation @ ((np.asarray(size) - 1) / 2 * spacing)
    return Grid(size, spacing, tuple(origin), rotation.ravel())


def shift(offset_mm, ct: Grid) -> DisplacementField:
    return DisplacementField.of(Affine.translation(offset_mm), ct.with_spacing(4.0).crop((-2, -2, -2), (40, 40, 45)))


def smooth_field(ct: Grid) -> DisplacementField:
    grid = ct.with_spacing(3.0).crop((-2, -2, -2), (48, 46, 52))
    points = grid.points() - CENTRE
    swell = np.sin(points / 25.0) * 3.0
    return DisplacementField(grid, swell[..., [1, 2, 0]] + np.array([-5.0, 8.0, -3.0]))


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("diameter", [10.0, 20.0, 30.0])
def test_simpleitk_through_the_same_transform_agrees(diameter, tmp_path):
    labels = label_map((2, np.array([8.0, 3.0, -5.0]), diameter))
    ct = ct_grid()
    field = smooth_field(ct)
    field.write(tmp_path / "transform.h5")
    transform = sitk.ReadTransform(str(tmp_path / "transform.h5"))
    ours = propagate_labels(labels, field, ct, Monitor()).labels.volume
    for value, mask in {1: labels.volume.array > 0, 2: labels.volume.array == 2}.items():
        level = MR_GRID.apply_to(sitk.GetImageFromArray(boundary_level_set(mask, MR_GRID.spacing)))
        carried = sitk.Resample(level, ct.size, transform, sitk.sitkLinear, ct.origin, ct.spacing, ct.direction, 100.0)
        referee = sitk.GetArrayFromImage(carried) < 0
        assert dice(ours.array >= value, referee) >= 0.98


def test_label_interpolation_of_simpleitk_agrees_where_voxels_are_fine():
    grid = MR_GRID.with_spacing(1.0)
    labels = label_map((2, np.array([8.0, 3.0, -5.0]), 20.0), grid=grid)
    ct = ct_grid()
    field = smooth_field(ct)
    ours = propagate_labels(labels, field, ct, Monitor()).labels.volume.array
    image = grid.apply_to(sitk.GetImageFromArray(labels.volume.array))
    carried = sitk.Resample(image, ct.size, field.to_sitk(), sitk.sitkLabelLinear, ct.origin, ct.spacing, ct.direction)
    referee = sitk.GetArrayFromImage(carried)
    for value in (1, 2):
        assert dice(ours == value, referee == value) >= 0.98


def test_volumes_follow_the_jacobian():
    labels = label_map((2, np.array([8.0, 3.0, -5.0]), 24.0), (3, np.array([-12.0, -6.0, 4.0]), 14.0))
    ct = ct_grid()
    shrink = Affine(np.diag([1.15, 1.15, 1.15, 1.0]))  # CT -> MRI expands, so labels shrink on the CT
    about_centre = Affine.translation(CENTRE).after(shrink).after(Affine.translation(-CENTRE))
    result = propagate_labels(
        labels, DisplacementField.of(about_centre, ct.with_spacing(4.0).crop((-2, -2, -2), (40, 40, 45))), ct, Monitor()
    )
    for value in (2, 3):
        carried = result.carried[value]
        assert carried.jacobian_ratio == pytest.approx(1 / 1.15**3, rel=1e-3)
        assert carried.volume_ratio == pytest.approx(carried.jacobian_ratio, rel=0.08)
        assert carried.warnings == []


def test_a_tumour_smaller_than_a_ct_voxel_does_not_vanish():
    labels = label_map((2, np.array([8.0, 3.0, -5.0]), 5.0))
    ct = ct_grid(size=(14, 14, 12), spacing=(9.0, 9.0, 9.0))
    result = propagate_labels(labels, shift((-4.5, 4.0, 1.0), ct), ct, Monitor())
    assert (result.labels.volume.array == 2).sum() >= 1
    assert result.carried[2].warnings


def test_a_tumour_cut_off_by_the_ct_is_reported():
    labels = label_map((2, np.array([0.0, 0.0, 0.0]), 20.0))
    ct = ct_grid(angle=0.0)
    edge = ct.index_to_world((np.asarray(ct.size) - 1) * np.array([0.5, 0.5, 1.0]))  # the middle of the last slice
    result = propagate_labels(labels, shift(CENTRE - edge, ct), ct, Monitor())
    assert result.carried[2].inside_ct_fraction == pytest.approx(0.5, abs=0.1)
    assert "cut off" in result.carried[2].warnings[0]


def test_a_tumour_outside_the_ct_is_reported_and_not_drawn():
    labels = label_map((2, np.array([0.0, 0.0, 0.0]), 10.0))
    ct = ct_grid()
    result = propagate_labels(labels, shift((300.0, 0.0, 0.0), ct), ct, Monitor())
    assert not result.labels.volume.array.any()
    assert result.carried[2].inside_ct_fraction == 0
    assert "outside the CT" in result.carried[2].warnings[0]


def test_tumour_wins_over_liver_and_leaves_no_gap():
    labels = label_map((2, np.array([10.0, 0.0, 0.0]), 16.0), (3, np.array([-9.0, 0.0, 0.0]), 16.0))
    ct = ct_grid()
    array = propagate_labels(labels, shift((0.0, 0.0, 0.0), ct), ct, Monitor()).labels.volume.array
    assert set(np.unique(array)) == {0, 1, 2, 3}
    filled = sitk.GetArrayFromImage(sitk.BinaryFillhole(sitk.GetImageFromArray((array > 0).astype(np.uint8))))
    assert np.array_equal(filled > 0, array > 0)
