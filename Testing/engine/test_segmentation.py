"""Livers and tumours with the UNet: what becomes of its probabilities, and the shipped network on a phantom."""

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from weaktumour import cli, models, pipeline
from weaktumour.deformation import Affine
from weaktumour.errors import InputError, ModelError
from weaktumour.evaluation.metrics import dice
from weaktumour.labels import LIVER, TUMOUR, LabelMap, name_labels
from weaktumour.networks import build
from weaktumour.progress import Monitor
from weaktumour.registration.preparation import prepare_ct, prepare_mr
from weaktumour.segmentation import NoLiver, Segmentation, _probability, modality_of, segment
from weaktumour.volumes import Grid, Volume, read_volume, write_volume
from weaktumour.worker import run_here

GRID = Grid((40, 40, 40), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))


def ball(centre, radius_mm, grid=GRID):
    """(z, y, x) probability with a soft edge: 0.5 at the radius."""
    distance = np.linalg.norm(grid.points() - np.asarray(centre, dtype=float), axis=-1)
    return (1 / (1 + np.exp((distance - radius_mm) / 1.5))).astype(np.float32)


def found(liver, tumour=None):
    tumour = np.zeros_like(liver) if tumour is None else tumour
    liver = np.clip(liver - tumour, 0, 1)
    return Segmentation(np.stack((1 - liver - tumour, liver, tumour)), GRID)


def volume_ml(mask, grid):
    return mask.sum() * grid.voxel_volume_mm3 / 1000


# -- from probabilities to labels ---------------------------------------------------------------------------------
def test_surface_lies_between_the_voxels():
    """On a finer grid the ball's volume is right to 3 %: the probability is interpolated, not the mask."""
    fine = Grid((120, 120, 120), (1.0, 1.0, 1.0), (-1.0, -1.0, -1.0))
    labels = found(ball((60, 60, 60), 45.0)).labels_on(fine)
    assert volume_ml(labels.volume.array == 1, fine) == pytest.approx(4 / 3 * np.pi * 4.5**3, rel=0.03)


def test_only_the_largest_part_is_liver_and_it_has_no_holes():
    liver = np.maximum(ball((60, 60, 60), 42.0), ball((10, 10, 10), 9.0))
    liver[18:22, 18:22, 18:22] = 0.1
    mask = found(liver).liver().array > 0.5
    assert not mask[:6, :6, :6].any()
    assert mask[20, 20, 20]


def test_tumours_are_numbered_by_size_and_stay_in_the_liver():
    tumours = ball((45, 60, 60), 8.0) + ball((75, 60, 60), 12.0) + ball((60, 110, 60), 6.0)  # the last outside
    labels = found(ball((60, 60, 60), 42.0), np.clip(tumours, 0, 1)).labels_on(GRID)
    assert [label.name for label in labels.labels] == ["Liver", "Tumour 1", "Tumour 2"]
    index = GRID.world_to_index(np.array([[75.0, 60, 60], [45.0, 60, 60], [60.0, 110, 60]])).round().astype(int)
    assert [int(labels.volume.array[z, y, x]) for x, y, z in index] == [2, 3, 0]
    assert [label.role for label in labels.labels] == [LIVER, TUMOUR, TUMOUR]


def test_specks_are_no_tumours():
    labels = found(ball((60, 60, 60), 42.0), 0.9 * (ball((60, 60, 60), 2.0) > 0.5)).labels_on(GRID)
    assert not labels.tumours
    assert labels.volume.array.max() == 1


def test_vessels_taken_for_tumours_are_left_out():
    """A tube is, a ball is not, and a ball on a tube keeps its volume without it."""
    y, x = (GRID.points()[..., axis] for axis in (1, 0))
    tube = 1 / (1 + np.exp((np.hypot(y - 60, x - 45) - 2.5) / 0.7))
    liver, fine = ball((60, 60, 60), 42.0), GRID.with_spacing(1.0)
    assert not found(liver, (tube * (liver > 0.5)).astype(np.float32)).labels_on(fine).tumours
    alone = found(liver, ball((48, 60, 60), 9.0)).labels_on(fine)
    attached = found(liver, np.maximum(ball((48, 60, 60), 9.0), tube * (liver > 0.5)).astype(np.float32)).labels_on(
        fine
    )
    volume = 4 / 3 * np.pi * 0.9**3
    assert [label.role for label in alone.labels] == [label.role for label in attached.labels] == [LIVER, TUMOUR]
    assert volume_ml(alone.volume.array == 2, fine) == pytest.approx(volume, rel=0.1)
    assert volume_ml(attached.volume.array == 2, fine) == pytest.approx(volume, rel=0.25)


def test_small_tumours_are_found_wherever_they_lie():
    """From 10 mm on; the lattice's nodes may lie anywhere in them."""
    rng = np.random.default_rng(0)
    for diameter in (10.0, 12.0, 15.0):
        for _ in range(6):
            tumour = ball(60 + rng.uniform(-6, 6, 3), diameter / 2)
            labels = found(ball((60, 60, 60), 42.0), tumour).labels_on(GRID.with_spacing(1.0))
            assert len(labels.tumours) == 1
            volume = volume_ml(labels.volume.array == 2, labels.volume.grid)
            assert volume == pytest.approx(4 / 3 * np.pi * (diameter / 20) ** 3, rel=0.35)


def test_no_liver():
    with pytest.raises(NoLiver, match="upper abdomen"):
        found(ball((60, 60, 60), 12.0)).liver()


def test_slabs_give_what_one_piece_gives(monkeypatch):
    """A network that looks one voxel far: cutting must not show anywhere."""
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 3, 3, padding=1).eval()
    value = torch.rand(1, 1, 150, 12, 10)
    whole = _probability(network, value, Monitor())
    monkeypatch.setattr("weaktumour.segmentation._PIECE_VOXELS", 64 * 120)
    pieces = _probability(network, value, Monitor())
    assert np.abs(pieces - whole)[:, 1:-1].max() < 0.05  # the zero padding of a piece, faded out by the overlap
    assert np.abs(pieces - whole).mean() < 1e-3
    assert np.allclose(pieces.sum(0), 1, atol=1e-5)


def test_modality(simulated_patient):
    assert modality_of(simulated_patient.ct) == "ct"
    assert modality_of(simulated_patient.mr) == "mr"


# -- in the pipeline ----------------------------------------------------------------------------------------------
def inputs_of(case, labels):
    return pipeline.Inputs(case.mr, case.ct, labels, None, Affine.identity())


@pytest.fixture(scope="module")
def shipped():
    name = models.default_id("segmentation")
    assert name, "no segmentation model is shipped"
    return models.find(name, "segmentation")


def test_shipped_network_finds_the_livers(simulated_patient, shipped):
    for kind, image, truth in (
        ("mr", simulated_patient.mr, simulated_patient.mr_labels),
        ("ct", simulated_patient.ct, simulated_patient.ct_labels),
    ):
        labels = segment(image, kind, shipped, torch.device("cpu"), Monitor()).labels_on(image.grid)
        found = dice(labels.mask(LIVER, TUMOUR), truth.array > 0)
        assert found > {"mr": 0.85, "ct": 0.93}[kind], (kind, found)


def test_livers_that_nobody_drew(simulated_patient, shipped):
    """No labels at all: both livers are found, and which ones is kept."""
    completed = pipeline.find_livers(inputs_of(simulated_patient, None), shipped, torch.device("cpu"), Monitor())
    assert completed.found == ("mr", "ct")
    assert completed.labels.of_role(LIVER)
    assert dice(completed.ct_liver.resample_to(simulated_patient.ct.grid).array > 0.5,
                simulated_patient.ct_labels.array > 0) > 0.93  # fmt: skip


def test_given_livers_stay_as_they_are(simulated_patient, shipped):
    case = simulated_patient
    labels = LabelMap(case.mr_labels, name_labels(list(case.label_names), None, case.label_names))
    given = Volume(case.ct_labels.array > 0, case.ct.grid)
    inputs = pipeline.Inputs(case.mr, case.ct, labels, given, Affine.identity())
    assert pipeline.find_livers(inputs, shipped, torch.device("cpu"), Monitor()) == inputs


def test_tumours_without_a_liver_get_one(simulated_patient, shipped):
    """Tumours drawn by hand keep their values and voxels; the liver is added as 1."""
    case = simulated_patient
    only = np.where(case.mr_labels.array >= 2, case.mr_labels.array, 0)
    names = {value: name for value, name in case.label_names.items() if value >= 2}
    labels = LabelMap(Volume(only, case.mr.grid), name_labels(list(names), None, names))
    completed = pipeline.find_livers(inputs_of(case, labels), shipped, torch.device("cpu"), Monitor()).labels
    assert completed.of_role(LIVER)[0].value == 1
    assert np.array_equal(np.where(completed.volume.array >= 2, completed.volume.array, 0), only)
    assert dice(completed.volume.array > 0, case.mr_labels.array > 0) > 0.85


def test_without_liver_and_without_model(simulated_patient):
    with pytest.raises(InputError, match="segmentation model"):
        pipeline.find_livers(inputs_of(simulated_patient, None), None, torch.device("cpu"), Monitor())


def test_a_liver_of_another_size_is_not_used(simulated_patient, shipped):
    """A label of a tenth of the liver: the CT's liver is then not this one's, and the log says so."""
    case = simulated_patient
    part = np.where(case.mr_labels.array > 0, 1, 0).astype(np.uint8)
    index = np.argwhere(part)
    part[index[:, 0].min() + len(np.unique(index[:, 0])) // 4 :] = 0
    labels = LabelMap(Volume(part, case.mr.grid), name_labels([1], None))
    lines = []
    monitor = Monitor(lambda event: lines.append(event.get("message", "")))
    completed = pipeline.find_livers(inputs_of(case, labels), shipped, torch.device("cpu"), monitor)
    assert completed.ct_liver is None
    assert any("times the volume" in line for line in lines)


# -- the command --------------------------------------------------------------------------------------------------
def test_segment_command(simulated_case, tmp_path, capsys, shipped):
    out = tmp_path / "labels.nii.gz"
    assert cli.main(["segment", str(simulated_case / "ct.nii.gz"), "--out", str(out)], run=run_here) == 0
    labels, ct = read_volume(out, "labels"), read_volume(simulated_case / "ct.nii.gz", "CT")
    assert labels.grid == ct.grid
    assert dice(labels.array > 0, read_volume(simulated_case / "ct_labels.nii.gz", "truth").array > 0) > 0.93
    assert "Research use only" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["labels.nii.gz"]
    assert cli.main(["segment", str(simulated_case / "ct.nii.gz"), "--out", str(out)], run=run_here) == 2
    assert "add --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "words"), [("labels", "does not end in"), ("no/labels.nii.gz", "does not exist"), ("", "does not end in")]
)
def test_segment_refuses_bad_names(simulated_case, tmp_path, capsys, out, words):
    assert cli.main(["segment", str(simulated_case / "ct.nii.gz"), "--out", str(tmp_path / out)], run=run_here) == 2
    assert words in capsys.readouterr().err


def test_segment_an_image_without_a_liver(tmp_path, capsys, shipped):
    rng = np.random.default_rng(0)
    image = Volume(rng.normal(0, 20, (30, 30, 30)).astype(np.float32), Grid((30, 30, 30), (4.0,) * 3, (0.0,) * 3))
    write_volume(image, tmp_path / "image.nii.gz")
    assert cli.main(["segment", str(tmp_path / "image.nii.gz"), "--out", str(tmp_path / "l.nii.gz")], run=run_here) == 2
    assert "No liver was found" in capsys.readouterr().err
    assert not (tmp_path / "l.nii.gz").exists()


def test_a_model_of_another_make(tmp_path, monkeypatch, simulated_patient):
    """A UNet that says nothing of its input cannot be fed."""
    monkeypatch.setenv("WEAKTUMOUR_MODELS", str(tmp_path / "models"))
    arguments = {"in_channels": 1, "out_channels": 3, "widths": [4, 8]}
    metadata = {"task": "segmentation", "input": {}, "output": {}, "licence": "none", "training": {}, "figures": {},
                "description": ""}  # fmt: skip
    models.save_weights(tmp_path / "m.pt", build("unet", arguments), "unet", arguments, metadata)
    entry = models.import_model(tmp_path / "m.pt", "odd")
    with pytest.raises(ModelError, match="odd"):
        segment(simulated_patient.mr, "mr", entry, torch.device("cpu"), Monitor())


def test_air_round_the_body_is_no_liver_on_a_ct(tmp_path, monkeypatch, simulated_patient):
    """A network that calls everything liver is not believed farther than 5 mm from the CT's body, of tissue or lung."""
    monkeypatch.setenv("WEAKTUMOUR_MODELS", str(tmp_path / "models"))
    arguments = {"in_channels": 1, "out_channels": 3, "widths": [4, 8]}
    network = build("unet", arguments)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    network.heads[0].bias.data[1] = 1.0
    metadata = {"task": "segmentation", "input": {"spacing_mm": 5.0, "normalisation": "weaktumour-1"}, "output": {},
                "licence": "none", "training": {}, "figures": {}, "description": ""}  # fmt: skip
    models.save_weights(tmp_path / "m.pt", network, "unet", arguments, metadata)
    entry = models.import_model(tmp_path / "m.pt", "everything")
    mr, ct = (
        segment(getattr(simulated_patient, kind), kind, entry, torch.device("cpu"), Monitor()) for kind in ("mr", "ct")
    )
    body = prepare_ct(simulated_patient.ct, 5.0, None).body > 0.5
    far = ndimage.distance_transform_edt(~body) * 5.0
    liver = ct.probability[1]
    assert (liver[far <= 5.0] > 0.5).all()
    assert (liver[far > 9.0] == 0).all()
    assert ((far > 9.0) & (far < 20.0)).sum() > 1000, "the phantom has air to be called liver"
    assert np.allclose(ct.probability.sum(0), 1)
    assert (mr.probability[1] > 0.5).mean() > (prepare_mr(simulated_patient.mr, 5.0, None, None).body > 0.5).mean()


def test_result_names_its_models(registered_result):
    content = json.loads((registered_result / "result.json").read_text(encoding="utf-8"))
    assert {model["role"] for model in content["models"]} == {"registration", "segmentation"}
    assert content["settings"]["livers_found_by_network"] == ["ct"]
