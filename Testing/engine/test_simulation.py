"""Simulated patients: the truth is exact, the tumours are where the labels say, and the CT does not show them."""

import numpy as np
import pytest
import SimpleITK as sitk

from weaktumour.errors import Cancelled, InputError
from weaktumour.progress import Monitor
from weaktumour.simulation import VERSION, simulate_from_ct, simulate_patient
from weaktumour.simulation.body import Body
from weaktumour.simulation.motion import choose_motion, truth_field
from weaktumour.simulation.tissue_maps import CODE, LIVER_TISSUES, phantom_map
from weaktumour.simulation.tumours import choose_diameters
from weaktumour.volumes import Grid, Volume, check_hounsfield, read_volume

# All that is drawn otherwise is fixed, so that the tests know what they look at.
QUICK = {
    "ct_spacing_mm": 3.5,
    "mr_spacing_mm": (3, 3, 4),
    "anatomy_spacing_mm": 2.5,
    "mr_extent_mm": (320.0, 240.0, 200.0),
    "tumours_in_ct": "invisible",
    "mr_protocol": "T1 hepatobiliary",
    "ct_phase": "portal venous",
    "needle": False,
}
NOISE = {"ct_noise_hu": 12.0, "mr_noise": 0.035}
DIAMETERS = (16.0, 34.0)


@pytest.fixture(scope="module")
def patient():
    return simulate_patient(4, tumour_diameters_mm=DIAMETERS, **NOISE, **QUICK)


@pytest.fixture(scope="module")
def plain():
    """The same patient without noise."""
    return simulate_patient(4, tumour_diameters_mm=DIAMETERS, ct_noise_hu=0, mr_noise=0, **QUICK)


def voxels(labels: Volume, value: int) -> np.ndarray:
    """(n, 3) LPS mm of the voxels with one value."""
    return labels.grid.index_to_world(np.argwhere(labels.array == value)[:, ::-1])


def contrast_and_spread(image: Volume, labels: Volume, value: int) -> tuple[float, float]:
    """Tumour less the parenchyma within 12 mm of it, whose vessels the median leaves out, and the spread there."""
    whole = sitk.GetImageFromArray((labels.array == value).astype(np.uint8))
    whole.SetSpacing(labels.grid.spacing)
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(whole, False, False, True))
    inside = image.array[labels.array == value].astype(float)
    around = image.array[(distance > 3) & (distance < 12) & (labels.array == 1)].astype(float)
    assert min(len(inside), len(around)) > 15
    middle = np.median(around)
    return float(inside.mean() - middle), float(1.4826 * np.median(np.abs(around - middle)))


def test_the_same_seed_gives_the_same_patient_and_another_seed_another(patient, monkeypatch):
    monkeypatch.setattr("weaktumour.simulation.patient._SLAB_VOXELS", 120_000)  # nor do slabs make a difference
    again = simulate_patient(4, tumour_diameters_mm=DIAMETERS, **NOISE, **QUICK)
    for name in ("mr", "ct", "mr_labels", "ct_labels"):
        assert np.array_equal(getattr(again, name).array, getattr(patient, name).array), name
        assert getattr(again, name).grid == getattr(patient, name).grid
    assert np.array_equal(again.truth.displacement_mm, patient.truth.displacement_mm)
    assert np.array_equal(again.truth_points, patient.truth_points)
    assert again.info == patient.info
    other = simulate_patient(5, tumour_diameters_mm=DIAMETERS, **NOISE, **QUICK)
    assert np.mean(other.ct_labels.array != patient.ct_labels.array) > 0.01
    assert other.info["id"] != patient.info["id"]


def test_images_and_labels_are_what_scanners_and_readers_give(patient):
    check_hounsfield(patient.ct)
    assert patient.ct.array.dtype == np.int16
    assert 0 <= patient.mr.array.min() < patient.mr.array.max()
    assert patient.label_names == {1: "Liver", 2: "Tumour 1", 3: "Tumour 2"}
    for labels in (patient.mr_labels, patient.ct_labels):
        assert set(np.unique(labels.array)) == {0, 1, 2, 3}
    assert np.abs(patient.mr.grid.axes - np.eye(3)).max() > 0.03  # oblique
    assert patient.mr.grid.spacing[2] == 4
    assert patient.info["kind"] == "simulated"
    assert patient.info["simulator_version"] == VERSION
    liver_ml = np.sum(patient.ct_labels.array > 0) * patient.ct.grid.voxel_volume_mm3 / 1000
    assert 800 < liver_ml < 2200
    # Patient right is -x in LPS, where the liver lies; it crosses the midline.
    liver = voxels(patient.mr_labels, 1)
    assert liver[:, 0].mean() < -25
    assert liver[:, 0].max() > 30
    soft = patient.ct.array[patient.ct_labels.array == 1]
    assert 90 < np.median(soft) < 125


def test_tumours_have_the_asked_size_and_lie_apart_inside_the_liver(patient):
    volume = [np.sum(patient.mr_labels.array == v) * patient.mr.grid.voxel_volume_mm3 for v in (2, 3)]
    assert np.cbrt(6 * np.array(volume) / np.pi) == pytest.approx(DIAMETERS, rel=0.06)
    for labels in (patient.mr_labels, patient.ct_labels):
        background = sitk.GetImageFromArray((labels.array == 0).astype(np.uint8))
        grown = sitk.GetArrayFromImage(sitk.BinaryDilate(background, [1, 1, 0]))
        # A tumour under the capsule may touch the background in a coarse voxel or two, not more.
        assert np.mean(grown[labels.array > 1]) < 0.05
    first, second = voxels(patient.mr_labels, 2), voxels(patient.mr_labels, 3)
    assert np.linalg.norm(first[:, None] - second[None], axis=2).min() > 4


def test_drawn_tumours_are_1_to_4_of_8_to_50_mm():
    drawn = [choose_diameters(seed) for seed in range(200)]
    assert {len(d) for d in drawn} == {1, 2, 3, 4}
    flat = np.concatenate(drawn)
    assert flat.min() >= 8
    assert flat.max() <= 50
    assert np.ptp(flat) > 30


def test_tumours_are_invisible_in_the_ct_and_visible_in_the_mr(patient, plain):
    for value in (2, 3):
        # A small tumour holds too few voxels to tell its mean through the noise: the contrast is that without noise.
        contrast, texture = contrast_and_spread(plain.ct, plain.ct_labels, value)
        noise = contrast_and_spread(patient.ct, patient.ct_labels, value)[1]
        assert abs(contrast) < 0.3 * noise
        assert 0.3 < texture < 0.3 * noise  # there is texture, below the noise
        assert abs(contrast_and_spread(patient.ct, patient.ct_labels, value)[0]) < 0.6 * noise
        contrast, noise = contrast_and_spread(patient.mr, patient.mr_labels, value)
        assert contrast < -2 * noise


def test_truth_points_agree_with_field_and_labels(patient):
    ct, mr = patient.truth_points[:, :3], patient.truth_points[:, 3:]
    assert len(ct) == 200
    assert np.allclose(patient.truth.transform_points(ct), mr, atol=1e-6)
    # An outside referee reads the same field.
    transform = patient.truth.to_sitk()
    referee = np.array([transform.TransformPoint(point) for point in ct.tolist()])
    assert np.abs(referee - mr).max() < 1e-3
    for grid, labels, points in ((patient.ct.grid, patient.ct_labels, ct), (patient.mr.grid, patient.mr_labels, mr)):
        seen = grid.contains(points, 0.0)
        index = np.round(grid.world_to_index(points[seen])).astype(int)
        assert seen.mean() > 0.9
        assert np.mean(labels.array[index[:, 2], index[:, 1], index[:, 0]] > 0) > 0.97
    for i, value in enumerate((2, 3)):
        in_mr, in_ct = voxels(patient.mr_labels, value).mean(0), voxels(patient.ct_labels, value).mean(0)
        assert np.linalg.norm(mr[i] - in_mr) < 0.7
        assert np.linalg.norm(patient.truth.transform_points(in_ct) - in_mr) < 1.0


def test_the_images_follow_the_truth(patient):
    """CT voxels carried through the truth land on tissue of the same density in an unmoved CT."""
    still = simulate_patient(
        4, tumour_diameters_mm=DIAMETERS, ct_noise_hu=0, ct_grid=patient.mr.grid, breathing_mm=0, deformation_mm=0,
        world_offset_mm=0, tilt_degrees=0, **QUICK,
    )  # fmt: skip
    assert np.abs(still.truth.displacement_mm).max() < 1e-9
    assert np.array_equal(still.ct_labels.array, still.mr_labels.array)
    points = patient.ct.grid.index_to_world(
        np.random.default_rng(0).uniform(0.1, 0.9, (4000, 3)) * (np.array(patient.ct.grid.size) - 1)
    )
    moved = patient.truth.transform_points(points)
    seen = still.ct.grid.contains(moved, 0.0)
    here = np.array([value_at(patient.ct, p) for p in points[seen]])
    there = np.array([value_at(still.ct, p) for p in moved[seen]])
    right = np.corrcoef(here, there)[0, 1]
    wrong = np.corrcoef(here, [value_at(still.ct, p) for p in points[seen]])[0, 1]
    assert right > 0.96
    assert right > wrong + 0.05


def value_at(volume: Volume, point: np.ndarray) -> float:
    x, y, z = np.clip(np.round(volume.grid.world_to_index(point)).astype(int), 0, np.array(volume.grid.size) - 1)
    return float(volume.array[z, y, x])


@pytest.mark.parametrize("seed", range(3))
def test_the_motion_is_invertible_and_as_large_as_asked(seed):
    body = Body(seed)
    corners = Grid((2, 2, 2), (340.0, 260.0, 400.0), (-170.0, -130.0, -200.0)).corners(0.0)
    breathing = choose_motion(body, breathing_mm=20, deformation_mm=0, world_offset_mm=0, tilt_degrees=0)
    field = truth_field(breathing, corners)
    assert field.jacobian_determinant().min() > 0.3
    along = -field.displacement_mm[..., 2]
    assert 17 < along.max() <= 20
    assert along.min() > -1e-9
    z = field.grid.points()[..., 2]
    assert z.ravel()[along.argmax()] > 20  # at the dome
    assert along[z < -190].max() < 5
    spine = np.stack((np.zeros(50), body.spine_y(np.linspace(-150, 150, 50)), np.linspace(-150, 150, 50)), axis=1)
    assert np.abs(field.displacement_at(spine)).max() < 1.0

    drawn = choose_motion(body)
    field = truth_field(drawn, corners)
    assert field.jacobian_determinant().min() > 0.15
    assert 5 <= abs(drawn.breathing_mm) <= 30
    points = np.random.default_rng(seed).uniform(-100, 100, (200, 3))
    assert np.allclose(field.inverse_points(field.transform_points(points)), points, atol=0.01)


def test_a_large_offset_is_where_it_was_asked_for():
    body = Body(1)
    motion = choose_motion(body, breathing_mm=0, deformation_mm=0, world_offset_mm=(90.0, -40.0, 60.0), tilt_degrees=15)
    assert np.allclose(motion.displacement(np.array([[90.0, -40.0, 60.0]])), [[-90, 40, -60]])
    assert np.degrees(np.arccos((np.trace(motion.rotation) - 1) / 2)) == pytest.approx(15)
    assert np.linalg.det(motion.rotation) == pytest.approx(1)


def test_the_same_patient_on_flipped_permuted_and_oblique_grids(plain):
    # x and y flipped, z and x exchanged: the same voxel centres in another order.
    n, s, o = plain.ct.grid.size, plain.ct.grid.spacing, np.array(plain.ct.grid.origin)
    far = o + np.array([(n[0] - 1) * s[0], (n[1] - 1) * s[1], 0])
    turned = Grid((n[2], n[1], n[0]), (s[2], s[1], s[0]), tuple(far), (0, 0, -1, 0, -1, 0, 1, 0, 0))
    c, d = np.cos(np.radians(30)), np.sin(np.radians(30))
    oblique_axes = np.array([[c, -d, 0], [d, c, 0], [0, 0, 1]]) @ np.array([[1, 0, 0], [0, c, -d], [0, d, c]])
    centre = voxels(plain.mr_labels, 2).mean(0)
    oblique = Grid((90, 80, 72), (3.0, 3.0, 3.0), tuple(centre - oblique_axes @ (1.5 * np.array([89, 79, 71]))),
                   tuple(oblique_axes.ravel()))  # fmt: skip
    other = simulate_patient(
        4, tumour_diameters_mm=DIAMETERS, ct_noise_hu=0, mr_noise=0, ct_grid=turned, mr_grid=oblique, **QUICK
    )
    back = other.ct.array.transpose(2, 1, 0)[:, ::-1, ::-1].astype(int)
    assert np.abs(back - plain.ct.array).max() <= 1
    assert np.mean(other.ct_labels.array.transpose(2, 1, 0)[:, ::-1, ::-1] != plain.ct_labels.array) < 1e-5
    assert np.abs(other.truth_points - plain.truth_points).max() < 1e-3
    for value in (2, 3):
        assert np.linalg.norm(voxels(other.mr_labels, value).mean(0) - voxels(plain.mr_labels, value).mean(0)) < 0.5
    on_plain = Volume(other.mr.array, oblique).resample_to(plain.mr.grid, antialias=False).array
    seen = oblique.contains(plain.mr.grid.points(), 0.0)
    assert np.corrcoef(on_plain[seen], plain.mr.array[seen])[0, 1] > 0.96


def test_what_cannot_be_simulated_is_refused_in_one_sentence():
    with pytest.raises(InputError, match="does not fit"):
        simulate_patient(0, tumour_diameters_mm=[79.0, 79.0, 79.0], ct_spacing_mm=8, anatomy_spacing_mm=4)
    with pytest.raises(InputError, match="between 1 and 80"):
        simulate_patient(0, tumour_diameters_mm=[0.0])


def test_the_simulation_can_be_cancelled():
    with pytest.raises(Cancelled):
        simulate_patient(0, anatomy_spacing_mm=4, monitor=Monitor(cancelled=lambda: True))


# -- what is drawn by the seed ------------------------------------------------------------------------------------
def test_protocols_and_phases_look_as_they_are_named(plain):
    def level(volume, labels, value=1):
        return float(np.median(volume.array[labels.array == value]))

    noiseless = {"tumour_diameters_mm": DIAMETERS, "ct_noise_hu": 0, "mr_noise": 0}
    other = simulate_patient(
        4,
        **noiseless,
        **{**QUICK, "mr_protocol": "T2 fat-suppressed", "ct_phase": "native", "tumours_in_ct": "visible"},
    )
    assert level(plain.mr, plain.mr_labels, 3) < 0.7 * level(plain.mr, plain.mr_labels)
    assert level(other.mr, other.mr_labels, 3) > 1.3 * level(other.mr, other.mr_labels)
    assert level(other.ct, other.ct_labels) < level(plain.ct, plain.ct_labels) - 35
    for value in (2, 3):
        contrast, _ = contrast_and_spread(other.ct, other.ct_labels, value)
        assert 18 < abs(contrast) < 65
    assert other.info["simulation"]["tumours_in_ct"] == ["visible", "visible"]


def test_out_of_phase_fat_and_water_cancel_at_the_edges_of_organs():
    """Subcutaneous fat against muscle: between the two the signal falls below both."""
    case = simulate_patient(
        4, tumour_diameters_mm=DIAMETERS, mr_noise=0, mr_oblique_degrees=0,
        **{**QUICK, "mr_protocol": "opposed phase", "mr_spacing_mm": (1.5, 1.5, 4)},
    )  # fmt: skip
    middle = case.mr.array.shape[1] // 2
    rows = case.mr.array[case.mr.array.shape[0] // 2, middle - 15 : middle + 15].astype(float)
    dips = []
    for row in rows:
        body = np.flatnonzero(row > 0.3 * np.median(row[row > 50]))
        rim = row[body[0] : body[0] + 18]  # skin, fat, muscle of the right flank
        fat = rim[2:10].max()
        after = rim[int(rim[2:10].argmax()) + 2 :]
        dips.append(after.min() / min(fat, np.median(after[-4:])))
    assert np.median(dips) < 0.5


def test_a_needle_is_dense_straight_and_ends_at_a_tumour():
    without, with_needle = (
        simulate_patient(4, tumour_diameters_mm=DIAMETERS, **NOISE, **{**QUICK, "ct_spacing_mm": 2.0, "needle": there})
        for there in (False, True)
    )
    assert np.array_equal(without.mr.array, with_needle.mr.array)
    added = with_needle.ct.array.astype(int) - without.ct.array
    metal = with_needle.ct.grid.index_to_world(np.argwhere(added > 500)[:, ::-1])
    assert len(metal) > 30
    spread = np.linalg.svd(metal - metal.mean(0), full_matrices=False)[1]
    assert spread[1] < 0.05 * spread[0]
    target = voxels(with_needle.ct_labels, 2).mean(0)
    assert np.linalg.norm(metal - target, axis=1).min() < 12
    near = np.abs(added[with_needle.ct_labels.array == 2])
    assert np.median(near) > 3  # streaks


def test_the_dome_or_the_tip_may_lie_outside_the_mri_but_no_tumour():
    drawn = {name: QUICK[name] for name in ("ct_spacing_mm", "anatomy_spacing_mm")}
    heights = {}
    for seed in (0, 7):  # the tip is cut in the one, the dome in none of the two
        case = simulate_patient(seed, **drawn)
        names = set(np.unique(case.mr_labels.array)) - {0, 1}
        assert names == set(range(2, 2 + len(case.info["simulation"]["tumour_diameters_mm"])))
        heights[seed] = case.mr.grid.size[2] * case.mr.grid.spacing[2]
    assert min(heights.values()) < 180 < max(heights.values())


def test_drawn_tumours_shrink_until_they_fit_and_asked_ones_do_not(monkeypatch):
    monkeypatch.setattr("weaktumour.simulation.patient.choose_diameters", lambda seed, count: [70.0, 70.0, 70.0])
    case = simulate_patient(4, **QUICK)
    assert max(case.info["simulation"]["tumour_diameters_mm"]) < 70
    with pytest.raises(InputError, match="does not fit"):
        simulate_patient(4, tumour_diameters_mm=[70.0, 70.0, 70.0], **QUICK)


def test_ascites_lies_round_the_liver_and_effusion_behind_the_lung():
    shares = {}
    for seed in (3, 5):
        tissues = phantom_map(seed).tissues
        liver = np.isin(tissues, LIVER_TISSUES)
        near = sitk.GetArrayFromImage(sitk.BinaryDilate(sitk.GetImageFromArray(liver.astype(np.uint8)), [3, 3, 3])) > 0
        shares[seed] = float((tissues[near & ~liver] == CODE["ascites"]).mean())
    assert shares[3] == 0
    assert shares[5] > 0.15
    tissues = phantom_map(4).tissues
    pool, lung = (np.argwhere(tissues == CODE[name]).mean(0) for name in ("ascites", "lung"))
    assert pool[1] > lung[1] + 10


# -- other anatomies ----------------------------------------------------------------------------------------------
def consistent(case, points_inside=0.9):
    """Truth, points and labels belong together."""
    ct, mr = case.truth_points[:, :3], case.truth_points[:, 3:]
    assert np.allclose(case.truth.transform_points(ct), mr, atol=1e-6)
    for grid, labels, points in ((case.ct.grid, case.ct_labels, ct), (case.mr.grid, case.mr_labels, mr)):
        seen = grid.contains(points, 0.0)
        assert seen.mean() > points_inside
        index = np.round(grid.world_to_index(points[seen])).astype(int)
        assert np.mean(labels.array[index[:, 2], index[:, 1], index[:, 0]] > 0) > 0.95
    for i in range(len(case.label_names) - 1):
        assert np.linalg.norm(voxels(case.mr_labels, 2 + i).mean(0) - mr[i]) < 1.0
        assert np.linalg.norm(voxels(case.ct_labels, 2 + i).mean(0) - ct[i]) < 1.0


def test_a_real_liver_takes_the_place_of_the_phantoms():
    """A liver in two lobes that no phantom has: it is there in image and labels, at its own size."""
    z, y, x = np.mgrid[:70, :70, :90]
    lobes = (np.hypot(np.hypot(z - 35, y - 35), x - 25) < 24) | (np.hypot(np.hypot(z - 35, y - 35), x - 62) < 20)
    labels = Volume(lobes.astype(np.uint8), Grid((90, 70, 70), (2.0,) * 3, (0.0,) * 3))
    quick = {**QUICK, "mr_spacing_mm": 3.0}
    case = simulate_patient(
        4, label_map=labels, label_map_name="two lobes", tumour_diameters_mm=[16.0], ct_noise_hu=0, mr_noise=0, **quick
    )
    consistent(case)
    assert "two lobes" in case.info["source"]
    volume = np.sum(case.mr_labels.array > 0) * case.mr.grid.voxel_volume_mm3
    assert volume == pytest.approx(8.0 * lobes.sum(), rel=0.06)
    waist = np.ptp(np.argwhere(case.mr_labels.array > 0), axis=0)
    assert waist[2] == pytest.approx(81 * 2 / 3, abs=3)  # x, in voxels of 3 mm
    inside, outside = case.ct.array[case.ct_labels.array == 1], case.ct.array[case.ct_labels.array == 0]
    assert 85 < np.median(inside) < 130
    assert np.median(outside) < 60
    contrast, noise = contrast_and_spread(case.mr, case.mr_labels, 2)
    assert contrast < -2 * noise


def test_a_real_ct_stays_as_it_is_and_gets_an_mri(patient):
    """The phantom's CT stands for a real one."""
    case = simulate_from_ct(
        patient.ct, patient.ct_labels, 7, tumour_diameters_mm=[18.0, 26.0], mr_protocol="T1 hepatobiliary",
        mr_spacing_mm=3.0, anatomy_spacing_mm=2.5, breathing_mm=15.0, mr_noise=0,
    )  # fmt: skip
    assert np.array_equal(case.ct.array, patient.ct.array)
    assert np.array_equal(case.ct_labels.array > 0, patient.ct_labels.array > 0)
    consistent(case, points_inside=0.8)
    determinant = case.truth.jacobian_determinant()
    assert determinant.min() > 0.15
    diaphragm = case.truth.displacement_at(voxels(case.ct_labels, 1)) - case.truth.displacement_at(
        case.ct.grid.corners()
    ).mean(0)
    assert np.ptp(diaphragm[:, 2]) > 5
    for value in (2, 3):
        contrast, noise = contrast_and_spread(case.mr, case.mr_labels, value)
        assert contrast < -2 * noise
    # What the CT shows the MRI shows at the place that the truth says: liver bright, lungs dark.
    points = np.random.default_rng(0).uniform(0.15, 0.85, (3000, 3)) * (np.array(case.ct.grid.size) - 1)
    points = case.ct.grid.index_to_world(points)
    moved = case.truth.transform_points(points)
    seen = case.mr.grid.contains(moved, -1.0)
    density = np.array([value_at(case.ct, p) for p in points[seen]])
    signal = np.array([value_at(case.mr, p) for p in moved[seen]])
    assert np.median(signal[density < -600]) < 0.2 * np.median(signal[(density > 90) & (density < 130)])
    with pytest.raises(InputError, match="grid"):
        simulate_from_ct(patient.ct, patient.mr_labels)
    with pytest.raises(InputError, match="no liver"):
        simulate_from_ct(patient.ct, Volume(np.zeros_like(patient.ct_labels.array), patient.ct.grid))


def test_the_noise_of_a_real_ct_does_not_lead_into_the_mri(patient):
    case = simulate_from_ct(patient.ct, patient.ct_labels, 7, tumour_diameters_mm=[], mr_spacing_mm=3.5, mr_noise=0,
                            breathing_mm=0, deformation_mm=0, world_offset_mm=0, tilt_degrees=0,
                            mr_oblique_degrees=0, anatomy_spacing_mm=2.5)  # fmt: skip
    deep = sitk.GetArrayFromImage(
        sitk.BinaryErode(sitk.GetImageFromArray((case.ct_labels.array > 0).astype(np.uint8)), [3, 3, 3])
    ).astype(bool)
    points = case.ct.grid.index_to_world(np.argwhere(deep)[:, ::-1])[::7]
    signal = np.array([value_at(case.mr, p) for p in points])
    density = np.array([value_at(case.ct, p) for p in points])
    quiet = np.abs(density - np.median(density)) < 20  # no vessels
    assert abs(np.corrcoef(signal[quiet], density[quiet])[0, 1]) < 0.15


def test_what_is_unknown_is_named_with_the_choices():
    with pytest.raises(InputError, match="no MR protocol; choose one of T1 hepatobiliary"):
        simulate_patient(0, mr_protocol="FLAIR", ct_spacing_mm=8, anatomy_spacing_mm=4)
    with pytest.raises(InputError, match="no CT phase"):
        simulate_patient(0, ct_phase="venous", ct_spacing_mm=8, anatomy_spacing_mm=4)
    with pytest.raises(InputError, match="no visibility"):
        simulate_patient(0, tumours_in_ct="seen", ct_spacing_mm=8, anatomy_spacing_mm=4)


def test_the_real_ct_of_the_shared_data(shared_data):
    folder = shared_data / "chaos_ct"
    ct, labels = read_volume(folder / "ct.nii.gz", "CT"), read_volume(folder / "liver.nii.gz", "labels")
    case = simulate_from_ct(ct, labels, 920_000, mr_spacing_mm=(2.0, 2.0, 4.0))
    assert np.array_equal(case.ct.array, ct.array)
    consistent(case, points_inside=0.8)
