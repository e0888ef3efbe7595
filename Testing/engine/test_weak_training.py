"""Weak supervision: its losses, teacher and pseudo-labels against numbers worked out by hand, and each mode as a whole.

The patients are boxes that this file makes: a body, in it a liver, in it a tumour that the CT shows and one that it
does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from weaktumour import cli, models, pipeline
from weaktumour.cases import Case, write_case, write_single
from weaktumour.deformation import Affine
from weaktumour.errors import InputError
from weaktumour.evaluation.metrics import dice
from weaktumour.networks import build
from weaktumour.training import loop, pseudo_labels, published, weak, weak_tasks
from weaktumour.training.cohort import labels_of, read_cohort
from weaktumour.training.config import Computing, Optimisation, parse_config
from weaktumour.training.loop import move_average
from weaktumour.training.overlap import focal_tversky, overlap_loss, soft_dice
from weaktumour.training.prepared import Pair, prepare
from weaktumour.training.pseudo_labels import classes_of, confidence_of, make_pseudo_labels
from weaktumour.training.synthesis import Random
from weaktumour.training.weak_config import Labelling, Registering, Segmenting, Stage, WeakConfig
from weaktumour.training.weak_tasks import (
    Both,
    CaseData,
    Cases,
    CasesOnDisk,
    CTSegmentation,
    MRSegmentation,
    PairMaker,
    PairRegistration,
    Unified,
    consistency_weight,
    random_motion,
)
from weaktumour.volumes import Grid, Volume

ROOT = Path(cli.__file__).resolve().parents[1]
CPU = torch.device("cpu")
UNET = {"widths": [4, 8]}
MSCGUNET = {"extra_channels": 1, "widths": [4, 8, 8], "nodes": [2, 2, 2], "norm": "instance"}
SETTINGS = {
    "computing": {"accelerator": "cpu", "threads": 1},
    "reporting": {"checkpoint_s": 0.0, "rows_every": 1, "validate_every": 1000, "validation_cases": 1},
    "start_segmentation": None,
    "start_registration": None,
    "network": UNET,
    "spacing_mm": 8.0,
    "registration_network": MSCGUNET,
    "registration_spacing_mm": 12.0,
    "registration_shape": [16, 16, 16],
    "rounds": 2,
    **{name: {"steps": 3, "warm_up": 0} for name in ("pretrain", "adapt", "learn", "unified")},
    **{name: {"steps": 3, "warm_up": 0} for name in ("published_unet", "published_joint")},
    "segmenting": {"voxels": 4096},
    "labelling": {"stages": "mscgunet", "members": 1},
    "published": {"shape": [16, 32, 32], "network": {"widths": [4, 8], "norm": "batch"}},
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# -- patients ---------------------------------------------------------------------------------------------------------
def box_patient(name: str, seed: int, **info: object) -> Case:
    """Liver and CT lie 7 mm further along x than on the MRI; tumour 2 is dark in the CT, tumour 3 is not there."""
    rng = np.random.default_rng(seed)
    grid = Grid((36, 30, 28), (7.0, 7.0, 7.0), (-120.0, -100.0, 5.0 * seed))
    z, y, x = np.indices(grid.shape)

    def ball(at: tuple[float, float, float], radius: tuple[float, float, float]) -> np.ndarray:
        axes = zip((z, y, x), at, radius, strict=True)
        return sum(((axis - centre) / r) ** 2 for axis, centre, r in axes) < 1

    def scene(shift: int) -> tuple[np.ndarray, np.ndarray]:
        body = ball((14, 15, 18), (16, 13, 16))
        labels = np.zeros(grid.shape, dtype=np.uint8)
        labels[ball((14, 14, 14 + shift + seed % 2), (8, 7, 9))] = 1
        labels[ball((14, 14, 10 + shift + seed % 2), (3, 3, 3))] = 2
        labels[ball((14, 14, 18 + shift + seed % 2), (2.5, 2.5, 2.5))] = 3
        return body, labels

    body, labels = scene(0)
    mr = np.select([labels == 2, labels == 3, labels == 1, body], [40, 60, 200, 90], 0) + rng.normal(0, 4, grid.shape)
    body, ct_labels = scene(1)
    ct = np.select([ct_labels == 2, ct_labels > 0, body], [-10, 110, 30], -1000) + rng.normal(0, 6, grid.shape)
    return Case(
        mr=Volume(mr.clip(0).astype(np.int16), grid),
        ct=Volume(ct.astype(np.int16), grid),
        mr_labels=Volume(labels, grid),
        label_names={1: "Liver", 2: "Dark", 3: "Hidden"},
        ct_labels=Volume(ct_labels, grid),
        info={"id": name, "kind": "simulated", "ct_labels": "truth", **info},
    )


@pytest.fixture(scope="module")
def patients() -> dict[str, Case]:
    corrected = {"kind": "corrected", "ct_labels": "corrected"}
    return {"a": box_patient("a", 1), "b": box_patient("b", 2), "c": box_patient("c", 3, **corrected)}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory, patients) -> Path:
    """a and c, whose labels were corrected, are learnt from; b is held out by fold 0."""
    folder = tmp_path_factory.mktemp("weak")
    for name, case in patients.items():
        write_case(folder / "cohort" / name, case)
    (folder / "folds.json").write_text(json.dumps({"folds": [{"train": ["a", "c"], "test": ["b"]}]}))
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def known(patients) -> CaseData:
    """Patient a with the truth in the place of pseudo-labels, sure everywhere."""
    prepared = prepare(patients["a"], 8.0, 12.0)
    pair = Pair(np.eye(4), (prepared.truth > 0).astype(np.float32), None)
    confidence = np.ones(prepared.ct.shape, dtype=np.float32)
    return CaseData("a", prepared, pair, prepared.truth, confidence)


def stage_of(steps: int = 10, **optimisation: object) -> Stage:
    return Stage(optimisation=Optimisation(steps=steps, warm_up=0, **optimisation), computing=Computing("cpu"))


def unet(outputs: int = 3, **arguments: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return build("unet", {"in_channels": 1, "out_channels": outputs, **UNET, **arguments})


def mscgunet() -> torch.nn.Module:
    torch.manual_seed(0)
    network = build("mscgunet", MSCGUNET)
    torch.nn.init.normal_(network.half_head[-1].weight, std=0.05)  # it starts at no motion at all
    return network


# -- losses -----------------------------------------------------------------------------------------------------------
P, T = torch.tensor([0.8, 0.4, 0.1]), torch.tensor([1.0, 1.0, 0.0])


def test_focal_tversky_by_hand():
    # TP 1.2, FN 0.8, FP 0.1: TI = 1.2 / (1.2 + 0.7 * 0.8 + 0.3 * 0.1) = 0.670391; (1 - TI)^(3/4) = 0.435013
    assert float(focal_tversky(P, T, torch.ones(3), smooth=0)) == pytest.approx(0.435013, abs=2e-5)
    # The second voxel counts half: TP 1.0, FN 0.5, FP 0.1: TI = 1 / 1.38; (1 - TI)^(3/4) = 0.380126
    weight = torch.tensor([1.0, 0.5, 1.0])
    assert float(focal_tversky(P, T, weight, smooth=0)) == pytest.approx((1 - 1 / 1.38) ** 0.75, abs=1e-6)
    # Missing costs more than claiming by as much.
    missed = focal_tversky(torch.tensor([0.5, 0.0]), torch.tensor([1.0, 0.0]), torch.ones(2))
    claimed = focal_tversky(torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.0]), torch.ones(2))
    assert float(missed) > float(claimed) + 0.05
    # Right everywhere: no infinite slope.
    exact = torch.tensor([1.0, 0.0], requires_grad=True)
    focal_tversky(exact, torch.tensor([1.0, 0.0]), torch.ones(2)).backward()
    assert torch.isfinite(exact.grad).all()


def test_weighted_dice_by_hand():
    weight = torch.tensor([1.0, 0.5, 1.0])  # 2 (0.8 + 0.2) / ((0.8 + 0.2 + 0.1) + 1.5)
    assert float(soft_dice(P, T, weight, smooth=0)) == pytest.approx(2 / 2.6)


@pytest.mark.parametrize("loss", ["dice", "dice_ce", "focal_tversky"])
def test_labels_that_are_not_sure_teach_nothing(loss):
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 4, 4, 4, requires_grad=True)
    target, weight = torch.randint(0, 3, (1, 4, 4, 4)), torch.zeros(1, 4, 4, 4)
    weight[:, :2] = 1.0
    overlap_loss(logits, target, weight, Segmenting(loss=loss))["loss"].backward()
    assert not logits.grad[:, :, 2:].any()
    assert logits.grad[:, :, :2].abs().min() > 0


@pytest.mark.parametrize("loss", ["dice", "dice_ce", "focal_tversky"])
def test_a_tumour_that_is_not_there_must_not_be_claimed(loss):
    """All background called tumour, as from unlucky weights: the slope has to lead out of it."""
    target, weight = torch.zeros(1, 8, 8, 8, dtype=torch.int64), torch.ones(1, 8, 8, 8)
    target[:, :4, :4, :4] = 1
    logits = torch.zeros(1, 3, 8, 8, 8)
    logits[:, 1][target == 1] = 3.0
    logits[:, 2][target == 0] = 3.0
    logits.requires_grad_()
    settings = Segmenting(loss=loss)
    optimiser = torch.optim.Adam([logits], 0.5)
    for _ in range(20):
        optimiser.zero_grad()
        overlap_loss(logits, target, weight, settings)["loss"].backward()
        optimiser.step()
    assert torch.equal(logits.argmax(1), target)


def test_a_class_that_no_sure_label_has_costs_nothing():
    target, weight = torch.zeros(1, 4, 4, 4, dtype=torch.int64), torch.ones(1, 4, 4, 4)
    target[:, :2], target[:, 3] = 1, 2
    weight[:, 3] = 0
    logits = torch.randn(1, 3, 4, 4, 4)
    without = torch.where(target == 2, 0, target)
    for loss in ("dice", "dice_ce", "focal_tversky"):
        found = [overlap_loss(logits, t, weight, Segmenting(loss=loss))["overlap"] for t in (target, without)]
        torch.testing.assert_close(*found)


# -- the teacher ------------------------------------------------------------------------------------------------------
def test_the_moving_average_by_hand():
    average, weights = {"w": torch.tensor(1.0), "n": torch.tensor(0)}, {"w": torch.tensor(3.0), "n": torch.tensor(7)}
    move_average(average, weights, step=1, decay=0.9)  # early: d = 2 / 11
    assert float(average["w"]) == pytest.approx(1 * 2 / 11 + 3 * 9 / 11)
    move_average(average, {"w": torch.tensor(-1.0), "n": torch.tensor(8)}, step=1000, decay=0.9)
    assert float(average["w"]) == pytest.approx(0.9 * 29 / 11 - 0.1)
    assert int(average["n"]) == 8


def test_the_teachers_opinion_comes_in_slowly():
    stage, settings = stage_of(100, batch=2), Segmenting(consistency=4.0, ramp_up=0.5)
    found = [consistency_weight(number, stage, settings) for number in (0, 50, 100, 199)]  # steps 0, 25, 50, 99
    assert found == pytest.approx([4 * np.exp(-5), 4 * np.exp(-1.25), 4.0, 4.0])


def test_the_student_is_drawn_to_the_teacher_and_not_the_teacher(known):
    task = CTSegmentation(stage_of(), Segmenting(voxels=4096, ramp_up=0.0), Cases([known]), unet(), 8.0)
    student = task.network()
    with torch.no_grad():
        student.heads[0].bias += torch.tensor([0.0, 2.0, 0.0])
    task.follow(unet().state_dict())
    sample = task.sample(0, CPU)
    sample = replace(sample, weight=torch.zeros_like(sample.weight))  # no label counts
    losses = task.losses(student, sample)
    losses["loss"].backward()
    assert float(losses["consistency"].detach()) > 0.01
    assert float(student.heads[0].bias.grad[1]) > 0  # less liver, as the teacher says
    assert all(p.grad is None for p in task.teacher.module.parameters())
    task.follow(student.state_dict())
    same = replace(sample, image=sample.plain)
    assert float(task.losses(student, same)["consistency"].detach()) == pytest.approx(0, abs=1e-9)


# -- pseudo-labels ----------------------------------------------------------------------------------------------------
def test_confidence_by_hand():
    classes = np.array([[[0, 1, 2, 1]]], dtype=np.uint8)
    shares = np.array([[1.0, 0.0, 0.25], [0.25, 0.75, 0.0], [0.5, 0.0, 0.5], [0.6, 0.4, 0.0]], dtype=np.float32)
    found = confidence_of(classes, shares.T.reshape(3, 1, 1, 4))
    np.testing.assert_allclose(found.ravel(), [1.0, 0.5, 0.0, 0.0], atol=1e-6)


def test_a_tumour_that_the_ct_does_not_show_is_liver(patients):
    labels = labels_of(patients["a"])
    classes = classes_of(labels, (2,))
    for value, expected in ((0, 0), (1, 1), (2, 2), (3, 1)):
        assert set(np.unique(classes[labels.volume.array == value])) == {expected}


def test_members_start_elsewhere_and_come_back(patients, monkeypatch):
    """Their known jitter is part of their transform: where nothing is left to find, they still agree with the truth."""
    case = patients["a"]
    asked = []
    real = pseudo_labels.run_ensemble
    monkeypatch.setattr(
        pseudo_labels, "run_ensemble", lambda *args, **how: asked.append(how["variants"]) or real(*args, **how)
    )
    made = make_pseudo_labels(case, pipeline.Networks(None, None), Labelling(stages="refinement", members=2), seed=3)
    assert [len(variants) for variants in asked] == [2]
    truth = case.ct_labels.array > 0
    sure = made.confidence > 0.99
    assert ((made.classes > 0) == truth)[sure].mean() > 0.97
    liver = 1 - made.probability[0]
    assert dice(liver > 0.5, truth) > 0.8
    again = make_pseudo_labels(case, pipeline.Networks(None, None), Labelling(stages="refinement", members=2), seed=3)
    np.testing.assert_array_equal(made.confidence, again.confidence)


def test_motions_are_rigid_and_turn_about_the_point():
    centre = np.array([10.0, 20.0, 30.0])
    motion = random_motion(centre, 0.0, 10.0, np.random.default_rng(0))
    np.testing.assert_allclose(motion[:3, :3] @ motion[:3, :3].T, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(Affine(motion).transform_points(centre), centre, atol=1e-9)
    assert np.abs(motion[:3, :3] - np.eye(3)).max() > 0.02


def test_pseudo_labels_are_less_sure_where_they_are_wrong(patients):
    case = patients["a"]
    short = replace(
        case, mr=slab(case.mr, 22), mr_labels=slab(case.mr_labels, 22)
    )  # the MRI ends above the liver's tip
    networks, settings = pipeline.Networks(None, None), Labelling(stages="refinement", members=2)
    made = make_pseudo_labels(short, networks, settings, seed=5)
    assert made.labels.volume.grid.same_as(case.ct.grid)
    assert made.confidence.shape == case.ct.array.shape
    assert 0 <= made.confidence.min() < made.confidence.max() == 1
    np.testing.assert_allclose(made.probability.sum(0), 1, atol=1e-6)
    assert not made.confidence[26:].any()  # where the MRI has not looked: 28 mm beyond its end, farther than the search
    truth = case.ct_labels.array > 0
    near = (truth | (made.classes > 0)) & (np.indices(truth.shape)[0] < 20)
    wrong = (made.classes > 0) != truth
    assert (~wrong)[near].mean() > 0.8
    if wrong[near].any():
        assert made.confidence[near & wrong].mean() < made.confidence[near & ~wrong].mean() - 0.2


def test_a_tumour_that_the_ct_shows_elsewhere_is_followed_by_every_member(simulated_patient):
    """6 mm from where the registration alone puts it: all of them look where the CT shows it."""
    case, ct = simulated_patient, simulated_patient.ct.array.copy()
    there = np.roll(case.ct_labels.array == 3, 2, axis=2)
    ct[there] -= 60
    case = replace(case, ct=Volume(ct, case.ct.grid))
    made = make_pseudo_labels(case, pipeline.Networks(None, None), Labelling(stages="alignment,refinement", members=2))
    assert made.shown == (3,)
    assert dice(made.classes == 2, there) > 0.7
    assert made.confidence[there & (made.classes == 2)].mean() > 0.6


def slab(volume: Volume, slices: int) -> Volume:
    return Volume(volume.array[:slices], volume.grid.crop((0, 0, 0), (*volume.grid.size[:2], slices)))


def test_no_gradient_passes_through_a_pseudo_label(known):
    """With the registration's own losses at weight 0 it gets no gradient at all; as published, it does."""
    nothing = Registering(similarity=0, guide=0, smoothness=0, inverse=0, graph=0)
    maker = PairMaker(nothing, 12.0, (16, 16, 16))
    task = Unified(stage_of(), Segmenting(), maker, Cases([known]), Both(unet(), mscgunet()), 8.0)
    network = task.network()
    task.losses(network, task.sample(0, CPU))["loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in network.registration.parameters())
    assert any(p.grad is not None and p.grad.any() for p in network.segmentation.parameters())

    case = published.Stretched("a", *(np.random.default_rng(0).random((2, 16, 32, 32), dtype=np.float32)),
                               np.ones((16, 32, 32), np.uint8))  # fmt: skip
    torch.manual_seed(0)
    joint = published.Joint(unet(len(published.STRUCTURES)), build("mscgunet", {"published": True}))
    old = published.PublishedJoint(stage_of(), "dice", [case], [], joint)
    network = old.network()
    old.losses(network, old.sample(0, CPU))["segmentation"].backward()
    assert any(p.grad is not None and p.grad.any() for p in network.registration.parameters())


def test_the_guide_moves_the_registration_and_not_the_guide(known):
    maker = PairMaker(Registering(similarity=0, smoothness=0, graph=0), 12.0, (16, 16, 16))
    pair = maker.make(known, 0, Random(0))
    network, guide = mscgunet(), pair.ct_liver.clone().requires_grad_()
    maker.losses(network(*maker.shown(pair, 2)), pair, None, guide)["loss"].backward()
    assert guide.grad is None
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())


@pytest.fixture(scope="module")
def cut(patients) -> tuple[CaseData, float]:
    """Patient a whose MRI ends within the liver, with pseudo-labels that are sure of nothing, and the end's z, mm."""
    case = patients["a"]
    short = replace(case, mr=slab(case.mr, 14), mr_labels=slab(case.mr_labels, 14))
    prepared = prepare(short, 8.0, 12.0)
    classes = np.zeros(prepared.ct.shape, dtype=np.uint8)
    data = CaseData("a", prepared, Pair(np.eye(4)), classes, np.zeros(classes.shape, dtype=np.float32))
    return data, case.mr.grid.origin[2] + 13.5 * 7


def test_where_the_mri_never_looked_there_are_no_labels(cut, monkeypatch):
    case, end = cut
    taught = []

    def caught(outputs, target, weight, settings):
        taught.append((target, weight))
        return {"loss": outputs[0].sum() * 0 if isinstance(outputs, list) else outputs.sum() * 0}

    monkeypatch.setattr(weak_tasks, "deep_loss", caught)
    begin = Both(unet(), build("mscgunet", MSCGUNET))  # which moves nothing yet
    task = Unified(stage_of(), Segmenting(), PairMaker(Registering(), 8.0, (16, 16, 16)), Cases([case]), begin, 8.0, 2)
    network = task.network()
    for number in (0, 1):  # in one pass, and in two
        sample = task.sample(number, CPU)
        task.losses(network, sample)
        target, weight = taught[-1]
        points = sample.patch_grid.points() @ case.prepared.frame[:3, :3].T + case.prepared.frame[:3, 3]
        beyond = torch.as_tensor(points[..., 2] > end + 8.0)[None]
        assert (case.prepared.truth > 0).any()
        assert (beyond & sample.patch.measured).sum() > 100
        assert not weight[beyond].any()
        assert weight[~beyond & (target > 0)].mean() > 0.4


def test_a_liver_with_which_nothing_can_be_aligned_is_left_out(patients, known, monkeypatch):
    case, register = patients["a"], pipeline.register

    def strict(inputs, *rest, **named):
        if inputs.ct_liver is not None:
            raise InputError("MRI and CT share no anatomy.")
        return register(inputs, *rest, **named)

    found = replace(pipeline.Inputs(case.mr, case.ct, labels_of(case), None, Affine.identity()), ct_liver=case.ct)
    monkeypatch.setattr(pipeline, "find_livers", lambda *_: found)
    monkeypatch.setattr(pipeline, "register", strict)
    pair = weak.find_pair(case, known.prepared, None, (), CPU)
    assert pair.ct_liver is None
    assert pair.ct_distance is None

    monkeypatch.setattr(pipeline, "find_livers", lambda *_: replace(found, ct_liver=None))
    monkeypatch.setattr(pipeline, "register", lambda *_, **__: strict(found))
    with pytest.raises(InputError, match="share no anatomy"):
        weak.find_pair(case, known.prepared, None, (), CPU)


def drawn_too_large(case: Case) -> Volume:
    """The CT's liver as a probability, its surface 8 mm too far out."""
    liver = sitk.GetImageFromArray((case.ct_labels.array > 0).astype(np.uint8))
    liver.SetSpacing(case.ct.grid.spacing)
    distance = sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(liver, False, False, True))
    probability = np.where(distance < 25, 1 / (1 + np.exp((distance - 8) / 3)), 0)
    return Volume(probability.astype(np.float32), case.ct.grid)


def test_a_liver_of_the_known_volume(patients):
    case = patients["a"]
    found, known = drawn_too_large(case), Volume(case.mr_labels.array > 0, case.mr.grid)
    before, wanted = (found.array > 0.5).sum(), known.array.sum()
    assert before > 1.3 * wanted
    made = weak.with_volume_of(found, known)
    assert (made.array > 0.5).sum() == pytest.approx(wanted, rel=0.03)
    assert dice(made.array > 0.5, case.ct_labels.array > 0) > 0.97
    assert (np.diff(made.array.ravel()[np.argsort(found.array, axis=None)]) >= 0).all()
    assert not made.array[found.array == 0].any()
    grown = weak.with_volume_of(made, Volume(found.array > 0.5, found.grid))
    assert (grown.array > 0.5).sum() == pytest.approx(before, rel=0.03)
    assert weak.with_volume_of(made, known) is made  # near enough
    part = Volume(known.array & (np.indices(known.array.shape)[0] < 13), known.grid)
    assert weak.with_volume_of(found, part) is found  # of another liver, or not all of it


@pytest.mark.parametrize("whole", [True, False])
def test_the_mris_liver_says_how_large_it_is_where_all_of_it_was_seen(whole, patients, monkeypatch):
    case = patients["a"]
    if not whole:  # the MRI ends in the liver's lowest slices
        case = replace(case, mr=slab(case.mr, 21), mr_labels=slab(case.mr_labels, 21))
    inputs = pipeline.Inputs(case.mr, case.ct, labels_of(case), drawn_too_large(case), Affine.identity())
    monkeypatch.setattr(pipeline, "find_livers", lambda *_: inputs)
    prepared = prepare(case, 8.0, 12.0)
    pair = weak.find_pair(case, prepared, None, (), CPU)
    ratio = (pair.ct_liver > 0.5).sum() / (prepared.truth > 0).sum()
    assert ratio == pytest.approx(1 if whole else 1.32, abs=0.05)


def test_the_guide_counts_where_both_images_looked(cut):
    case, end = cut
    maker = PairMaker(Registering(similarity=0, smoothness=0, graph=0), 8.0, (16, 16, 16))
    pair, cube = maker.make(case, 0, Random(0), off=False), maker.cube(case)
    prediction = build("mscgunet", MSCGUNET)(*maker.shown(pair, 2))  # moves nothing yet
    points = cube.points() @ case.prepared.frame[:3, :3].T + case.prepared.frame[:3, 3]
    beyond = torch.as_tensor(points[..., 2] > end)[None, None]
    guide = pair.moving_liver
    assert not guide[pair.moving_measured < 1][beyond[pair.moving_measured < 1]].any()

    def cost(guide: torch.Tensor) -> float:
        return float(maker.losses(prediction, pair, None, guide)["guide"].detach())

    assert cost(guide) < 0.2
    assert cost(torch.where(beyond, 1.0, guide)) == pytest.approx(cost(guide), abs=1e-6)
    assert cost(torch.where(beyond, guide, 1 - guide)) > 0.5


def test_the_edge_of_a_tumour_is_not_compared(known):
    pair = PairMaker(Registering(), 6.0, (32, 32, 32)).make(known, 0, Random(0), off=False)
    lesion = known.prepared.moving[3]
    assert lesion.min() < 0
    assert float(pair.moving_weight.max()) == pytest.approx(1.0, abs=0.05)
    inside = known.prepared.moving_grid.index_to_world(np.argwhere(lesion < 0)[:, ::-1])
    cube = PairMaker(Registering(), 6.0, (32, 32, 32)).cube(known)
    x, y, z = np.round(cube.world_to_index(inside)).astype(int).T
    assert float(pair.moving_weight[0, 0, z, y, x].max()) < 0.05


@pytest.mark.parametrize("kind", ["mr", "pair", "ct", "unified"])
def test_a_sample_depends_on_its_number_and_the_seed_alone(kind, known):
    maker, cases, settings = PairMaker(Registering(), 12.0, (16, 16, 16)), Cases([known]), Segmenting(voxels=4096)

    def task(seed: int):
        stage = stage_of(seed=seed)
        if kind == "mr":
            return MRSegmentation(stage, settings, cases, unet(), 8.0)
        if kind == "pair":
            return PairRegistration(stage, maker, cases, mscgunet(), 2)
        if kind == "ct":
            return CTSegmentation(stage, settings, cases, unet(), 8.0)
        return Unified(stage, settings, maker, cases, Both(unet(), mscgunet()), 8.0)

    def image(sample: object) -> torch.Tensor:
        return sample.patch.image if kind == "unified" else sample.moving if kind == "pair" else sample.image

    first = image(task(0).sample(3, CPU))
    torch.rand(5)
    assert torch.equal(first, image(task(0).sample(3, CPU)))
    assert torch.isfinite(first).all()
    for other in (image(task(0).sample(4, CPU)), image(task(1).sample(3, CPU))):
        assert other.shape != first.shape or not torch.equal(other, first)


def test_the_unet_learns_from_the_cts_image(known):
    """The published recipe showed it the MRI, moved onto the CT."""
    sample = CTSegmentation(stage_of(), Segmenting(voxels=4096), Cases([known]), unet(), 8.0).sample(1, CPU)
    volumes = known.prepared.ct, known.prepared.ct_measured
    ct, measured = (torch.from_numpy(volume.astype(np.float32))[None, None] for volume in volumes)
    random = Random(1)  # the sample's own draws: seed 0, number 1
    known_case = Cases([known]).drawn(random)
    coordinates = weak_tasks.patch_coordinates(known_case.classes, 4096, 8.0, random)
    expected = weak_tasks.sample(ct, coordinates, padding="zeros")
    looked = weak_tasks.sample(measured, coordinates, padding="zeros") > 0.99
    torch.testing.assert_close(sample.plain[looked], expected[looked])
    assert looked.float().mean() > 0.3


def test_corrected_labels_are_not_replaced_by_the_registrations(known, monkeypatch):
    """In unified training each step makes labels from the registration, except where a person drew them."""
    maker, caught = PairMaker(Registering(), 12.0, (16, 16, 16)), []
    monkeypatch.setattr(weak_tasks, "deep_loss", lambda outputs, target, weight, settings: (
        caught.append((target, weight)), {"loss": outputs.sum() * 0})[1])  # fmt: skip
    for corrected in (False, True):
        cases = Cases([replace(known, corrected=corrected)])
        task = Unified(stage_of(), Segmenting(), maker, cases, Both(unet(), mscgunet()), 8.0)
        sample = task.sample(0, CPU)
        task.losses(task.network(), sample)
        target, weight = caught.pop()
        same = torch.equal(target, sample.patch.target) and torch.equal(weight, sample.patch.weight)
        assert same == corrected


@pytest.mark.parametrize(
    ("architecture", "loss", "least"), [("unet", "dice_ce", 0.5), ("attention_unet", "focal_tversky", 0.4)]
)
def test_a_unet_learns_the_liver_of_a_ct(architecture, loss, least, known, tmp_path):
    """From random weights, with a teacher. The whole body called liver would be 0.28; focal Tversky claims freely."""
    torch.manual_seed(0)
    begin = build(architecture, {"in_channels": 1, "out_channels": 3, **UNET})
    stage = stage_of(80, learning_rate=2e-2, average=0.9)
    task = CTSegmentation(stage, Segmenting(loss=loss, voxels=8192), Cases([known]), begin, 8.0)
    loop.train(task, stage, tmp_path)
    network = task.network()
    network.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    found = weak_tasks.segmented(network.eval(), known.prepared.ct, CPU)
    assert dice(found > 0, known.prepared.truth > 0) > least


def test_cases_are_read_when_they_are_needed():
    read = []
    cases = CasesOnDisk(["a", "b", "c"], lambda name: (read.append(name), name.upper())[1], 2)
    assert (len(cases), read) == (3, [])
    drawn = Cases(cases, (), [1, 0, 0])
    assert [drawn.drawn(Random(seed)) for seed in range(3)] == ["A"] * 3
    assert read == ["a"]
    assert drawn.looked_at(2) == ["A", "B"]
    assert list(cases) == ["A", "B", "C"]
    assert cases[-1] == "C"
    assert read == ["a", "b", "c"]
    assert cases[0] == "A"  # no more than two are kept
    assert read == ["a", "b", "c", "a"]


def test_corrected_cases_are_drawn_more_often(known):
    cases = Cases([known, replace(known, name="c", corrected=True, weight=4.0)])
    names = [cases.drawn(Random(seed)).name for seed in range(400)]
    assert 0.72 < names.count("c") / 400 < 0.88  # 4 of 5


# -- networks ---------------------------------------------------------------------------------------------------------
def test_a_unet_may_begin_with_the_shipped_one():
    entry = models.find("unet", "segmentation")
    plain = weak.first_unet(WeakConfig(), entry)
    image = torch.rand(1, 1, 16, 16, 16)
    torch.testing.assert_close(plain.network.eval()(image), models.load(entry)(image))
    assert plain.spacing_mm == 3.0
    gated = weak.first_unet(WeakConfig(architecture="attention_unet"), entry)
    assert gated.architecture == "attention_unet"
    assert len(gated.network.train()(image)) == 4  # the logits of each level
    torch.testing.assert_close(gated.network.encoder[0][0].weight, plain.network.encoder[0][0].weight)
    with pytest.raises(InputError, match="another network than the settings ask for"):
        weak.first_unet(WeakConfig(network={"widths": [8, 8]}), entry)


def test_settings_keep_the_defaults_of_their_section():
    config = parse_config({"learn": {"steps": 7}, "segmenting": {"loss": "focal_tversky"}}, WeakConfig)
    assert config.learn == replace(WeakConfig().learn, steps=7)
    assert config.segmenting == Segmenting(loss="focal_tversky")
    assert config.learn.learning_rate != Optimisation().learning_rate


# -- whole runs -------------------------------------------------------------------------------------------------------
STAGES = {
    "pretrain": ["round-0/pretrain"],
    "sequential": [
        "round-0/pretrain",
        *(f"round-{n}/{part}" for n in (1, 2) for part in ("registration", "segmentation")),
    ],
    "unified": ["round-0/pretrain", "round-1/unified"],
    "published": ["round-1/unet", "round-1/joint"],
}
# Where the run is killed, one after the other: as soon as the file is there and has so many rows.
KILLED_AT = {
    "pretrain": [("round-0/pretrain/metrics.csv", 4)],
    "sequential": [("round-1/pseudo_labels/a_confidence.nii.gz", 0), ("round-2/segmentation/metrics.csv", 4)],
    "unified": [("round-1/unified/metrics.csv", 10)],
    "published": [("round-1/joint/metrics.csv", 3)],
}


def run_here(cohort: Path, mode: str, out: Path) -> list[Path]:
    members = read_cohort(cohort / "cohort", cohort / "folds.json", 0)
    return weak.run_weak(mode, parse_config(SETTINGS, WeakConfig), out, members)


def start(cohort: Path, mode: str, out: Path, *module: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    words = ["train", "weak", "--mode", mode, "--cohort", "cohort", "--splits", "folds.json", "--fold", "0",
             "--config", "settings.json", "--out", str(out)]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, *(module or ("-m",)), "weaktumour", *words],
        cwd=cohort,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def killed(process: subprocess.Popen, file: Path, rows: int) -> None:
    end = time.monotonic() + 300
    try:
        while not (file.exists() and (not rows or len(file.read_text().splitlines()) >= rows)):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL


def curves(out: Path, mode: str) -> list[list[str]]:
    """Every row of every stage's metrics, without the seconds."""
    found = []
    for stage in STAGES[mode]:
        lines = (out / stage / "metrics.csv").read_text().splitlines()[1:]
        found += [[stage, *(cell for i, cell in enumerate(line.split(",")) if i != 1)] for line in lines]
    return found


@pytest.fixture(scope="module")
def uninterrupted(cohort) -> dict[str, list[Path]]:
    """mode -> its model files."""
    return {mode: run_here(cohort, mode, cohort / f"whole-{mode}") for mode in STAGES}


@pytest.mark.parametrize("mode", list(STAGES))
def test_a_killed_run_goes_on_as_if_nothing_had_been(mode, cohort, uninterrupted):
    out = cohort / f"killed-{mode}"
    for file, rows in KILLED_AT[mode]:
        killed(start(cohort, mode, out), out / file, rows)
    made = run_here(cohort, mode, out)
    whole = cohort / f"whole-{mode}"
    expected = curves(whole, mode)
    assert {row[0] for row in expected} == set(STAGES[mode])
    assert [row[1] for row in expected if row[0] == STAGES[mode][-1] and row[3] == "loss"] == ["1", "2", "3"]
    assert curves(out, mode) == expected
    for path, other in zip(made, uninterrupted[mode], strict=True):
        assert path.read_bytes() == other.read_bytes(), path.name
    for path in whole.glob("round-*/metrics.csv"):
        assert (out / path.relative_to(whole)).read_text() == path.read_text()


def test_each_round_is_kept_and_corrected_labels_are_taken_as_they_are(cohort, uninterrupted, patients):
    out = cohort / "whole-sequential"
    for number in (1, 2):
        folder = out / f"round-{number}" / "pseudo_labels"
        assert {path.name for path in folder.glob("*.json")} == {"a.json", "c.json"}  # nothing of the one held out
        sources = {name: json.loads((folder / f"{name}.json").read_text())["source"] for name in "ac"}
        assert sources == {"a": "registration", "c": "corrected"}
        classes, confidence = weak.read_labels_of(folder, "c")
        # At 7 mm nothing tells the CT's dark tumour from noise: neither of the two that a person put there is learnt.
        own, there = patients["c"].ct_labels, prepare(patients["c"], 8.0, 12.0).world_grid
        tumours = own.grid.index_to_world(np.argwhere(own.array > 1)[:, ::-1])
        x, y, z = np.rint(there.world_to_index(tumours)).astype(int).T
        assert (confidence[z, y, x] == 0).all()
        assert set(np.unique(confidence)) == {0.0, 1.0}
        assert (confidence == 0).sum() < 4 * (own.array > 1).sum()
        np.testing.assert_array_equal(classes, prepare(patients["c"], 8.0, 12.0).truth)
        rows = [line.split(",") for line in (out / f"round-{number}" / "metrics.csv").read_text().splitlines()[1:]]
        figures = {(row[0], row[2]): float(row[3]) for row in rows}
        assert {row[0]: row[1] for row in rows} == {"a": "learnt", "b": "held out", "c": "corrected"}
        assert figures["c", "pseudo-label liver Dice"] == 1.0
        assert 0.5 < figures["a", "pseudo-label liver Dice"] < 1.0
        assert ("b", "pseudo-label liver Dice") not in figures
    assert parse_config(json.loads((out / "config.json").read_text()), WeakConfig) == parse_config(SETTINGS, WeakConfig)
    assert json.loads((out / "cohort.json").read_text())["cases"] == {"a": "learnt", "b": "held out", "c": "corrected"}


@pytest.mark.parametrize("mode", list(STAGES))
def test_the_models_are_imported_and_used(mode, uninterrupted, patients, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(models.USER_FOLDER_VARIABLE, str(tmp_path))
    for path in uninterrupted[mode]:
        assert cli.main(["models", "import", str(path), "--id", f"my-{path.stem}"]) == 0
        entry = models.find(f"my-{path.stem}", path.stem)
        assert entry.training["cases"] == 2
        assert entry.training["corrected"] == 1
        assert models.load(entry) is not None
    shape = (16, 32, 32)
    if mode == "published":
        networks = [models.load(models.entry_of(path)) for path in uninterrupted[mode]]
        case = patients["b"]
        for found in (published.segment_ct(networks[0], case.ct, shape), published.propagate(networks[1], case, shape)):
            assert found.grid.same_as(case.ct.grid)
            assert set(np.unique(found.array)) <= {0, 1, 2, 3}


@pytest.mark.parametrize(("tumour", "least"), [(4, 0.9), (36, 0.8)])  # square of its radius, in voxels
def test_the_published_unet_learns_the_liver_of_an_mri(tumour, least):
    """What lies outside the liver must not end as tumour, where it would cost the liver's overlap nothing: a softmax of
    three classes reached 0.67 with the small tumour.
    """
    z, y, x = np.meshgrid(*(np.arange(n) for n in (16, 32, 32)), indexing="ij")
    far = (z - 8) ** 2 / 0.25 + (y - 16) ** 2 + (x - 14) ** 2
    classes = np.where(far < tumour, 2, far < 100).astype(np.uint8)
    image = np.choose(classes, (0.2, 0.7, 0.4)).astype(np.float32)
    image += 0.03 * np.random.default_rng(0).normal(size=image.shape).astype(np.float32)
    case = published.Stretched("a", image, image, classes, classes)
    task = published.PublishedUNet(stage_of(), "dice", [case], [], unet(2, norm="batch"))
    structures = task.sample(0, CPU)[2][0].numpy()
    assert np.array_equal(structures, np.stack((classes > 0, classes == 2)))  # a tumour lies in the liver
    network = task.network().train()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for number in range(100):
        optimiser.zero_grad()
        task.losses(network, task.sample(number, CPU))["loss"].backward()
        optimiser.step()
    assert task.validate(network.eval(), CPU)["liver mr"] > least
    found = published.classes_of(network(torch.from_numpy(image)[None, None]))
    if tumour > 4:  # the small one takes more than a hundred steps
        assert (found == 2).mean() < 2 * (classes == 2).mean()


@pytest.mark.parametrize("kind", ["dice", "dice_ce", "focal_tversky"])
def test_the_published_loss_asks_for_each_structure_by_itself(kind):
    """The right answer costs nothing; either structure claimed everywhere costs, be it there or not."""
    truth = torch.zeros(1, 2, 8, 8, 8)
    truth[0, 0, :4] = 1
    right = 40.0 * truth - 20.0
    assert float(published.soft_label_loss(right, truth, kind)) < 0.01
    for structure in (0, 1):
        claimed = right.clone()
        claimed[0, structure] = 20.0
        assert float(published.soft_label_loss(claimed, truth, kind)) > 0.1


def test_what_is_stretched_comes_back(patients):
    """Where the network moves nothing, the published propagation leaves the labels as they are."""
    case = patients["a"]

    class Still(torch.nn.Module):
        def forward(self, fixed, moving):
            field = torch.zeros(1, 3, *fixed.shape[2:])
            return type("Prediction", (), {"displacement": field})

    same = published.propagate(Still(), case, case.mr.array.shape)
    np.testing.assert_array_equal(same.array, case.mr_labels.array)


def test_a_run_whose_cases_have_changed_is_refused(cohort, tmp_path):
    shutil.copytree(cohort / "cohort", tmp_path / "cohort")
    shutil.copy(cohort / "folds.json", tmp_path)
    damaged = tmp_path / "cohort/c/ct_labels.nii.gz"
    whole = damaged.read_bytes()
    damage(damaged)
    with pytest.raises(InputError, match="case c"):
        run_here(tmp_path, "pretrain", tmp_path / "out")
    damaged.write_bytes(whole)  # what nobody could read may be mended
    made = [path.read_bytes() for path in run_here(tmp_path, "pretrain", tmp_path / "out")]
    changed = tmp_path / "cohort/a/mr_labels.nii.gz"
    former = changed.read_bytes()
    shutil.copy(tmp_path / "cohort/a/ct_labels.nii.gz", changed)
    with pytest.raises(InputError, match=r"case a: its files have changed since .*; put the former ones back"):
        run_here(tmp_path, "pretrain", tmp_path / "out")
    changed.write_bytes(former)
    assert [path.read_bytes() for path in run_here(tmp_path, "pretrain", tmp_path / "out")] == made


def test_a_case_that_cannot_be_read_may_be_taken_out(cohort, tmp_path):
    shutil.copytree(cohort / "cohort", tmp_path / "cohort")
    (tmp_path / "folds.json").write_text('{"folds": [{"train": ["a", "c"], "test": ["b"]}]}')
    damage(tmp_path / "cohort/c/ct_labels.nii.gz")
    with pytest.raises(InputError, match="case c"):
        run_here(tmp_path, "pretrain", tmp_path / "out")
    shutil.rmtree(tmp_path / "cohort/c")
    (tmp_path / "folds.json").write_text('{"folds": [{"train": ["a"], "test": ["b"]}]}')
    run_here(tmp_path, "pretrain", tmp_path / "out")
    assert set(json.loads((tmp_path / "out/cohort.json").read_text())["cases"]) == {"a", "b"}
    (tmp_path / "folds.json").write_text('{"folds": [{"train": ["a"], "test": []}]}')
    with pytest.raises(InputError, match="another cohort"):  # b was read
        run_here(tmp_path, "pretrain", tmp_path / "out")


def test_single_images_are_left_out_and_named(cohort, patients, tmp_path, capsys):
    shutil.copytree(cohort / "cohort", tmp_path / "cohort")
    case = patients["a"]
    info = {"id": "alone", "kind": "clinical", "ct_labels": None}
    write_single(tmp_path / "cohort/alone", "mr", case.mr, case.mr_labels, case.label_names, info)
    words = ["train", "weak", "--mode", "pretrain", "--cohort", str(tmp_path / "cohort"), "--out", str(tmp_path / "o"),
             "--config", str(cohort / "settings.json")]  # fmt: skip
    assert cli.main(words) == 0
    assert "only pairs of MRI and CT are learnt from: alone." in capsys.readouterr().out
    assert set(json.loads((tmp_path / "o/cohort.json").read_text())["cases"]) == {"a", "b", "c"}
    (tmp_path / "folds.json").write_text('{"folds": [{"train": ["alone"], "test": ["b"]}]}')
    with pytest.raises(InputError, match="leaves no case with an MRI and a CT to learn from"):
        read_cohort(tmp_path / "cohort", tmp_path / "folds.json", 0)
    for name in "abc":
        shutil.rmtree(tmp_path / "cohort" / name)
    with pytest.raises(InputError, match="only single images"):
        read_cohort(tmp_path / "cohort")


def test_pairs_of_different_people_carry_no_labels(cohort, tmp_path):
    shutil.copytree(cohort / "cohort", tmp_path / "cohort")
    shutil.copy(cohort / "folds.json", tmp_path)
    path = tmp_path / "cohort/a/case.json"
    info = json.loads(path.read_text()) | {"pairing": "different_people", "subjects": ["a", "z"]}
    path.write_text(json.dumps(info))
    for mode in ("sequential", "unified"):
        with pytest.raises(InputError, match="case a: its MRI and CT are of different people"):
            run_here(tmp_path, mode, tmp_path / "out")
        assert not (tmp_path / "out").exists()
    run_here(tmp_path, "pretrain", tmp_path / "out")


def test_a_model_of_one_pass_is_asked_once(known):
    def before(passes: int) -> list[bool]:
        maker, asked = PairMaker(Registering(), 12.0, (16, 16, 16)), []
        losses = maker.losses
        maker.losses = lambda answer, pair, before, guide: (asked.append(before is not None),
                                                            losses(answer, pair, before, guide))[1]  # fmt: skip
        task = Unified(stage_of(), Segmenting(), maker, Cases([known]), Both(unet(), mscgunet()), 8.0, passes)
        for number in (0, 1):
            task.losses(task.network(), task.sample(number, CPU))
        return asked

    assert before(1) == [False, False]
    assert before(2) == [False, True]


def test_a_run_of_other_settings_is_refused(cohort, uninterrupted):
    members = read_cohort(cohort / "cohort", cohort / "folds.json", 0)
    for changed, who in (
        (parse_config({**SETTINGS, "rounds": 3}, WeakConfig), members),
        (parse_config(SETTINGS, WeakConfig), members[:2]),
    ):
        with pytest.raises(InputError, match="other settings or another cohort"):
            weak.run_weak("sequential", changed, cohort / "whole-sequential", who)


@pytest.mark.parametrize(("mode", "launcher"), [("unified", "own"), ("sequential", "torchrun")])
def test_two_processes_learn_what_one_does(mode, launcher, cohort, uninterrupted):
    settings = json.loads((cohort / "settings.json").read_text())
    for name in ("pretrain", "adapt", "learn", "unified"):
        settings[name] = {**settings[name], "batch": 2, "steps": 2}
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--local_addr=127.0.0.1", "--nproc_per_node=2", "-m")
    out = []
    for processes in (1, 2):
        settings["computing"]["devices"] = processes if launcher == "own" else 1
        (cohort / "settings.json").write_text(json.dumps(settings))
        out.append(cohort / f"{mode}-{processes}")
        process = start(cohort, mode, out[-1], *(torchrun if launcher == "torchrun" and processes > 1 else ()))
        told, _ = process.communicate(timeout=600)
        assert process.returncode == 0, told
        assert told.count("Weights: ") == 2, told
    (cohort / "settings.json").write_text(json.dumps(SETTINGS))
    one, two = (curves(folder, mode) for folder in out)
    assert [row[:4] for row in one] == [row[:4] for row in two]
    np.testing.assert_allclose([float(row[4]) for row in two], [float(row[4]) for row in one], rtol=2e-3, atol=1e-5)


# -- what is refused --------------------------------------------------------------------------------------------------
def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def refused(capsys, *words: str) -> str:
    assert cli.main(["train", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("mode", ["sequential", "published"])
def test_a_damaged_case_is_one_sentence(mode, cohort, tmp_path, capsys):
    shutil.copytree(cohort / "cohort", tmp_path / "cohort")
    damage(tmp_path / "cohort/b/ct.nii.gz")
    words = ("weak", "--mode", mode, "--cohort", str(tmp_path / "cohort"), "--out", str(tmp_path / "out"))
    line = refused(capsys, *words, "--config", str(cohort / "settings.json"))
    assert "Cohort: case b: CT: ct.nii.gz cannot be used" in line


def test_a_cohort_that_does_not_fit_is_one_sentence(cohort, patients, tmp_path):
    def told(change, *arguments) -> str:
        folder = tmp_path / "cohort"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(cohort / "cohort", folder)
        change(folder)
        with pytest.raises(InputError) as error:
            [member.read() for member in read_cohort(folder, *arguments)]
        return str(error.value)

    folds = tmp_path / "folds.json"
    assert "holds no case folder" in told(lambda f: [shutil.rmtree(f / name) for name in "abc"])
    assert "corrected ct_labels.nii.gz is missing" in told(lambda f: (f / "c/ct_labels.nii.gz").unlink())
    assert "a and d are the same case (a)" in told(lambda f: shutil.copytree(f / "a", f / "d"))
    assert "Cohort: case a: MRI: " in told(lambda f: (f / "a/mr.nii.gz").write_bytes(b"no image"))

    def without_liver(folder: Path) -> None:
        volume = patients["a"].mr_labels
        write_case(
            folder / "a",
            replace(patients["a"], mr_labels=Volume(np.where(volume.array > 1, 2, 0).astype(np.uint8), volume.grid)),
        )

    assert "case a: MRI labels: no voxel is 1" in told(without_liver)
    for content, fold, sentence in (
        ("{", 0, "restore the file"),
        ('{"folds": [{"train": ["a"], "test": ["x"]}]}', 0, "names x, which is not in the cohort"),
        ('{"folds": [{"train": ["a"], "test": ["a"]}]}', 0, "has a in train and in test"),
        ('{"folds": [{"train": [], "test": ["a"]}]}', 0, "leaves no case to learn from"),
        ('{"folds": [{"train": ["a"], "test": ["b"]}]}', 1, "has the folds 0 to 0"),
    ):
        folds.write_text(content)
        assert sentence in told(lambda f: None, folds, fold)
    assert "belong together" in told(lambda f: None, folds, None)

    def one_person(folder: Path) -> None:
        for name in "ab":
            path = folder / name / "case.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"subjects": [name, "somebody"]}))

    folds.write_text('{"folds": [{"train": ["a", "c"], "test": ["b"]}]}')
    sentence = told(one_person, folds, 0)
    assert "learns from a and tests b, which show the same person (somebody); split again" in sentence


def test_cases_outside_the_split_are_counted(cohort, tmp_path, capsys):
    (tmp_path / "folds.json").write_text('{"folds": [{"train": ["a"], "test": ["b"]}]}')
    words = ["train", "weak", "--mode", "pretrain", "--cohort", str(cohort / "cohort"), "--out", str(tmp_path / "o"),
             "--splits", str(tmp_path / "folds.json"), "--fold", "0"]  # fmt: skip
    words += ["--config", str(cohort / "settings.json")]
    assert cli.main(words) == 0
    assert "1 cases of the cohort are in no part of fold 0: not used." in capsys.readouterr().out


def test_a_held_out_case_is_never_learnt_from(cohort):
    folds = cohort / "other-folds.json"
    folds.write_text(json.dumps({"folds": [{"train": ["a", "b"], "test": ["c"]}]}))
    members = {member.name: member for member in read_cohort(cohort / "cohort", folds, 0)}
    assert (members["c"].held_out, members["c"].corrected) == (True, False)
    assert not members["a"].held_out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["weak", "--cohort", "x"], "required: --mode"),
        (["weak", "--mode", "unified"], "required: --cohort"),
        (["weak", "--mode", "unified", "--cohort", "x", "--until", "3"], "unrecognized arguments: --until"),
        (["segmentation", "--cohort", "x"], "unrecognized arguments: --cohort"),
    ],
)
def test_options_that_do_not_belong_are_refused(words, sentence, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["train", *words, "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


def test_a_cohort_that_is_not_there_is_one_sentence(tmp_path, capsys):
    words = ["weak", "--mode", "unified", "--cohort", "nowhere", "--out", str(tmp_path / "out")]
    assert "nowhere is no folder" in refused(capsys, *words)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"segmenting": {"loss": "hinge"}}, 'loss "hinge" is not one of dice, dice_ce, focal_tversky'),
        ({"architecture": "vnet"}, 'architecture "vnet" is not one of'),
        ({"learn": {"start": "unet"}}, "learn has a start of its own"),
        ({"labelling": {"preset": "slow"}}, '"slow" is not known'),
        ({"start_segmentation": "nobody"}, "nobody"),
        ({"start_segmentation": "mscgunet"}, "is for registration"),
        ({"network": {"widths": "wide"}}, "does not fit unet"),
        (
            {"computing": {"accelerator": "cpu", "devices": 2}},
            '2 processes; give a multiple, such as {"pretrain": {"batch": 2}}.',
        ),
    ],
)
def test_a_wrong_setting_is_one_sentence(settings, sentence, cohort, tmp_path, capsys):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({**SETTINGS, **settings}))
    words = (
        "--mode",
        "pretrain",
        "--cohort",
        str(cohort / "cohort"),
        "--config",
        str(path),
        "--out",
        str(tmp_path / "o"),
    )
    assert sentence in refused(capsys, "weak", *words)
    assert not (tmp_path / "o").exists()  # which would refuse the corrected command


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Makes one fold of weak_supervision.py whose trainings are noted in `.trained` and give made-up figures."""
    monkeypatch.syspath_prepend(str(ROOT.parent / "Testing/benchmark"))
    import weak_supervision

    def fold(
        scale: float = 1.0, settings: Path | None = None, patients: tuple[str, ...] = ("p",), work: str = "work"
    ) -> weak_supervision.Fold:
        arguments = argparse.Namespace(scale=scale, settings=settings, smoke=False, rows=tmp_path / "rows")
        return weak_supervision.Fold(arguments, tmp_path / work, 0, {"train": ["q"], "test": list(patients)})

    fold.trained = []
    monkeypatch.setattr(weak_supervision.Fold, "train", lambda self, method: fold.trained.append(method))
    monkeypatch.setattr(weak_supervision.Fold, "measure", lambda self, *_: {"liver": 0.9})
    monkeypatch.setattr(weak_supervision, "read_case", lambda folder: None)
    return fold


def test_kept_figures_of_other_settings_are_refused(experiment, tmp_path):
    (row,) = experiment().measured("sequential")
    assert (row["liver"], row["patient"], experiment.trained) == (0.9, "p", ["sequential"])
    assert experiment().measured("sequential") == [row]
    other = tmp_path / "other.json"
    other.write_text('{"rounds": 3}')
    for changed in (experiment(0.5), experiment(1.0, other), experiment(1.0, None, ("p", "r"))):
        with pytest.raises(InputError, match=r"sequential\.json was made with other settings"):
            changed.measured("sequential")
    (tmp_path / "work/fold-0/unified.json").write_text("[]")
    with pytest.raises(InputError, match="unknown settings"):
        experiment().measured("unified")
    assert experiment.trained == ["sequential"]


def test_finished_figures_outlive_the_folder_and_say_with_which_start(experiment, tmp_path):
    def begun(work: str, content: bytes) -> None:
        path = tmp_path / work / "fold-0/start/segmentation.pt"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)

    begun("work", b"one")
    first = [experiment().measured(method) for method in ("shipped", "start", "sequential")]
    begun("elsewhere", b"another")  # the other folder is lost
    for method in ("shipped", "start", "sequential"):
        assert experiment(work="elsewhere").measured(method) == first.pop(0)
    (last,) = experiment(work="elsewhere").measured("corrected")
    assert experiment.trained == ["shipped", "start", "sequential", "corrected"]
    kept = {path.stem: json.loads(path.read_text())["rows"][0] for path in (tmp_path / "rows/fold-0").iterdir()}
    assert kept["corrected"] == last
    assert kept["shipped"]["start"] is None
    assert kept["start"]["start"] == kept["sequential"]["start"] != last["start"]

    import weak_supervision

    assert weak_supervision.started_apart(list(kept.values())) == [0]
    assert not weak_supervision.started_apart([kept["shipped"], kept["start"], kept["sequential"]])


@pytest.mark.parametrize("off", [1e-4, 0.1])
def test_shared_pseudo_labels_are_of_the_same_network_but_for_rounding(off, experiment, tmp_path):
    fold = experiment()
    for path in ("corrected/round-0", "corrected/round-1", "sequential/round-1"):
        network = mscgunet()
        if path.endswith("1"):  # as trained
            network.half_head[-1].weight.data += 1.0 + off * path.startswith("corrected")
        about = {"task": "registration", "input": {"spacing_mm": 12.0, "shape": [16, 16, 16]}, "output": {},
                 "licence": "-", "training": {}, "figures": {}, "description": ""}  # fmt: skip
        (fold.folder / path).mkdir(parents=True)
        models.save_weights(fold.folder / path / "registration.pt", network, "mscgunet", MSCGUNET, about)
    if off < 0.01:
        fold._check_shared(fold.folder / "corrected")
    else:
        with pytest.raises(RuntimeError, match="another MSCGUNet"):
            fold._check_shared(fold.folder / "corrected")


def test_the_page_says_which_code_made_what(experiment):
    import weak_supervision

    rows = [{"code": "a1", "method": "start", "fold": fold} for fold in (0, 1)]
    assert weak_supervision.made_by(rows) == "a1"
    rows.append({"code": "b2", "method": "published", "fold": 1})
    assert weak_supervision.made_by(rows) == "a1 (start 0 1); b2 (published 1)"


def test_a_patient_whom_registration_refuses_counts_as_not_carried(patients, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT.parent / "Testing/benchmark"))
    import weak_supervision as script

    case = patients["a"]
    case = replace(case, info={**case.info, "simulation": {"tumours_in_ct": ["visible", "invisible"]}})

    def refuse(*_, **__):
        raise InputError("MRI and CT share no anatomy.")

    monkeypatch.setattr(pipeline, "find_livers", lambda inputs, *_: inputs)
    monkeypatch.setattr(pipeline, "register", refuse)
    carried = script.propagated(case, {"segmentation": None}, WeakConfig())
    assert "share no anatomy" in capsys.readouterr().out
    figures = script.json_ready(script.propagated_figures(carried, case))  # as it is kept
    assert figures["liver"] == 0
    assert [(t["look"], t["dice"], t["centroid_error_mm"]) for t in figures["tumours"]] == [
        ("visible", 0, None),
        ("invisible", 0, None),
    ]
    unet = {"liver": 0.9, "liver_hd95_mm": None, "tumours": [], "false": []}
    assert script.summary([{**unet, "propagated": figures}])["centroid median"] == np.inf
    assert script.summary([{**unet, "propagated": figures}])["liver HD95"] == np.inf


def test_the_experiments_patients_are_nobody_elses():
    splits = json.loads((ROOT.parent / "Testing/benchmark/splits.json").read_text(encoding="utf-8"))
    seeds = splits["weak_supervision"]["phantoms"]
    assert len(seeds) == len(set(seeds)) == 24
    train = splits["phantoms"]["train"]
    others = {
        *range(train["first"], train["last"] + 1),
        *splits["phantoms"]["development"],
        *splits["phantoms"]["test"],
    }
    others |= {entry["seed"] for part in ("benchmark", "benchmark_development")
               for kind in ("label_maps", "real_ct") for entry in splits[part][kind]}  # fmt: skip
    assert not set(seeds) & others
