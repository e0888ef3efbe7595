"""Training: anatomies, samples made of them, the loop (it learns, resumes, runs in two processes), the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from weaktumour import cli, models
from weaktumour.deformation import jacobian_determinant, warp
from weaktumour.errors import InputError
from weaktumour.networks.mscgunet import Prediction
from weaktumour.simulation import tissue_maps
from weaktumour.simulation.contrast import TISSUE_NAMES
from weaktumour.simulation.tissue_maps import LIVER_TISSUES, SPACING_MM, TissueMap
from weaktumour.training import anatomies, command, loop, synthesis
from weaktumour.training.config import (
    Computing,
    Data,
    Optimisation,
    RegistrationConfig,
    Reporting,
    SegmentationConfig,
    parse_config,
)
from weaktumour.training.loop import read_rows, train
from weaktumour.training.registration import Registration
from weaktumour.training.segmentation import Segmentation
from weaktumour.training.sources import Sources
from weaktumour.volumes import Grid, Volume

ROOT = Path(cli.__file__).resolve().parents[1]
SPLITS = ROOT.parent / "Testing/benchmark/splits.json"
CODE = {name: code for code, name in enumerate(TISSUE_NAMES)}
CPU = torch.device("cpu")
ON_CPU = Computing(accelerator="cpu", threads=1)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- anatomies --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def drawn() -> tuple[TissueMap, Volume]:
    """A phantom as it is learnt from, and the distance to its liver as the simulator knows it."""
    kept = []
    real = tissue_maps.build_anatomy

    def build(*arguments, **options):
        kept.append(real(*arguments, **options))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tissue_maps, "build_anatomy", build)
        return tissue_maps.phantom_map(5), kept[0].liver


@pytest.fixture(scope="module")
def phantom(drawn) -> TissueMap:
    return drawn[0]


def box_of(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    found = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {a}))) for a in range(3)]
    return tuple(slice(max(0, int(f[0]) - margin), int(f[-1]) + 1 + margin) for f in found)


@pytest.fixture(scope="module")
def upper_abdomens(phantom) -> list[TissueMap]:
    """Three small anatomies: the phantom's upper abdomen as it is, as in a mirror, and upside down."""
    part = phantom.tissues[box_of(phantom.liver, 15)]
    views = {"phantom-100000": part, "phantom-100001": part[:, :, ::-1], "phantom-0": part[::-1]}
    return [TissueMap(name, np.ascontiguousarray(view), "phantom") for name, view in views.items()]


@pytest.fixture(scope="module")
def sources(upper_abdomens) -> Sources:
    return Sources(upper_abdomens[:2], upper_abdomens[2:])


def test_a_phantoms_liver_is_the_simulators(drawn):
    phantom, distance = drawn
    assert phantom.kind == "phantom"
    whole = Grid(phantom.tissues.shape[::-1], (SPACING_MM,) * 3, (-174.0, -126.0, -240.0))
    start = np.round((np.asarray(distance.grid.origin) - whole.origin) / SPACING_MM).astype(int)[::-1]
    expected = np.zeros_like(phantom.liver)
    expected[tuple(slice(a, a + n) for a, n in zip(start, distance.array.shape, strict=True))] = distance.array < 0
    assert expected.sum() * SPACING_MM**3 > 0.8e6  # mm3: a whole liver
    np.testing.assert_array_equal(phantom.liver, expected)
    assert not (phantom.tissues == CODE["tumour"]).any()


def label_map(phantom: TissueMap, place: tuple[slice, ...]) -> np.ndarray:
    """A liver unlike the phantom's in the scheme of public label maps: mirrored, with a tumour and vessels."""
    tissues = phantom.tissues[place][:, ::-1, ::-1]
    labels = np.zeros(tissues.shape, dtype=np.uint8)
    labels[np.isin(tissues, LIVER_TISSUES)] = 1
    labels[tissues == CODE["liver vessel"]] = 3
    z, y, x = np.argwhere(labels == 1).mean(0).astype(int)
    ball = labels[z - 5 : z + 5, y - 5 : y + 5, x - 5 : x + 5]
    ball[ball == 1] = 2
    labels[0, 0, :5] = 4  # some gallbladder, which is not taken over
    return labels


def test_a_real_liver_takes_the_place_of_the_phantoms(phantom):
    labels = label_map(phantom, box_of(phantom.liver, 4))[::2]  # half as high, too
    made = tissue_maps.with_real_liver(
        phantom, Volume(labels, Grid(labels.shape[::-1], (SPACING_MM,) * 3, (0.0,) * 3)), "real"
    )
    assert made.kind == "liver"
    real, found = np.isin(labels, (1, 2, 3)), box_of(made.liver)
    wanted = box_of(real)
    inside, expected = made.tissues[found], labels[wanted]
    assert inside.shape == expected.shape
    for label, tissue in tissue_maps.LABEL_TISSUES.items():
        if label <= 3:
            air = inside == CODE["air"]  # a liver may not stand out of the body
            np.testing.assert_array_equal(inside == CODE[tissue], (expected == label) & ~air)
    # Exactly the real one: no voxel of the former is left, within the box or beyond it.
    assert real.sum() >= made.liver.sum() >= 0.98 * real.sum()
    assert (made.tissues == CODE["lung"]).any()
    assert (made.tissues == CODE["marrow"]).any()


def test_a_torso_covers_its_labels():
    labels = np.zeros((60, 70, 80), dtype=np.uint8)
    labels[20:40, 20:45, 10:40] = 1
    labels[25:30, 25:30, 15:20] = 2
    labels[30:50, 45:60, 30:40] = 14  # a vertebra
    labels[42:55, 20:40, 10:30] = 13
    labels[20:40, 25:45, 55:70] = 5
    made = tissue_maps.torso_map(Volume(labels, Grid((80, 70, 60), (SPACING_MM,) * 3, (0.0,) * 3)), "torso")
    assert made.kind == "torso"
    for label in (1, 2, 5, 13):
        found = set(np.unique(made.tissues[labels == label])) - {CODE["liver vessel"]}
        assert found == {CODE[tissue_maps.LABEL_TISSUES[label]]}
    bone = made.tissues[labels == 14]
    assert set(np.unique(bone)) == {CODE["marrow"], CODE["cortical bone"]}
    # What lies between organs is body; it has a skin, and there is air round it.
    assert made.tissues[30, 30, 48] in (CODE["muscle"], CODE["visceral fat"])
    assert (made.tissues == CODE["skin"]).any()
    assert (made.tissues == CODE["air"]).any()


def test_a_liver_without_vessels_gets_some(phantom):
    labels = label_map(phantom, box_of(phantom.liver, 4))
    labels[labels == 3] = 1
    grid = Grid(labels.shape[::-1], (SPACING_MM,) * 3, (0.0,) * 3)
    made, again, other = (
        tissue_maps.with_real_liver(phantom, Volume(labels, grid), name) for name in ("real", "real", "other")
    )
    vessels = made.tissues == CODE["liver vessel"]
    assert 0.01 < vessels.sum() / made.liver.sum() < 0.08
    assert np.array_equal(made.tissues, again.tissues)
    assert not np.array_equal(vessels, other.tissues == CODE["liver vessel"])
    # In the parenchyma alone: no tumour gives way, and the liver as a whole is the one that was drawn.
    assert (made.tissues == CODE["tumour"]).sum() == (labels == 2).sum()
    np.testing.assert_array_equal(made.liver, other.liver)
    # Trees, not crumbs: most of it hangs together.
    parts = sitk.ConnectedComponent(sitk.GetImageFromArray(vessels.astype(np.uint8)), True)
    sizes = np.bincount(sitk.GetArrayFromImage(parts).ravel())[1:]
    assert np.sort(sizes)[-2:].sum() > 0.5 * vessels.sum()


def test_label_maps_of_any_spacing_and_orientation(tmp_path):
    labels = np.zeros((30, 40, 50), dtype=np.float64)  # as nibabel writes them
    labels[5:25, 10:30, 5:40] = 1
    labels[20:25, 25:30, 5:10] = 2
    labels[0, 0, 0] = 99  # of a scheme that we do not know
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((1.5, 1.5, 3.0))
    image.SetOrigin((-30.0, 12.0, 100.0))
    sitk.WriteImage(image, tmp_path / "a.nii.gz")
    sitk.WriteImage(sitk.DICOMOrient(image, "PIR"), tmp_path / "b.nii.gz")
    first, second = (tissue_maps.read_label_map(tmp_path / f"{name}.nii.gz") for name in "ab")
    assert first.grid.same_as(second.grid)
    np.testing.assert_array_equal(first.array, second.array)
    assert first.array.dtype == np.uint8
    assert set(np.unique(first.array)) == {0, 1, 2}
    np.testing.assert_allclose(first.grid.spacing, SPACING_MM)
    np.testing.assert_allclose(first.grid.axes, np.eye(3), atol=1e-6)
    # Where its file says, within half a voxel: x from -30 + 5 * 1.5 - 0.75, and so on.
    for value, low, high in ((1, (-23.25, 26.25, 113.5), (29.25, 56.25, 173.5)), (2, (-23.25, 48.75, 158.5), None)):
        index = np.argwhere(first.array == value)[:, ::-1] * SPACING_MM + first.grid.origin
        np.testing.assert_allclose(index.min(0) - 1, low, atol=1.01)
        if high is not None:
            np.testing.assert_allclose(index.max(0) + 1, high, atol=1.01)


def test_anatomies_are_made_once_and_broken_ones_are_told(tmp_path):
    labels = np.zeros((75, 75, 75), dtype=np.uint8)
    labels[...] = 15
    labels[20:60, 20:60, 20:60] = 1
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((SPACING_MM,) * 3)
    (tmp_path / "maps").mkdir()
    sitk.WriteImage(image, tmp_path / "maps" / "patient.nii.gz")
    maps = anatomies.label_maps_in(tmp_path / "maps")
    told = []
    for _ in range(2):
        (made,) = anatomies.prepare_anatomies(tmp_path / "kept", [], maps, report=lambda *count: told.append(count))
    assert told == [(1, 1)]
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["patient.npz"]
    assert anatomies.read_map(made).kind == "torso"

    with np.load(made) as content:
        np.savez(made, **{**content, "version": "0.0"})  # an earlier program's
    for _ in range(2):
        anatomies.prepare_anatomies(tmp_path / "kept", [], maps, report=lambda *count: told.append(count))
    assert told == [(1, 1)] * 2

    whole = made.read_bytes()
    np.savez(tmp_path / "other.npz", tissues=np.zeros((3, 3), np.uint8), kind="phantom")
    np.savez(tmp_path / "liverless.npz", tissues=np.zeros((3, 3, 3), np.uint8), kind="phantom")
    np.save(tmp_path / "array.npy", np.ones(3))
    others = [(tmp_path / name).read_bytes() for name in ("other.npz", "liverless.npz", "array.npy")]
    for content in (b"", b"no archive", whole[:-200], whole[:300] + b"\0" * 400 + whole[700:], *others):
        made.write_bytes(content)
        with pytest.raises(InputError, match=r"patient\.npz .*delete it and start again"):
            anatomies.read_map(made)

    labels[labels == 1] = 7
    sitk.WriteImage(sitk.GetImageFromArray(labels), tmp_path / "maps" / "liverless.nii.gz")
    with pytest.raises(InputError, match=r"liverless\.nii\.gz: no voxel is 1"):
        anatomies.prepare_anatomies(tmp_path / "kept", [], {"x": tmp_path / "maps" / "liverless.nii.gz"})
    with pytest.raises(InputError, match="lacks stranger"):
        anatomies.label_maps_in(tmp_path / "maps", ["patient", "stranger"])
    made.write_bytes(whole)
    with pytest.raises(InputError, match="cannot be made"):
        anatomies.prepare_anatomies(made, [], {})


# -- splits -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def splits() -> dict:
    return json.loads(SPLITS.read_text(encoding="utf-8"))


def seeds_of(splits: dict, part: str) -> set[int]:
    seeds = splits["phantoms"][part]
    return set(range(seeds["first"], seeds["last"] + 1)) if isinstance(seeds, dict) else set(seeds)


def test_parts_share_no_patient(splits):
    maps = splits["label_maps"]
    assert set(maps) == set(splits["phantoms"]) == {"train", "development", "test"}
    everything = [name for part in maps.values() for name in part]
    assert len(everything) == len(set(everything))
    assert len(maps["test"]) >= 20
    assert ["lits_lits-0", "lits_0_tumour_fuentesdt"] in splits["same_patient"]
    for patient in splits["same_patient"]:
        assert len({part for part, names in maps.items() for name in patient if name in names}) == 1
    seeds = [seeds_of(splits, part) for part in maps]
    assert all(seeds)
    assert sum(map(len, seeds)) == len(set.union(*seeds))


def test_the_benchmark_uses_what_nothing_was_tuned_on(splits):
    benchmark = splits["benchmark"]
    maps, phantoms = benchmark["label_maps"], benchmark["phantoms"]
    assert set(phantoms) <= seeds_of(splits, "test")
    assert {entry["map"] for entry in maps} <= set(splits["label_maps"]["test"])
    never = splits["real_images"]["never_trained_on"]
    assert {"chaos_ct", "totalsegmentator_examples/ct", "totalsegmentator_examples/mr"} <= set(never)
    assert {entry["image"] for entry in benchmark["real_ct"]} <= set(never)
    # The phantoms round real livers are strangers too, and no patient comes twice.
    seeds = [*phantoms, *(entry["seed"] for entry in (*maps, *benchmark["real_ct"]))]
    assert len(seeds) == len(set(seeds)) == 40
    assert not set(seeds) & (seeds_of(splits, "train") | seeds_of(splits, "development"))


def test_each_label_map_has_its_part(splits, shared_data):
    files = {path.name.removesuffix(".nii.gz") for path in (shared_data / "label_maps").glob("*.nii.gz")}
    assert files == {name for part in splits["label_maps"].values() for name in part}


def test_only_the_training_part_is_learnt_from(tmp_path, splits):
    """All maps of all parts are there and made; what a run takes is what the split allows."""
    small = np.full((4, 4, 4), CODE["liver"], dtype=np.uint8)
    names = {part: set(found) for part, found in splits["label_maps"].items()}
    phantoms = {part: {f"phantom-{seed}" for seed in sorted(seeds_of(splits, part))[:5]} for part in names}
    (tmp_path / "maps").mkdir()
    for part in names:
        for name in names[part] | phantoms[part]:
            anatomies.write_map(
                TissueMap(name, small, "phantom" if "phantom" in name else "liver"), tmp_path / f"{name}.npz"
            )
        for name in names[part]:
            (tmp_path / "maps" / f"{name}.nii.gz").touch()
    data = Data(
        splits=str(SPLITS), phantoms=5, validation_phantoms=3, cache=str(tmp_path), label_maps=str(tmp_path / "maps")
    )
    sources = Sources.of(data, tmp_path / "run")
    learnt = {anatomy.name for anatomy in sources.anatomies}
    assert learnt == names["train"] | phantoms["train"]
    drawn = {sources.training(synthesis.Random(seed)).name for seed in range(1500)}
    assert drawn <= learnt
    validating = {sources.validation(number).name for number in range(200)}
    assert validating == names["development"] | {f"phantom-{seed}" for seed in range(3)}
    # Without the maps, phantoms alone, of the same seeds.
    bare = Sources.of(replace(data, label_maps=None), tmp_path / "run")
    assert {anatomy.name for anatomy in bare.anatomies} == phantoms["train"]
    assert bare.counts() == {"phantom": 5}


def test_listed_seeds_are_taken_one_by_one(tmp_path, upper_abdomens):
    """A user's split may list seeds; those in between are none of it."""
    path = tmp_path / "splits.json"
    content = {"label_maps": {"train": [], "development": []}, "phantoms": {"train": [7, 10], "development": [8]}}
    path.write_text(json.dumps(content))
    for seed in range(7, 11):
        anatomies.write_map(upper_abdomens[0], tmp_path / f"phantom-{seed}.npz")
    sources = Sources.of(Data(splits=str(path), cache=str(tmp_path)), tmp_path)
    assert [anatomy.name for anatomy in sources.anatomies] == ["phantom-7", "phantom-10"]
    for broken in ("{", '{"label_maps": {}}', '{"label_maps": {"train": []}, "phantoms": {"train": {"first": 1}}}'):
        path.write_text(broken)
        with pytest.raises(InputError, match="does not name the anatomies of the part train"):
            Sources.of(Data(splits=str(path), cache=str(tmp_path)), tmp_path)


# -- synthesis --------------------------------------------------------------------------------------------------------
SEGMENTATION = SegmentationConfig(
    optimisation=Optimisation(steps=30, learning_rate=1e-2, warm_up=3),
    computing=ON_CPU,
    reporting=Reporting(rows_every=1, validate_every=1000, validation_cases=1),
    network={"widths": [8, 16, 16]},
    spacing_mm=6.0,
    voxels=9000,
)
REGISTRATION = RegistrationConfig(
    optimisation=Optimisation(steps=40, learning_rate=3e-3, warm_up=10),
    computing=ON_CPU,
    reporting=Reporting(rows_every=1, validate_every=1000, validation_cases=1),
    network={"extra_channels": 1, "widths": [8, 16, 16, 16], "nodes": [2, 2, 2], "norm": "instance"},
    spacing_mm=6.0,
    shape=(24, 24, 24),
)


def tensors_of(sample: object) -> dict[str, torch.Tensor]:
    return {name: value for name, value in vars(sample).items() if isinstance(value, torch.Tensor)}


@pytest.mark.parametrize("kind", ["registration", "segmentation"])
def test_a_sample_depends_on_its_number_and_the_seed_alone(kind, sources):
    task, config = (Registration, REGISTRATION) if kind == "registration" else (Segmentation, SEGMENTATION)
    first = tensors_of(task(config, sources).sample(3, CPU))
    torch.rand(7)  # what else is drawn does not matter
    again = tensors_of(task(config, sources).sample(3, CPU))
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    seeded = replace(config, optimisation=replace(config.optimisation, seed=1))
    for other in (task(config, sources).sample(4, CPU), task(seeded, sources).sample(3, CPU)):
        image = next(iter(tensors_of(other).values()))
        assert image.shape != next(iter(first.values())).shape or not torch.equal(image, next(iter(first.values())))


class Recorded:
    """What `synthesis.paint` was given and gave, while it is called as ever."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[torch.Tensor, str, synthesis.Painted]] = []
        paint = synthesis.paint

        def recording(tissues, kind, *arguments, **options):
            self.calls.append((tissues, kind, paint(tissues, kind, *arguments, **options)))
            return self.calls[-1][2]

        patch.setattr(synthesis, "paint", recording)


def test_segmentation_samples(sources, monkeypatch):
    """Images in [0, 1]; liver and tumours where they are, but for tumours that a CT hides and what was not measured."""
    recorded = Recorded(monkeypatch)
    task = Segmentation(SEGMENTATION, sources)
    samples = [task.sample(number, CPU) for number in range(60)]
    hidden = cut = visible = 0
    for sample, (tissues, kind, painted) in zip(samples, recorded.calls, strict=True):
        image, target = sample.image[0, 0], sample.target[0]
        assert image.shape == target.shape == tissues.shape
        assert all(n % 8 == 0 for n in image.shape)
        assert sample.kind == kind
        assert torch.isfinite(image).all()
        assert 0 <= float(image.min()) < float(image.max()) <= 1
        liver = torch.isin(tissues, torch.tensor(LIVER_TISSUES))
        assert torch.equal(target > 0, liver & painted.seen)
        tumour = (tissues == synthesis.TUMOUR) & painted.seen
        assert torch.equal(target == 2, tumour if painted.tumours_visible else torch.zeros_like(tumour))
        hidden += bool(tumour.any()) and not painted.tumours_visible
        visible += bool(tumour.any()) and painted.tumours_visible
        if not painted.seen.all():
            cut += bool(liver[~painted.seen].any())
            assert not image[~painted.seen].any()
            assert not target[~painted.seen].any()
        assert painted.tumours_visible or kind == "ct"
    assert min(hidden, cut, visible) >= 3  # each really came up


def test_tumours_are_seen_where_they_are_said_to_be(upper_abdomens):
    """The painted difference between tumour and liver, against what `tumours_visible` says."""
    tissues = torch.from_numpy(upper_abdomens[0].tissues[::3, ::3, ::3]).long()
    middle = tuple(int(v) for v in (tissues == synthesis.LIVER).nonzero().float().mean(0))
    ball = tissues[tuple(slice(c - 4, c + 4) for c in middle)]
    ball[ball == synthesis.LIVER] = synthesis.TUMOUR
    for kind in ("ct", "mr"):
        seen, unseen = [], []
        for seed in range(40):
            painted = synthesis.paint(tissues, kind, 6.0, synthesis.Random(seed), cut=False)
            tumour, liver = (painted.image[tissues == t].mean() for t in (synthesis.TUMOUR, synthesis.LIVER))
            (seen if painted.tumours_visible else unseen).append(abs(float(tumour - liver)))
        assert np.median(seen) > 0.06
        if kind == "ct":
            assert len(unseen) >= 8
            assert np.median(unseen) < 0.5 * np.median(seen)


def test_coarse_grids_have_thick_slices_too(sources):
    """Voxels of more than 6.7 mm are thicker than the thickest slice."""
    for seed in range(10):
        tissues = torch.full((16, 16, 16), synthesis.LIVER)
        assert synthesis.paint(tissues, "mr", 9.0, synthesis.Random(seed)).image.shape == (16, 16, 16)


def test_the_true_displacement_makes_the_moving_labels_the_fixed_ones(sources):
    config = replace(REGISTRATION, spacing_mm=4.0, shape=(40, 36, 41), breathing_mm=30.0, deformation_mm=10.0)
    task = Registration(config, sources)

    def dice(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(2 * (a & b).sum() / (a.sum() + b.sum()))

    before, after, wrong = [], [], []
    for number in range(8):
        sample = task.sample(number, CPU)
        assert sample.displacement.shape == (1, 3, 40, 36, 41)
        assert sample.fixed.shape == sample.moving.shape == (1, 2, 40, 36, 41)
        assert float(jacobian_determinant(sample.displacement).min()) > 0
        fixed, moving = sample.fixed_labels[:, :1], sample.moving_labels[:, :1]
        assert torch.equal(fixed, sample.liver)
        # Away from the border: what lies beyond the grid is not in the moving labels.
        inner = (slice(None), slice(None), *(slice(8, -8),) * 3)
        for found, field in ((before, 0.0), (after, 1.0), (wrong, -1.0)):
            found.append(dice((warp(moving, field * sample.displacement) > 0.5)[inner], (fixed > 0.5)[inner]))
    assert min(after) > 0.93
    assert np.mean(before) < np.mean(after) - 0.03  # they did move
    assert np.mean(wrong) < np.mean(before)


@pytest.mark.parametrize("extra", [0, 1, 4])
def test_a_pair_fits_its_network_both_ways(sources, extra):
    config = replace(REGISTRATION, network={**REGISTRATION.network, "extra_channels": extra})
    task = Registration(config, sources)
    network = task.network().eval()
    sample = task.sample(0, CPU)
    for fixed, moving in ((sample.fixed, sample.moving), (sample.swapped_fixed, sample.swapped_moving)):
        assert fixed.shape == moving.shape == (1, 1 + extra, 24, 24, 24)
        assert torch.isfinite(torch.cat((fixed, moving))).all()
        with torch.no_grad():
            assert network(fixed, moving).displacement.shape == sample.displacement.shape
    assert torch.equal(sample.swapped_fixed[:, 0], sample.moving[:, 0])


class ShareOfTheTruth(torch.nn.Module):
    """Answers 60 % of a constant motion along x that is left of 5 voxels."""

    def __init__(self):
        super().__init__()
        self.asked, self.left = [], 5.0

    def forward(self, fixed, moving):
        self.asked.append((fixed, moving))
        answer, self.left = 0.6 * self.left, 0.4 * self.left
        field = torch.zeros(1, 3, *fixed.shape[2:])
        field[:, 0] = answer
        return Prediction(field, field, None, torch.zeros(()), field, field, lambda v: v)


def test_second_passes_learn_from_what_the_first_left(sources):
    task = Registration(replace(REGISTRATION, inverse_weight=0.0), sources)
    sample = task.sample(1, CPU)
    truth = torch.zeros_like(sample.displacement)
    truth[:, 0] = 5.0
    for number, passes, left in ((1, 2, 5 * 0.4**2), (0, 1, 5 * 0.4)):
        network = ShareOfTheTruth()
        losses = task.losses(network, replace(sample, displacement=truth, number=number))
        assert len(network.asked) == passes
        error = left * REGISTRATION.spacing_mm
        assert float(losses["displacement"]) == pytest.approx((error**2 + 1) ** 0.5 - 1, rel=1e-4)
        fixed, moving = network.asked[-1]
        assert torch.equal(fixed[:, :1], sample.fixed[:, :1])
        expected = warp(sample.moving[:, :1], torch.zeros_like(truth) + (truth * 0.6 if passes == 2 else 0))
        assert torch.allclose(moving[:, :1], expected, atol=1e-5)


def test_the_published_recipe_is_asked_once(sources):
    config = replace(REGISTRATION, loss="published", passes=2)
    assert (config.passes_asked, REGISTRATION.passes_asked) == (1, 2)
    network = ShareOfTheTruth()
    task = Registration(config, sources)
    task.validate(network, CPU)
    assert len(network.asked) == config.reporting.validation_cases


# -- learning ---------------------------------------------------------------------------------------------------------
class RepeatedRegistration(Registration):
    """Two pairs again and again: that the loss falls then tells of learning, not of easier samples."""

    def sample(self, number, device):
        return super().sample(number % 2, device)


class RepeatedSegmentation(Segmentation):
    def sample(self, number, device):
        return super().sample(number % 3, device)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, sources) -> dict[str, tuple[Path, Path]]:
    """task -> run folder and its weights."""
    folder = tmp_path_factory.mktemp("runs")
    tasks = {
        "registration": RepeatedRegistration(REGISTRATION, sources),
        "segmentation": RepeatedSegmentation(SEGMENTATION, sources),
    }
    return {name: (folder / name, train(task, task.config, folder / name)) for name, task in tasks.items()}


@pytest.mark.parametrize(
    ("task", "falls_to"),
    [("registration", {"loss": 0.8, "displacement": 0.6}), ("segmentation", {"loss": 0.8, "dice": 0.85})],
)
def test_the_loss_falls(learnt, task, falls_to):
    folder, _ = learnt[task]
    for name, share in falls_to.items():
        steps, values = zip(*read_rows(folder / "metrics.csv", "train", name), strict=True)
        assert list(steps) == list(range(1, len(steps) + 1))
        quarter = len(values) // 4 // 2 * 2 if task == "registration" else len(values) // 4 // 3 * 3  # whole rounds
        assert np.mean(values[-quarter:]) < share * np.mean(values[:quarter]), values
    assert dict(read_rows(folder / "metrics.csv", "validation", "liver dice" if task == "registration" else "liver ct"))
    assert list((folder / "pictures").glob("*.png"))
    assert list((folder / "tensorboard").iterdir())
    assert parse_config(json.loads((folder / "config.json").read_text()), type(CONFIGS[task])) == CONFIGS[task]


CONFIGS = {"registration": REGISTRATION, "segmentation": SEGMENTATION}


@pytest.mark.parametrize("task", ["registration", "segmentation"])
def test_the_model_file_is_imported_and_loaded(learnt, sources, task, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(models.USER_FOLDER_VARIABLE, str(tmp_path / "models"))
    folder, weights = learnt[task]
    config = CONFIGS[task]
    kind = Registration if task == "registration" else Segmentation
    path = command.write_model(task, config, kind(config, sources).network(), weights, sources, folder)
    assert cli.main(["models", "import", str(path), "--id", "mine"]) == 0
    entry = models.find("mine", task)
    assert entry.input["spacing_mm"] == 6.0
    assert entry.licence == "Apache-2.0"
    assert entry.training["steps"] == config.optimisation.steps
    assert entry.training["hours"] >= 0
    assert entry.training["anatomies"] == {"phantom": 2}
    network = models.load(entry)
    average = torch.load(weights, weights_only=True)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, average[name], rtol=1e-3, atol=1e-6)  # the UNet's is stored in half precision
    sample = kind(config, sources).sample(0, CPU)
    with torch.no_grad():
        if task == "registration":
            assert entry.input["shape"] == [24, 24, 24]
            assert network(sample.fixed, sample.moving).displacement.shape == sample.displacement.shape
        else:
            assert entry.output["classes"] == ["background", "liver", "tumour"]
            assert network(sample.image).shape == (1, 3, *sample.image.shape[2:])


@pytest.fixture
def imported(learnt, sources, tmp_path, monkeypatch) -> str:
    """The id of an installed UNet that this module has trained."""
    monkeypatch.setenv(models.USER_FOLDER_VARIABLE, str(tmp_path / "models"))
    folder, weights = learnt["segmentation"]
    network = Segmentation(SEGMENTATION, sources).network()
    return models.import_model(command.write_model("segmentation", SEGMENTATION, network, weights, sources, folder)).id


def test_training_begins_with_an_installed_model(imported, sources, tmp_path):
    """At a rate of next to nothing the weights stay what they were; resumed, they are not put back."""
    optimisation = Optimisation(steps=4, learning_rate=1e-9, average=0.0, start=imported)
    config = replace(SEGMENTATION, optimisation=optimisation)
    weights = train(Segmentation(config, sources), config, tmp_path / "run")
    known = models.load(models.find(imported, "segmentation")).state_dict()
    for name, value in torch.load(weights, weights_only=True).items():
        torch.testing.assert_close(value, known[name], rtol=0, atol=1e-6)

    optimisation = replace(optimisation, learning_rate=0.05, warm_up=0)
    config = replace(config, optimisation=optimisation)
    straight = train(Segmentation(config, sources), config, tmp_path / "straight")
    assert train(Segmentation(config, sources), config, tmp_path / "parts", until=2)
    resumed = train(Segmentation(config, sources), config, tmp_path / "parts")
    one, other = (torch.load(path, weights_only=True) for path in (straight, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.allclose(one[name], known[name], atol=1e-3) for name in one)


def test_a_cpu_that_only_imitates_bfloat16_is_told(sources, tmp_path, monkeypatch, capsys):
    """And the precision can be changed on the way, as the sentence says."""
    config = replace(SEGMENTATION, computing=replace(SEGMENTATION.computing, precision="bf16-mixed"))
    for made_for_it in (True, False):
        monkeypatch.setattr(loop, "cpu_computes_in_bfloat16", lambda made_for_it=made_for_it: made_for_it)
        train(Segmentation(config, sources), config, tmp_path / str(made_for_it), until=1)
        assert ("does not compute in bfloat16" in capsys.readouterr().out) is not made_for_it
    train(Segmentation(SEGMENTATION, sources), SEGMENTATION, tmp_path / "False", until=2)
    said = capsys.readouterr().out
    assert "resumed at step 1" in said
    assert "bfloat16" not in said


def test_what_a_model_began_with_stays_on_record(imported, sources, upper_abdomens, tmp_path, monkeypatch, capsys):
    """Its licence, too; and a run that has begun goes on without it."""
    folder = models.user_folder()
    manifest = json.loads((folder / "models.json").read_text())
    manifest["models"][0]["licence"] = "CC-BY-SA-4.0"
    (folder / "models.json").write_text(json.dumps(manifest))
    for anatomy in upper_abdomens:
        anatomies.write_map(anatomy, tmp_path / f"{anatomy.name}.npz")
    settings = json.loads(json.dumps(asdict(replace(SEGMENTATION, optimisation=Optimisation(steps=2, start=imported)))))
    settings["data"] = {"phantoms": 2, "validation_phantoms": 1, "cache": str(tmp_path)}
    path, out = tmp_path / "config.json", tmp_path / "out"
    path.write_text(json.dumps(settings))
    run = ["train", "segmentation", "--config", str(path), "--out", str(out)]
    assert cli.main([*run, "--until", "1"]) == 0
    models.remove(imported)
    assert cli.main(run) == 0
    entry = models.import_model(out / "model.pt", "second")
    assert entry.licence == "CC-BY-SA-4.0"
    assert entry.training["start"]["id"] == imported
    assert entry.training["start"]["steps"] == SEGMENTATION.optimisation.steps


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"optimisation": {"start": "unknown"}}, "unknown"),
        ({"network": {"widths": [8, 8, 16]}}, "which is another network"),
        ({"network": {**SEGMENTATION.network, "norm": "group"}}, "which is another network"),  # of the same sizes
    ],
)
def test_training_cannot_begin_with_another_network(imported, tmp_path, capsys, change, sentence):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"optimisation": {"start": imported}} | change))
    assert cli.main(["train", "segmentation", "--config", str(path), "--out", str(tmp_path / "out")]) != 0
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_one_real_label_map_makes_the_weights_share_alike(learnt, upper_abdomens, tmp_path, monkeypatch):
    monkeypatch.setenv(models.USER_FOLDER_VARIABLE, str(tmp_path / "models"))
    folder, weights = learnt["segmentation"]
    mixed = Sources([upper_abdomens[0], replace(upper_abdomens[1], kind="liver")], upper_abdomens[2:])
    path = command.write_model(
        "segmentation", SEGMENTATION, Segmentation(SEGMENTATION, mixed).network(), weights, mixed, folder
    )
    assert models.import_model(path, "mixed").licence == "CC-BY-SA-4.0"


def test_the_published_recipe_and_deep_supervision_have_gradients(sources):
    torch.manual_seed(0)
    config = replace(REGISTRATION, loss="published")
    deep = {"widths": [4, 8, 8, 8, 8], "deep_supervision": True, "attention": True}
    for task in (
        Registration(config, sources),
        Registration(replace(config, loss="labels", network={**config.network, "full_head": True}), sources),
        Segmentation(replace(SEGMENTATION, network=deep, voxels=20_000), sources),
    ):
        network = task.network().train()
        losses = task.losses(network, task.sample(0, CPU))
        losses["loss"].backward()
        assert all(torch.isfinite(value) for value in losses.values())
        # Two processes would wait for ever for a parameter that gets none.
        assert [name for name, p in network.named_parameters() if p.grad is None] == []
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())
        assert any(p.grad.any() for p in network.parameters())


class Breaking(Segmentation):
    """Its loss is not a number at some of the steps."""

    def __init__(self, config, sources, steps):
        super().__init__(config, sources)
        self.steps, self.count = steps, 0

    def losses(self, network, sample):
        losses = super().losses(network, sample)
        self.count += 1
        return {**losses, "loss": losses["loss"] * (float("nan") if self.count in self.steps else 1.0)}


def test_a_step_that_is_not_finite_changes_nothing(sources, tmp_path):
    config = replace(SEGMENTATION, reporting=replace(SEGMENTATION.reporting, checkpoint_s=0.0))
    train(Breaking(config, sources, {3}), config, tmp_path / "once", until=2)
    before = torch.load(tmp_path / "once" / "checkpoint.pt", weights_only=True)["network"]
    train(Breaking(config, sources, {1}), config, tmp_path / "once", until=3)  # counted from the start of this call
    after = torch.load(tmp_path / "once" / "checkpoint.pt", weights_only=True)["network"]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    train(Breaking(config, sources, set()), config, tmp_path / "once", until=4)
    assert any(
        not torch.equal(torch.load(tmp_path / "once" / "checkpoint.pt", weights_only=True)["network"][name], value)
        for name, value in after.items()
    )


def test_losses_that_stay_not_finite_stop_with_finite_weights(sources, tmp_path):
    config = replace(SEGMENTATION, reporting=replace(SEGMENTATION.reporting, checkpoint_s=0.0))
    with pytest.raises(InputError, match="loss of step 13 and those before it are not finite"):
        train(Breaking(config, sources, range(3, 100)), config, tmp_path)
    kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in kept["network"].values())


# -- processes --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def folder(tmp_path_factory, upper_abdomens) -> Path:
    """Where the processes work: anatomies/, and run.json, a small registration with a batch of 2.

    Every second pair of one of two processes is asked about both ways, and none of the other's: see
    `Registration.losses`.
    """
    folder = tmp_path_factory.mktemp("processes")
    (folder / "anatomies").mkdir()
    for anatomy in upper_abdomens:
        anatomies.write_map(anatomy, folder / "anatomies" / f"{anatomy.name}.npz")
    write_settings(folder / "run.json")
    return folder


def write_settings(path: Path, **computing: object) -> Path:
    settings = {
        "data": {"phantoms": 2, "validation_phantoms": 1, "cache": str(path.parent / "anatomies")},
        "optimisation": {"steps": 14, "batch": 2, "warm_up": 3, "learning_rate": 0.003},
        "computing": {"accelerator": "cpu", "threads": 1, **computing},
        "reporting": {"checkpoint_s": 0.3, "rows_every": 2, "validate_every": 7, "validation_cases": 1},
        "network": {"extra_channels": 1, "widths": [8, 8, 16], "nodes": [2, 2, 2], "norm": "instance"},
        "spacing_mm": 6.0,
        "shape": [16, 16, 16],
    }
    path.write_text(json.dumps(settings))
    return path


def start(
    folder: Path, out: str, *words: str, settings: str = "run.json", module: tuple[str, ...] = ()
) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),  # whatever the machine calls itself
    }
    line = ["-m", *module, "weaktumour", "train", "registration", "--config", settings, "--out", out, *words]
    return subprocess.Popen(
        [sys.executable, *line],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finished(process: subprocess.Popen, seconds: float = 400.0) -> str:
    try:
        told, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, told
    return told


@pytest.fixture(scope="module")
def uninterrupted(folder) -> Path:
    finished(start(folder, "uninterrupted"))
    return folder / "uninterrupted"


def curve(run: Path, part: str = "train") -> list[tuple[str, ...]]:
    """Rows of metrics.csv without the seconds."""
    lines = (run / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "step,seconds,part,name,value"
    rows = [line.split(",") for line in lines[1:]]
    return [(row[0], *row[2:]) for row in rows if row[2] == part]


def test_a_killed_run_goes_on_as_if_nothing_had_been(folder, uninterrupted):
    killed = folder / "killed"
    process = start(folder, "killed")
    try:
        end = time.monotonic() + 300
        while not (killed / "checkpoint.pt").exists() or not (rows := curve(killed)) or int(rows[-1][0]) < 6:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    with (killed / "metrics.csv").open("a") as file:
        file.write("1")  # of a row that was being written
    told = finished(start(folder, "killed"))
    resumed = int(told.split("resumed at step ")[1].split()[0])
    assert 1 <= resumed < 14
    assert [row[0] for row in curve(killed) if row[2] == "loss"] == [str(step) for step in range(2, 15, 2)]
    assert curve(killed) == curve(uninterrupted)
    assert curve(killed, "validation") == curve(uninterrupted, "validation")
    assert {row[0] for row in curve(killed, "validation")} == {"7", "14"}
    for name, value in torch.load(killed / "weights.pt", weights_only=True).items():
        assert torch.equal(value, torch.load(uninterrupted / "weights.pt", weights_only=True)[name]), name
    state = torch.load(killed / "checkpoint.pt", weights_only=True)
    assert state["step"] == 14
    assert (killed / "model.pt").exists()


@pytest.mark.parametrize(("cuda", "expected"), [(True, "cuda"), (False, "cpu")])
def test_the_device_is_chosen_as_elsewhere(cuda, expected, monkeypatch):
    """Apple's GPUs only where they are asked for, which Fabric's own choice would take."""
    import lightning_fabric

    asked = []

    class Fabric:
        def __init__(self, accelerator, **_):
            asked.append(accelerator)

        def launch(self):
            pass

    monkeypatch.setattr(lightning_fabric, "Fabric", Fabric)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    loop.launched(Computing())
    loop.launched(Computing(accelerator="mps"))
    assert asked == [expected, "mps"]


@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_two_processes_learn_what_one_does(folder, uninterrupted, launcher):
    out, until = f"two-{launcher}", 14 if launcher == "own" else 4
    if launcher == "own":
        write_settings(folder / "two.json", devices=2)
        process = start(folder, out, settings="two.json")
    else:
        module = ("torch.distributed.run", "--standalone", "--local_addr=127.0.0.1", "--nproc_per_node=2", "-m")
        process = start(folder, out, "--until", str(until), module=module)
    told = finished(process)
    assert told.count("Weights: ") == 1, told
    one = [row for row in curve(uninterrupted) if int(row[0]) <= until]
    two = curve(folder / out)
    assert [row[:3] for row in two] == [row[:3] for row in one]
    assert {row[2] for row in two} >= {"loss", "inverse"}
    np.testing.assert_allclose([float(row[3]) for row in two], [float(row[3]) for row in one], rtol=1e-4, atol=1e-7)
    if launcher == "own":
        expected = torch.load(uninterrupted / "weights.pt", weights_only=True)
        for name, value in torch.load(folder / out / "weights.pt", weights_only=True).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


# -- the command line -------------------------------------------------------------------------------------------------
def refusal(capsys, *words: str) -> str:
    """The one line on stderr of a command that is refused."""
    assert cli.main(["train", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("weaktumour: ")
    return line


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stpes": 3}, 'has no setting "stpes"; choose from'),
        ({"optimisation": {"stpes": 3}}, 'optimisation has no setting "stpes"; choose from average, batch'),
        ({"optimisation": 3}, "optimisation has to be an object"),
        ({"optimisation": {"steps": "many"}}, "steps is 'many'; give something like 5000"),
        ({"optimisation": {"steps": True}}, "steps is True"),
        ({"optimisation": {"steps": 2.5}}, "steps is 2.5"),
        ({"optimisation": {"learning_rate": float("nan")}}, "learning_rate is nan"),
        ({"optimisation": {"steps": 0}}, "steps is 0; give at least 1"),
        ({"optimisation": {"learning_rate": 0}}, "learning_rate is 0.0; give a number above 0"),
        ({"data": {"splits": 3}}, "splits is 3; give str or NoneType"),
        ({"data": {"phantoms": 0}}, "no anatomy to learn from"),
        ({"data": {"validation_phantoms": 0}}, "no anatomy to validate on"),
        ({"computing": {"threads": "4"}}, "threads is '4'; give int or NoneType"),
        ({"computing": {"precision": "8-mixed"}}, 'precision "8-mixed" is not one of 32-true, bf16-mixed, 16-mixed'),
        ({"computing": {"devices": 2}}, "a batch of 1 cannot be shared by 2 processes"),
        ({"reporting": {"rows_every": 0}}, "rows_every is 0"),
        ({"shape": [64, 64]}, "shape is [64, 64]; give something like (64, 64, 64)"),
        ({"shape": [64, 64, 4]}, "give at least 8 voxels a side"),
        ({"loss": "mse"}, 'loss "mse" is not one of labels, published'),
        ({"network": {"depth": 3}}, "does not fit mscgunet"),
        ({"network": {"extra_channels": 2}}, "network has extra_channels 0, 1"),
    ],
)
def test_a_wrong_setting_is_one_sentence(tmp_path, capsys, settings, sentence):
    path = tmp_path / "run.json"
    path.write_text(json.dumps(settings))
    assert sentence in refusal(capsys, "registration", "--config", str(path), "--out", str(tmp_path / "out"))


def test_what_else_can_be_wrong_on_the_command_line(tmp_path, capsys, upper_abdomens):
    out, nothing, maps = str(tmp_path / "out"), str(tmp_path / "nothing"), tmp_path / "maps"
    file = tmp_path / "file"
    file.write_text("{")
    maps.mkdir()
    assert "holds no .nii.gz file" in refusal(capsys, "registration", "--out", out, "--label-maps", nothing)
    assert "holds no .nii.gz file" in refusal(capsys, "segmentation", "--out", out, "--label-maps", str(maps))
    assert "restore the file" in refusal(capsys, "segmentation", "--out", out, "--splits", nothing)
    assert "cannot be read" in refusal(capsys, "segmentation", "--out", out, "--config", nothing)
    assert "not valid JSON" in refusal(capsys, "segmentation", "--out", out, "--config", str(file))
    assert "is a file; name a folder" in refusal(capsys, "segmentation", "--out", str(file))
    assert "cannot be made" in refusal(capsys, "segmentation", "--out", str(file / "below"))
    assert "--until: 0 is no step" in refusal(capsys, "segmentation", "--out", out, "--until", "0")
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "everything", "--out", out])
    assert end.value.code == 2
    capsys.readouterr()

    config = tmp_path / "config.json"
    for anatomy in upper_abdomens:
        anatomies.write_map(anatomy, tmp_path / f"{anatomy.name}.npz")
    data = {"phantoms": 2, "validation_phantoms": 1, "cache": str(tmp_path)}
    config.write_text(json.dumps({"data": data, "network": {"in_channels": 2}}))
    assert "fixed number of channels" in refusal(capsys, "segmentation", "--out", out, "--config", str(config))
    config.write_text(json.dumps({"data": data, "computing": {"accelerator": "abacus"}}))
    assert "1 x abacus cannot be had here" in refusal(capsys, "segmentation", "--out", out, "--config", str(config))
    if not torch.cuda.is_available():
        config.write_text(json.dumps({"data": data, "computing": {"accelerator": "cuda"}}))
        assert "1 x cuda cannot be had here" in refusal(capsys, "segmentation", "--out", out, "--config", str(config))
    (tmp_path / "out" / "checkpoint.pt").write_bytes(b"no checkpoint")
    config.write_text(json.dumps({"data": data, "computing": {"accelerator": "cpu"}}))
    assert "checkpoint.pt cannot be read" in refusal(capsys, "segmentation", "--out", out, "--config", str(config))


@pytest.mark.parametrize(
    "change",
    [{"optimisation": {"steps": 31, "learning_rate": 1e-2, "warm_up": 3}}, {"voxels": 8000}, {"data": {"phantoms": 3}},
     {"data": {"label_maps": "."}}],
)  # fmt: skip
def test_a_folder_holds_one_run(learnt, change, tmp_path, capsys):
    """Other settings would make another curve, other data another licence."""
    folder, _ = learnt["segmentation"]
    kept = (folder / "config.json").read_text()
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(kept), **change}))
    line = refusal(capsys, "segmentation", "--out", str(folder), "--config", str(path))
    assert "holds a run with other settings" in line
    assert (folder / "config.json").read_text() == kept


def test_without_the_extra(tmp_path):
    for module, name in (("lightning_fabric", "lightning-fabric"), ("matplotlib", "matplotlib")):
        code = (
            f"import sys\nsys.modules[{module!r}] = None\nfrom weaktumour import cli\n"
            f"sys.exit(cli.main(['train', 'segmentation', '--out', {str(tmp_path / 'out')!r}]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
        )
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert f"{name} is not installed; install the training extra, in the checkout" in line
    assert not (tmp_path / "out").exists()
