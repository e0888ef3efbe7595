"""Metrics against numbers computed by hand and against scikit-image's marching cubes, which we did not write."""

import numpy as np
import pytest
import SimpleITK as sitk

from weaktumour.deformation import DisplacementField
from weaktumour.evaluation import metrics
from weaktumour.volumes import Grid, Volume

GRID = Grid((40, 36, 30), (1.0, 1.5, 3.0), (-20.0, 10.0, 5.0))


def box(x, y, z, grid=GRID):
    """Mask of the voxels [x0, x1) x [y0, y1) x [z0, z1)."""
    mask = np.zeros(grid.shape, dtype=bool)
    mask[slice(*z), slice(*y), slice(*x)] = True
    return mask


def ball(centre_mm, radius_mm, grid):
    return np.linalg.norm(grid.points() - centre_mm, axis=-1) <= radius_mm


def oblique(grid):
    angle = np.deg2rad(30)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    return Grid(grid.size, grid.spacing, grid.origin, tuple((turn @ np.diag([1, 1, -1])).ravel()))


# -- overlap ----------------------------------------------------------------------------------------------------
def test_dice_and_volume_ratio_by_hand():
    truth, predicted = box((0, 10), (0, 10), (0, 10)), box((5, 10), (0, 10), (0, 12))
    assert metrics.dice(predicted, truth) == pytest.approx(2 * 500 / (600 + 1000))
    assert metrics.volume_ratio(predicted, truth) == pytest.approx(0.6)


def test_relative_volume_difference_by_hand():
    truth = box((0, 10), (0, 10), (0, 10))
    assert metrics.ravd(box((5, 10), (0, 10), (0, 12)), truth) == pytest.approx(40.0)
    assert metrics.ravd(box((0, 15), (0, 10), (0, 10)), truth) == pytest.approx(50.0)
    nothing = np.zeros(GRID.shape, dtype=bool)
    assert metrics.ravd(nothing, nothing) == 0.0
    assert metrics.ravd(truth, nothing) == np.inf


def test_the_largest_surface_distance_is_itks_hausdorff_distance():
    """ITK measures between voxel centres, we between corners: for boxes that is the same."""
    for first, second in (
        (box((5, 12), (5, 20), (4, 9)), box((5, 25), (5, 20), (4, 9))),
        (box((5, 12), (5, 20), (4, 9)), box((8, 12), (5, 11), (4, 16))),
    ):
        filter_ = sitk.HausdorffDistanceImageFilter()
        images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (first, second)]
        for image in images:
            image.SetSpacing(GRID.spacing)
        filter_.Execute(*images)
        found = metrics.surface_metrics(first, second, GRID.spacing)
        assert found["mssd_mm"] == pytest.approx(filter_.GetHausdorffDistance(), rel=1e-6)
        assert found["assd_mm"] <= found["hd95_mm"] <= found["mssd_mm"]


def test_dice_of_equal_balls_follows_the_closed_form():
    # Dice = 1 - 1.5 r + 0.5 r^3 with r = centre distance / diameter.
    grid = Grid((80, 60, 60), (0.5, 0.5, 0.5), (0, 0, 0))
    first, second = ball((15, 15, 15), 10, grid), ball((18, 15, 15), 10, grid)
    assert metrics.dice(first, second) == pytest.approx(1 - 1.5 * 0.15 + 0.5 * 0.15**3, abs=0.005)


def test_coverage_counts_true_voxels_within_the_margin():
    predicted, truth = box((5, 6), (5, 6), (5, 6)), box((5, 6), (5, 6), (5, 10))
    # Slices of 3 mm: the true voxels are 0, 3, 6, 9 and 12 mm away.
    assert metrics.coverage(predicted, truth, GRID.spacing, 5.0) == pytest.approx(2 / 5)
    assert metrics.coverage(predicted, truth, GRID.spacing, 6.0) == pytest.approx(3 / 5)
    assert metrics.coverage(predicted, truth, GRID.spacing, 0.0) == pytest.approx(1 / 5)
    # Along x, voxels of 1 mm; and diagonally, where the distance is Euclidean: (3, 4) voxels = sqrt(9 + 36) mm.
    assert metrics.coverage(predicted, box((5, 15), (5, 6), (5, 6)), GRID.spacing, 5.0) == pytest.approx(6 / 10)
    assert metrics.coverage(predicted, box((8, 9), (9, 10), (5, 6)), GRID.spacing, 6.70) == 0.0
    assert metrics.coverage(predicted, box((8, 9), (9, 10), (5, 6)), GRID.spacing, 6.71) == 1.0


def test_coverage_by_a_larger_prediction_is_complete():
    # The inside of a prediction is covered too, however far from its rim.
    assert metrics.coverage(box((2, 38), (2, 34), (2, 28)), box((18, 20), (16, 18), (14, 16)), GRID.spacing, 0.0) == 1.0


# -- place ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("grid", [GRID, oblique(GRID)], ids=["straight", "oblique"])
def test_centroids_are_in_world_millimetres(grid):
    first, second = box((4, 7), (4, 7), (4, 7), grid), box((7, 10), (4, 7), (6, 9), grid)
    np.testing.assert_allclose(metrics.centroid_mm(first, grid), grid.index_to_world(np.array([5, 5, 5])), atol=1e-9)
    assert metrics.centroid_error_mm(first, second, grid) == pytest.approx(np.hypot(3 * 1.0, 2 * 3.0))


def test_equivalent_diameter_of_a_ball():
    grid = Grid((60, 60, 60), (0.5, 0.5, 0.5), (0, 0, 0))
    assert metrics.equivalent_diameter_mm(ball((15, 15, 15), 10, grid), grid) == pytest.approx(20, abs=0.1)


# -- surfaces ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_surface_distances_of_two_voxels_by_hand(axis):
    spacing = GRID.spacing[axis]
    place = [[10, 11], [10, 11], [10, 11]]
    first = box(*place)
    place[axis] = [13, 14]
    second = box(*place)
    # Faces of the first at -1/2 and +1/2 voxel, of the second at 5/2 and 7/2: corners are 3 and 2 voxels away.
    assert metrics.assd(first, second, GRID.spacing) == pytest.approx(2.5 * spacing, rel=1e-5)
    assert metrics.hd95(first, second, GRID.spacing) == pytest.approx(3 * spacing, rel=1e-5)


def test_a_box_grown_by_one_slice_on_each_side_along_z():
    thin, thick = box((2, 38), (2, 34), (10, 15)), box((2, 38), (2, 34), (9, 16))
    (distance, area), _ = metrics.surface_distances(thick, thin, GRID.spacing)
    assert distance.max() == pytest.approx(3.0, rel=1e-5)
    # Both large faces, 36 x 32 voxels of 1 x 1.5 mm, lie one slice of 3 mm outside; their rims have some side, too.
    assert area[distance > 2.9].sum() == pytest.approx(2 * 36 * 32 * 1.5, rel=0.12)
    assert metrics.hd95(thick, thin, GRID.spacing) == pytest.approx(3.0, rel=1e-5)


def test_identical_masks_are_at_distance_zero_even_where_thin():
    rng = np.random.default_rng(0)
    speckle = rng.random(GRID.shape) < 0.3
    assert metrics.surface_metrics(speckle, speckle.copy(), GRID.spacing) == dict.fromkeys(
        ("assd_mm", "hd95_mm", "mssd_mm"), 0.0
    )


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.8, 0.8, 3.0), (2.0, 1.0, 0.6)])
def test_concentric_balls_are_their_difference_in_radius_apart(spacing):
    grid = Grid(tuple(int(np.ceil(60 / s)) for s in spacing), spacing, (0, 0, 0))
    inner, outer = ball((30, 30, 30), 20, grid), ball((30, 30, 30), 25, grid)
    (to_inner, area_outer), (_, area_inner) = metrics.surface_distances(outer, inner, spacing)
    # Stairs: two slanted surfaces come out up to half a voxel nearer than they are (see the module's docstring).
    assert 5.0 - 0.55 * np.mean(spacing) < metrics.assd(outer, inner, spacing) < 5.0
    assert 5.0 <= metrics.hd95(outer, inner, spacing) < 5.0 + max(spacing)
    # A staircase has more surface than the ball it stands for, by a tenth or so, as with marching cubes on a mask.
    assert 1.0 < area_outer.sum() / (4 * np.pi * 25**2) < 1.16
    assert area_outer.sum() / area_inner.sum() == pytest.approx((25 / 20) ** 2, rel=0.02)
    assert to_inner.min() > 5.0 - 1.2 * np.linalg.norm(spacing)


def test_agrees_with_marching_cubes_and_a_kd_tree():
    measure, spatial = pytest.importorskip("skimage.measure"), pytest.importorskip("scipy.spatial")
    rng = np.random.default_rng(7)
    for _ in range(4):
        spacing = rng.uniform(0.7, 2.5, 3)
        grid = Grid(tuple(np.ceil(50 / spacing).astype(int)), tuple(spacing), (0, 0, 0))
        offset = rng.normal(scale=2.5, size=3)
        first = ball((24, 24, 24), 13, grid) | ball((30, 26, 27), 10, grid)
        second = ball(np.array((24, 24, 24)) + offset, 14, grid) | ball((20, 26, 27), 9, grid)
        triangles = []
        for mask in (first, second):
            vertices, faces, *_ = measure.marching_cubes(np.pad(mask, 1).astype(float), 0.5, spacing=spacing[::-1])
            corners = vertices[faces]
            areas = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
            triangles.append((corners.mean(axis=1), areas))
        (one, area_one), (two, area_two) = triangles
        forth, back = spatial.cKDTree(two).query(one)[0], spatial.cKDTree(one).query(two)[0]
        referee_assd = (forth @ area_one + back @ area_two) / (area_one.sum() + area_two.sum())
        # The referee's points lie on the same faces but at other places along them.
        assert metrics.assd(first, second, spacing) == pytest.approx(referee_assd, abs=0.35 * spacing.max())
        assert metrics.hd95(first, second, spacing) == pytest.approx(
            max(np.percentile(forth, 95), np.percentile(back, 95)), abs=spacing.max()
        )
        _, (_, area) = metrics.surface_distances(first, second, spacing)
        assert area.sum() == pytest.approx(area_two.sum(), rel=0.06)


def test_surface_metrics_do_not_depend_on_the_array_around_the_masks():
    first, second = box((3, 9), (4, 12), (5, 9)), box((4, 12), (4, 13), (5, 11))
    whole = metrics.surface_metrics(first, second, GRID.spacing)
    cropped = metrics.surface_metrics(first[5:11, 4:13, 3:12], second[5:11, 4:13, 3:12], GRID.spacing)
    assert whole == cropped


# -- empty masks ------------------------------------------------------------------------------------------------
def test_both_masks_empty():
    empty = np.zeros(GRID.shape, dtype=bool)
    assert metrics.dice(empty, empty) == 1.0
    assert metrics.volume_ratio(empty, empty) == 1.0
    assert metrics.hd95(empty, empty, GRID.spacing) == metrics.assd(empty, empty, GRID.spacing) == 0.0
    assert metrics.centroid_error_mm(empty, empty, GRID) == 0.0
    assert metrics.coverage(empty, empty, GRID.spacing) == 1.0


def test_one_mask_empty():
    empty, full = np.zeros(GRID.shape, dtype=bool), box((2, 9), (2, 9), (2, 9))
    for predicted, truth in ((empty, full), (full, empty)):
        assert metrics.dice(predicted, truth) == 0.0
        assert metrics.hd95(predicted, truth, GRID.spacing) == metrics.assd(predicted, truth, GRID.spacing) == np.inf
        assert metrics.centroid_error_mm(predicted, truth, GRID) == np.inf
        with pytest.raises(ValueError, match="empty"):
            metrics.surface_distances(predicted, truth, GRID.spacing)
    assert metrics.volume_ratio(empty, full) == 0.0
    assert metrics.volume_ratio(full, empty) == np.inf
    assert metrics.coverage(empty, full, GRID.spacing) == 0.0
    assert np.isnan(metrics.coverage(full, empty, GRID.spacing))


def test_labels_in_place_of_masks_are_refused():
    # Integer label maps would make `&` mean something else.
    with pytest.raises(ValueError, match="boolean"):
        metrics.dice(np.full((2, 2, 2), 2), np.full((2, 2, 2), 1))
    with pytest.raises(ValueError, match="boolean"):
        metrics.dice(np.ones((2, 2, 2), dtype=bool), np.ones((2, 2, 3), dtype=bool))


# -- transforms -------------------------------------------------------------------------------------------------
def linear_field(matrix, offset, grid=GRID):
    """y = matrix x + offset as a field."""
    points = grid.points()
    return DisplacementField(grid, points @ np.asarray(matrix).T + offset - points)


def test_target_registration_error_by_hand():
    field = linear_field(np.eye(3), [3.0, 4.0, 0.0])
    fixed = np.array([[-10.0, 20.0, 20.0], [0.0, 30.0, 50.0]])
    points = np.hstack([fixed, fixed + np.array([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0]])])
    np.testing.assert_allclose(metrics.target_registration_error(field, points), [0.0, 5.0], atol=1e-6)


@pytest.mark.parametrize("grid", [GRID, oblique(GRID)], ids=["straight", "oblique"])
def test_folds_and_sd_log_jacobian(grid):
    plain = linear_field(np.diag([1.2, 0.9, 1.1]), [5.0, 0.0, -3.0], grid).jacobian_determinant()
    np.testing.assert_allclose(plain, 1.2 * 0.9 * 1.1, rtol=1e-4)
    assert metrics.folds(plain) == (0, 0.0)
    assert metrics.sd_log_jacobian(plain) == pytest.approx(0.0, abs=1e-3)
    mirrored = linear_field(np.diag([-1.0, 1.0, 1.0]), [0.0, 0.0, 0.0], grid).jacobian_determinant()
    assert metrics.folds(mirrored) == (mirrored.size, 1.0)


def test_sd_log_jacobian_by_hand_and_within_a_mask():
    jacobian = np.array([np.e, 1.0, -1.0, 0.0, np.nan]).reshape(5, 1, 1)
    first_two = np.array([True, True, False, False, False]).reshape(5, 1, 1)
    assert metrics.sd_log_jacobian(jacobian, first_two) == pytest.approx(0.5)
    assert metrics.folds(jacobian) == (3, 0.6)
    assert metrics.folds(jacobian, first_two) == (0, 0.0)


# -- a whole case -----------------------------------------------------------------------------------------------
def case_labels(shift_z=0, tumour_shift_x=0):
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[box((5, 30), (5, 30), (5 + shift_z, 20 + shift_z))] = 1
    labels[box((10 + tumour_shift_x, 16 + tumour_shift_x), (10, 14), (10, 12))] = 2
    labels[box((20, 24), (20, 24), (12, 14))] = 3
    return Volume(labels, GRID)


def test_a_case_reports_liver_and_each_tumour():
    result = metrics.evaluate_case(case_labels(shift_z=1, tumour_shift_x=3), case_labels())
    # Whole liver: 15 slices against the same shifted by one.
    assert result["liver"]["dice"] == pytest.approx(14 / 15)
    assert result["liver"]["centroid_error_mm"] == pytest.approx(3.0)
    assert [tumour["label"] for tumour in result["tumours"]] == [2, 3]
    moved, still = result["tumours"]
    assert moved["dice"] == pytest.approx(0.5)
    assert moved["centroid_error_mm"] == pytest.approx(3.0)
    assert moved["diameter_mm"] == pytest.approx((6 * 6 * 4 * 2 * 4.5 / np.pi) ** (1 / 3))
    assert moved["coverage_5mm"] == 1.0
    np.testing.assert_allclose(moved["centroid_lps_mm"], GRID.index_to_world(np.array([15.5, 11.5, 10.5])))
    assert still["dice"] == 1.0
    assert still["hd95_mm"] == 0.0
    assert result["field"] is None
    assert result["points"] is None


def test_whole_liver_counts_tumours_and_leaves_out_other_labels():
    truth = case_labels()
    predicted = Volume(np.where(truth.array == 2, 1, truth.array), GRID)  # the tumour given as parenchyma
    assert metrics.evaluate_case(predicted, truth)["liver"]["dice"] == 1.0
    relabelled = truth.array.copy()
    relabelled[truth.array == 1] = 5
    relabelled[box((32, 38), (5, 30), (5, 20))] = 1  # 5 is the liver here, 1 something else
    relabelled = Volume(relabelled, GRID)
    result = metrics.evaluate_case(relabelled, relabelled, liver_value=5, tumour_values=[2, 3])
    assert result["liver"]["dice"] == 1.0
    assert [tumour["label"] for tumour in result["tumours"]] == [2, 3]


def test_a_lost_tumour_is_reported_not_dropped():
    truth = case_labels()
    predicted = Volume(np.where(truth.array == 3, 1, truth.array), GRID)
    lost = metrics.evaluate_case(predicted, truth)["tumours"][1]
    assert (lost["label"], lost["dice"], lost["volume_ratio"], lost["coverage_5mm"]) == (3, 0.0, 0.0, 0.0)
    assert lost["centroid_error_mm"] == lost["hd95_mm"] == np.inf


def test_a_case_with_its_transform_and_points():
    field = linear_field(np.eye(3), [0.0, 0.0, 2.0])
    fixed = GRID.index_to_world(np.random.default_rng(1).uniform(2, 25, (50, 3)))
    result = metrics.evaluate_case(case_labels(), case_labels(), field, np.hstack([fixed, fixed]))
    assert result["points"] == pytest.approx(
        {"number": 50, "mean_mm": 2.0, "median_mm": 2.0, "p95_mm": 2.0, "max_mm": 2.0}, abs=1e-6
    )
    assert result["field"]["folds"] == 0
    assert result["field"]["max_displacement_mm"] == pytest.approx(2.0)
    assert result["field"]["liver_folds"] == 0
    assert result["field"]["liver_sd_log_jacobian"] == pytest.approx(0.0, abs=1e-9)


def test_folds_inside_the_liver_are_told_from_those_outside():
    truth = np.zeros(GRID.shape, dtype=np.uint8)
    truth[8:20, 8:28, 8:20] = 1
    labels = Volume(truth, GRID)
    displacement = np.zeros((*GRID.shape, 3))
    x = GRID.points()[..., 0]
    displacement[..., 0] = np.where((x > 12) & (x < 16), -1.5 * (x - 12), 0)  # beyond the liver, which ends at 0
    outside = metrics.evaluate_case(labels, labels, DisplacementField(GRID, displacement))["field"]
    assert outside["folds"] > 0
    assert outside["liver_folds"] == 0
    displacement[..., 0] = np.where((x > -10) & (x < -6), -1.5 * (x + 10), 0)
    inside = metrics.evaluate_case(labels, labels, DisplacementField(GRID, displacement))["field"]
    assert 0 < inside["liver_folds"] < inside["folds"]
    assert inside["liver_sd_log_jacobian"] > outside["liver_sd_log_jacobian"]


def test_empty_label_maps_and_other_grids():
    empty = Volume(np.zeros(GRID.shape, dtype=np.uint8), GRID)
    result = metrics.evaluate_case(empty, empty)
    assert result["liver"]["dice"] == 1.0
    assert result["tumours"] == []
    other = Grid(GRID.size, GRID.spacing, (0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="different grids"):
        metrics.evaluate_case(empty, Volume(empty.array, other))
