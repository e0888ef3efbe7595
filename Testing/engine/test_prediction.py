"""MSCGUNet in the pipeline: what it is shown, where its field lies, and what becomes of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from weaktumour import models, pipeline
from weaktumour.deformation import Affine, integrate
from weaktumour.errors import ModelError
from weaktumour.labels import LabelMap, name_labels
from weaktumour.networks import build
from weaktumour.networks.mscgunet import Prediction
from weaktumour.progress import Monitor
from weaktumour.registration.prediction import in_passes, pair_inputs, predict
from weaktumour.registration.preparation import Scan
from weaktumour.registration.refinement import Level, RefinementSettings, refine
from weaktumour.volumes import Grid

CPU = torch.device("cpu")
SPACING = 4.0


def ball_scan(centre_mm, radius_mm=45.0, size=56, texture_seed=0):
    """A liver that is a ball, textured where it is, in a body that fills the grid."""
    grid = Grid((size, size, size), (SPACING,) * 3, (-SPACING * (size - 1) / 2,) * 3)
    points = grid.points()
    distance = np.linalg.norm(points - np.asarray(centre_mm, dtype=float), axis=-1) - radius_mm
    x, y, z = np.moveaxis(points - np.asarray(centre_mm), -1, 0)
    value = np.where(distance < 0, 0.5 + 0.2 * np.sin(x / 7) * np.cos(y / 9) * np.sin(z / 8), 0.1)
    ones = np.ones(grid.shape, dtype=np.float32)
    return Scan(grid, value.astype(np.float32), ones, ones, np.clip(distance, -30, 30).astype(np.float32), None)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """model(): an imported registration model, untrained: its field is zero."""
    monkeypatch.setenv("WEAKTUMOUR_MODELS", str(tmp_path / "models"))

    def make():
        arguments = {"extra_channels": 4, "widths": [4, 4, 4], "decoder_width": 4}
        network = build("mscgunet", arguments)
        metadata = {
            "task": "registration",
            "input": {"spacing_mm": SPACING, "shape": [32, 32, 32], "normalisation": "weaktumour-1"},
            "output": {}, "licence": "none", "training": {}, "figures": {}, "description": "",
        }  # fmt: skip
        path = tmp_path / "model.pt"
        models.save_weights(path, network, "mscgunet", arguments, metadata)
        return models.import_model(path, "test-model", overwrite=True)

    return make


# -- what it is shown ---------------------------------------------------------------------------------------------
def pair(shift_mm):
    fixed, moving = ball_scan((0, 0, 0)), ball_scan(shift_mm)
    tensors = [torch.from_numpy(a)[None, None] for s in (fixed, moving) for a in (s.value, s.liver_distance_mm)]
    return tensors[0], tensors[2], tensors[1], tensors[3]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_both_directions_point_to_the_moved_liver(axis):
    """The moving liver lies 3 mm further along one axis: fixed -> moving is +3 mm there, and only there."""
    shift = np.zeros(3)
    shift[axis] = 3.0
    fixed, moving = pair_inputs(*pair(shift), SPACING, 5)
    near = (fixed[0, 1].abs() < 0.6).numpy()  # within 6 mm of the surface
    wanted = 3.0 / SPACING / 2  # in units of 2 voxels
    surface, similarity = (image[0, 2:5][:, torch.from_numpy(near)].numpy() for image in (fixed, moving))
    # Each voxel knows the component along the surface's normal only; the projection on the axis averages to a third.
    assert surface[axis].mean() == pytest.approx(wanted / 3, rel=0.4)
    assert similarity[axis].mean() > 0.15 * wanted
    for other in {0, 1, 2} - {axis}:
        assert abs(surface[other].mean()) < 0.15 * wanted
        assert abs(similarity[other].mean()) < 0.15 * wanted


def test_the_same_pair_asked_the_other_way_points_back():
    values = pair((0.0, 0.0, 4.0))
    there = pair_inputs(*values, SPACING, 5)
    back = pair_inputs(values[1], values[0], values[3], values[2], SPACING, 5)
    for one, other in zip(there, back, strict=True):
        assert torch.allclose(one[:, 2:], -other[:, 2:], atol=1e-5)


def test_an_unknown_liver_is_shown_as_nothing():
    fixed, moving, _, distance = pair((2.0, 0.0, 0.0))
    first, second = pair_inputs(fixed, moving, None, distance, SPACING, 5)
    assert not first[:, 1:].any()
    assert second[:, 1].any()
    assert pair_inputs(fixed, moving, None, None, SPACING, 1)[0].shape[1] == 1


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(ValueError, match="not 3"):
        pair_inputs(*pair((0.0, 0.0, 0.0)), SPACING, 3)


# -- where its field lies -----------------------------------------------------------------------------------------
def with_velocity(velocity_mm, monkeypatch):
    """predict() with a network that answers a constant velocity (mm)."""
    from weaktumour.registration import prediction

    class Constant(torch.nn.Module):
        image_channels = 5

        def forward(self, fixed, moving):
            half = [-(-n // 2) for n in fixed.shape[2:]]
            velocity = torch.tensor(velocity_mm).reshape(1, 3, 1, 1, 1) / (2 * SPACING)
            return type("Prediction", (), {"velocity": velocity.expand(1, 3, *half).clone()})

    monkeypatch.setattr(prediction, "load", lambda entry, device: Constant())


def test_its_field_is_where_the_liver_is(model, monkeypatch):
    """A constant velocity moves the liver's middle by just that, fades out, and never folds."""
    entry = model()
    with_velocity((6.0, -3.0, 4.0), monkeypatch)
    fixed, moving = ball_scan((10, 0, -8)), ball_scan((10, 0, -8))
    predicted = predict(fixed, moving, Affine.identity(), entry, CPU, Monitor())
    moved = predicted.transform.transform_points(np.array([[10.0, 0.0, -8.0]]))
    assert np.allclose(moved, [[16.0, -3.0, -4.0]], atol=0.2)
    faces = predicted.transform.displacement_mm
    assert max(np.abs(faces[0]).max(), np.abs(faces[:, 0]).max(), np.abs(faces[:, :, -1]).max()) < 1e-6
    assert predicted.min_jacobian > 0.3


class HalfWay(torch.nn.Module):
    """A network without weights that answers half of the way along z from one ball's middle to the other's."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, fixed, moving):
        # The liver's distance is smallest in its middle.
        z = torch.arange(fixed.shape[2], dtype=torch.float32).reshape(-1, 1, 1)
        middles = [float((z * (image[0, 1] < -1.0)).sum() / (image[0, 1] < -1.0).sum()) for image in (fixed, moving)]
        self.seen.append(middles[1] - middles[0])
        velocity = torch.zeros(1, 3, *(n // 2 for n in fixed.shape[2:]))
        velocity[:, 2] = 0.5 * self.seen[-1] / 2  # half voxels

        def exponential(v):
            return 2 * F.interpolate(integrate(v, steps=7), scale_factor=2, mode="trilinear", align_corners=False)

        return Prediction(exponential(velocity), velocity, None, torch.zeros(()), velocity, velocity, exponential)


@pytest.mark.parametrize(("passes", "left"), [(1, 0.5), (2, 0.25), (3, 0.125)])
def test_each_pass_is_asked_about_what_the_last_left(passes, left):
    network, values = HalfWay(), pair((0.0, 0.0, 4 * SPACING))
    found = in_passes(network, values[::2], values[1::2], SPACING, 5, passes)
    assert network.seen == pytest.approx([4 * 0.5**n for n in range(passes)], abs=0.15)
    middle = tuple(n // 2 for n in values[0].shape[2:])
    assert float(found.displacement[0, 2][middle]) == pytest.approx(4 * (1 - left), abs=0.15)
    # One velocity holds all of it, for the refinement to start from.
    whole = integrate(found.velocity, steps=7)
    assert 2 * float(whole[0, 2][tuple(n // 2 for n in whole.shape[2:])]) == pytest.approx(4 * (1 - left), abs=0.15)
    assert float(found.inverse_displacement()[0, 2][middle]) == pytest.approx(-4 * (1 - left), abs=0.15)


def test_a_model_says_how_often_it_is_asked(model, monkeypatch):
    from weaktumour.registration import prediction

    scans = ball_scan((0, 0, 0)), ball_scan((0, 0, 2 * SPACING))
    for passes in (1, 3):
        network = HalfWay()
        network.image_channels = 5
        monkeypatch.setattr(prediction, "load", lambda entry, device, network=network: network)
        entry = model()
        entry = replace(entry, input={**entry.input, "passes": passes})
        predict(*scans, Affine.identity(), entry, CPU, Monitor())
        assert len(network.seen) == passes
    for wrong in (0, "two"):
        with pytest.raises(ModelError, match=r"passes.*import it anew"):
            predict(*scans, Affine.identity(), replace(entry, input={"passes": wrong}), CPU, Monitor())


def test_the_cube_follows_the_alignment(model, monkeypatch):
    """The MRI 200 mm away in the world: the cube lies about the liver's place on the CT."""
    entry = model()
    with_velocity((0.0, 0.0, 5.0), monkeypatch)
    fixed, moving = ball_scan((0, 0, 0)), ball_scan((0, 0, 0))
    away = replace(moving, grid=Grid(moving.grid.size, moving.grid.spacing,
                                     tuple(np.add(moving.grid.origin, (200.0, 0, 0)))))  # fmt: skip
    predicted = predict(fixed, away, Affine.translation(np.array([200.0, 0, 0])), entry, CPU, Monitor())
    assert np.allclose(predicted.transform.transform_points(np.zeros((1, 3))), [[0, 0, 5.0]], atol=0.2)


def test_a_large_liver_gets_a_larger_cube(model):
    scan = ball_scan((0, 0, 0), radius_mm=90.0)
    predicted = predict(scan, scan, Affine.identity(), model(), CPU, Monitor())
    assert min(n * s for n, s in zip(predicted.grid.size, predicted.grid.spacing, strict=True)) >= 180.0


def test_a_model_of_another_task_is_refused(model):
    entry = replace(model(), task="segmentation")
    scan = ball_scan((0, 0, 0))
    with pytest.raises(ModelError, match="choose a registration model"):
        predict(scan, scan, Affine.identity(), entry, CPU, Monitor())


# -- what becomes of it -------------------------------------------------------------------------------------------
def test_refinement_starts_from_it(model, monkeypatch):
    """Without a step of its own the refinement gives the predicted field back."""
    entry = model()
    with_velocity((5.0, 0.0, -4.0), monkeypatch)
    scan = ball_scan((0, 0, 0))
    predicted = predict(scan, scan, Affine.identity(), entry, CPU, Monitor())
    settings = RefinementSettings(levels=(Level(2, 64.0, 0),), search_mm=0)
    refined = refine(scan, scan, Affine.identity(), settings, start=predicted, device=CPU, monitor=Monitor())
    points = np.random.default_rng(0).uniform(-40, 40, (50, 3))
    difference = refined.field.transform_points(points) - predicted.transform.transform_points(points)
    assert np.abs(difference).max() < 0.3


def test_a_worse_prediction_is_dropped(model, monkeypatch, simulated_patient):
    """A field that tears the livers apart by 15 mm does not survive the score; the log and the candidates say so."""
    case = simulated_patient
    labels = LabelMap(case.mr_labels, name_labels(list(case.label_names), None, case.label_names))
    inputs = pipeline.Inputs(case.mr, case.ct, labels, None, Affine.identity())
    entry = model()
    aligned = pipeline._align(inputs, ("alignment",), 0, Monitor())
    with_velocity((0.0, 15.0, 0.0), monkeypatch)
    lines = []
    after = pipeline._predict(aligned, entry, CPU, Monitor(lambda event: lines.append(event.get("message"))))
    assert after.predicted is None
    assert after.deformation is None
    assert [c.kept for c in after.candidates if c.stage == "mscgunet"] == [False]
    assert any("MSCGUNet" in str(line) for line in lines)


def test_a_published_checkpoint_is_asked_as_it_was_trained(shared_data, tmp_path, monkeypatch):
    """Imported, it runs on our cube; the CT in its own window: level 50, width 350 HU."""
    monkeypatch.setenv("WEAKTUMOUR_MODELS", str(tmp_path / "models"))
    entry = models.import_model(shared_data.parent / "reference" / "mscgunet_published.pth", "published")
    from weaktumour.registration import prediction

    seen = []
    network = models.load(entry, CPU)
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs))
    monkeypatch.setattr(prediction, "load", lambda entry, device: network)
    scan = ball_scan((0, 0, 0))
    predicted = predict(scan, scan, Affine.identity(), entry, CPU, Monitor())
    assert np.isfinite(predicted.transform.displacement_mm).all()
    assert predicted.grid.spacing == (2 * SPACING,) * 3
    ((fixed, moving),) = seen
    assert fixed.shape == moving.shape
    hu = -160 + 400 * moving  # what our window's values mean
    assert torch.allclose(fixed, ((hu - (50 - 175)) / 350).clamp(0, 1), atol=1e-6)


def test_a_missing_default_is_said(monkeypatch):
    """An installation without weights registers all the same, and says what it does without."""
    monkeypatch.setattr(pipeline, "default_id", lambda task: None)
    lines = []
    monitor = Monitor(lambda event: lines.append(event.get("message", "")))
    arguments = pipeline.RegisterArguments(mr="m", ct="c", out="o")
    networks = pipeline._choose_models(arguments, pipeline.STAGES, monitor)
    assert (networks.registration, networks.segmentation) == (None, None)
    assert sum("does without" in line for line in lines) == 2


def test_it_is_asked_by_default(registered_result):
    content = json.loads((registered_result / "result.json").read_text(encoding="utf-8"))
    assert "mscgunet" in content["settings"]["stages"]
    assert [c["stage"] for c in content["registration"]["candidates"]].count("mscgunet") == 1
