"""Label schemes and boundaries."""

import numpy as np
import pytest
import SimpleITK as sitk

from weaktumour.errors import InputError
from weaktumour.labels import (
    LIVER,
    OTHER,
    TUMOUR,
    boundary_level_set,
    components,
    name_labels,
    parse_label_map,
    read_label_names,
    read_labels,
    write_labels_json,
)
from weaktumour.volumes import Grid, Volume


def ball(diameter_mm: float, spacing=(1.4, 1.4, 4.0), offset=0.3) -> tuple[np.ndarray, Grid]:
    size = tuple(int(np.ceil((diameter_mm + 20) / s)) for s in spacing)
    grid = Grid(size, spacing, (0.0, 0.0, 0.0))
    centre = grid.index_to_world((np.asarray(size) - 1) / 2 + offset)
    return np.linalg.norm(grid.points() - centre, axis=-1) < diameter_mm / 2, grid


class TestLabelMap:
    def test_parses(self):
        assert parse_label_map("5=liver, 7=tumour,8=TUMOR") == {5: LIVER, 7: TUMOUR, 8: TUMOUR}
        assert parse_label_map(None) is None

    @pytest.mark.parametrize("text", ["5", "liver=5", "5=spleen", "0=liver", "5=liver,5=tumour", "5=liver,,"])
    def test_refuses_what_is_not_a_mapping(self, text):
        with pytest.raises(InputError, match="Label map"):
            parse_label_map(text)

    def test_default_scheme(self):
        labels = name_labels([1, 2, 7], None)
        assert [(label.value, label.role, label.name) for label in labels] == [
            (1, LIVER, "Liver"),
            (2, TUMOUR, "Tumour 1"),
            (7, TUMOUR, "Tumour 2"),
        ]

    def test_mapped_scheme_never_guesses(self):
        labels = name_labels([1, 2, 5], {5: LIVER})
        assert [label.role for label in labels] == [OTHER, OTHER, LIVER]

    def test_names_travel_beside_the_map(self, tmp_path):
        array = np.zeros((4, 5, 6), np.uint8)
        array[1:3, 1:4, 1:5], array[2, 2, 2] = 1, 2
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "labels.nii.gz"))
        write_labels_json(tmp_path / "labels.json", {1: "Foie", 2: "Lésion VIII"})
        labels = read_labels(tmp_path / "labels.nii.gz", "MRI labels")
        assert [label.name for label in labels.labels] == ["Foie", "Lésion VIII"]
        assert read_label_names(tmp_path / "labels.json") == {1: "Foie", 2: "Lésion VIII"}
        assert np.array_equal(labels.mask(LIVER, TUMOUR), array > 0)

    def test_a_mapped_value_that_does_not_occur_is_an_error(self, tmp_path):
        array = np.zeros((4, 5, 6), np.uint8)
        array[1, 1, 1] = 5
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "labels.nii.gz"))
        with pytest.raises(InputError, match="value 7"):
            read_labels(tmp_path / "labels.nii.gz", "MRI labels", {5: LIVER, 7: TUMOUR})


class TestBoundary:
    @pytest.mark.parametrize("diameter_mm", [8.0, 10.0, 20.0, 40.0])
    def test_encloses_the_volume_of_the_mask(self, diameter_mm):
        mask, grid = ball(diameter_mm)
        fine = grid.with_spacing(0.8)
        level = Volume(boundary_level_set(mask, grid.spacing), grid).resample_to(fine, outside=10.0, antialias=False)
        volume = (level.array < 0).sum() * fine.voxel_volume_mm3
        assert volume == pytest.approx(mask.sum() * grid.voxel_volume_mm3, rel=0.04)

    def test_is_closer_to_the_true_ball_than_nearest_neighbour(self):
        mask, grid = ball(20.0)
        fine = grid.with_spacing(0.8)
        centre = grid.index_to_world((np.asarray(grid.size) - 1) / 2 + 0.3)
        truth = np.linalg.norm(fine.points() - centre, axis=-1) < 10.0
        level = Volume(boundary_level_set(mask, grid.spacing), grid).resample_to(fine, outside=10.0, antialias=False)
        image = grid.apply_to(sitk.GetImageFromArray(mask.astype(np.uint8)))
        identity = sitk.Transform(3, sitk.sitkIdentity)
        nearest = sitk.Resample(
            image, fine.size, identity, sitk.sitkNearestNeighbor, fine.origin, fine.spacing, fine.direction
        )

        def dice(a: np.ndarray) -> float:
            return 2 * (a & truth).sum() / (a.sum() + truth.sum())

        assert dice(level.array < 0) > dice(sitk.GetArrayFromImage(nearest) > 0) + 0.02

    def test_one_voxel_keeps_an_inside(self):
        mask = np.zeros((7, 7, 7), bool)
        mask[3, 3, 3] = True
        assert boundary_level_set(mask, (1.5, 1.5, 4.0))[3, 3, 3] < 0


def test_components_are_listed_largest_first():
    mask = np.zeros((10, 10, 20), bool)
    mask[2:4, 2:4, 2:4], mask[5:8, 5:8, 10:13] = True, True
    found = components(mask, Grid((20, 10, 10), (1.0, 2.0, 3.0), (10.0, 0.0, 0.0)))
    assert [part["voxels"] for part in found] == [27, 8]
    assert found[0]["centroid_lps_mm"] == pytest.approx([21.0, 12.0, 18.0])
    assert found[1]["volume_mm3"] == pytest.approx(48.0)
