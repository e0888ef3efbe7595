"""`weaktumour evaluate`: the CHAOS metrics against scipy, the table by hand, folds and intervals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage
from scipy.spatial import cKDTree

from weaktumour import cli
from weaktumour.cases import Case, write_case, write_single
from weaktumour.errors import InputError
from weaktumour.evaluation import chaos, evaluate
from weaktumour.volumes import Grid, Volume, read_volume, write_volume

SPACING = (1.3, 0.8, 2.5)  # x, y, z


# -- the metrics --------------------------------------------------------------------------------------------------
def by_scipy(predicted: np.ndarray, truth: np.ndarray, spacing) -> dict[str, float]:
    """The challenge's definitions anew: erosion by scipy, distances by a k-d tree over voxel centres."""
    cross = ndimage.generate_binary_structure(3, 1)
    points = [
        np.argwhere(m & ~ndimage.binary_erosion(m, cross, border_value=1)) * np.asarray(spacing)[::-1]
        for m in (predicted, truth)
    ]
    distances = np.concatenate([cKDTree(points[1]).query(points[0])[0], cKDTree(points[0]).query(points[1])[0]])
    return {
        "dice": 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()),
        "ravd_percent": 100 * abs(int(predicted.sum()) - int(truth.sum())) / truth.sum(),
        "assd_mm": distances.mean(),
        "mssd_mm": distances.max(),
    }


def blob(seed: int, shape=(30, 34, 38), threshold: float = 0.02) -> np.ndarray:
    """A ragged mask with holes and islands, which may reach the image's border."""
    noise = np.random.default_rng(seed).normal(size=shape)
    return ndimage.gaussian_filter(noise, 3.0) > threshold


@pytest.mark.parametrize("seed", range(4))
def test_metrics_agree_with_scipy(seed):
    predicted, truth = blob(seed), blob(seed) & blob(seed + 100, threshold=-0.05)
    ours = chaos.chaos_metrics(predicted, truth, SPACING)
    for name, value in by_scipy(predicted, truth, SPACING).items():
        assert ours[name] == pytest.approx(value, abs=1e-3), name


def test_metrics_agree_with_scipy_on_a_real_liver(shared_data):
    liver = read_volume(shared_data / "chaos_ct" / "liver.nii.gz", "liver")
    truth = liver.array > 0
    predicted = np.roll(ndimage.binary_opening(truth, iterations=3), (1, -2, 3), axis=(0, 1, 2))
    ours = chaos.chaos_metrics(predicted, truth, liver.grid.spacing)
    for name, value in by_scipy(predicted, truth, liver.grid.spacing).items():
        assert ours[name] == pytest.approx(value, abs=1e-3), name


def test_the_surface_is_border_voxels_and_not_what_our_own_metrics_take():
    cube = np.zeros((20, 20, 20), dtype=bool)
    cube[5:15, 5:15, 5:15] = True
    assert chaos.border_voxels(cube).sum() == 10**3 - 8**3
    cut_off = np.ones((4, 5, 6), dtype=bool)
    assert not chaos.border_voxels(cut_off).any()
    cut_off[:, :, 5] = False
    assert chaos.border_voxels(cut_off).sum() == 4 * 5
    inside = np.zeros_like(cube)
    inside[6:14, 6:14, 6:14] = True
    # Each border voxel of the smaller cube is one voxel off; those of the larger 1 or, at edges and corners, more.
    found = chaos.chaos_metrics(inside, cube, (1, 1, 1))
    outer = 6 * 64 + 12 * 8 * np.sqrt(2) + 8 * np.sqrt(3)
    inner = 8**3 - 6**3
    assert found["assd_mm"] == pytest.approx((outer + inner) / (10**3 - 8**3 + inner), abs=1e-6)
    assert found["mssd_mm"] == pytest.approx(np.sqrt(3), abs=1e-6)


@pytest.mark.parametrize(
    ("figures", "scores"),
    [
        ((1.0, 0.0, 0.0, 0.0), (100, 100, 100, 100)),
        ((0.8, 5.0, 15.0, 60.0), (80, 0, 0, 0)),
        ((0.799, 5.01, 15.1, 61.0), (0, 0, 0, 0)),
        ((0.978, 0.665, 0.734, 14.0), (97.8, 86.7, 95.1067, 76.6667)),  # the organisers' own example
    ],
)
def test_the_score_by_the_organisers_equations(figures, scores):
    named = dict(zip(chaos.METRICS, figures, strict=True))
    assert list(chaos.metric_scores(named).values()) == pytest.approx(scores, abs=1e-3)
    assert chaos.score(named) == pytest.approx(np.mean(scores), abs=1e-3)


def test_a_prediction_of_nothing_is_the_worst():
    truth = np.zeros((10, 10, 10), dtype=bool)
    truth[2:5, 2:5, 2:5] = True
    found = chaos.chaos_metrics(np.zeros_like(truth), truth, (1, 2, 2))
    assert found == {"dice": 0.0, "ravd_percent": 100.0, "assd_mm": 30.0, "mssd_mm": 30.0, "score": 0.0}
    with pytest.raises(ValueError, match="truth is empty"):
        chaos.chaos_metrics(truth, np.zeros_like(truth), (1, 2, 2))


# -- the table ----------------------------------------------------------------------------------------------------
GRID = Grid((24, 22, 20), (3.0, 3.0, 4.0), (0.0, 0.0, 0.0))


def label_map(shift: int = 0, tumours: int = 2) -> Volume:
    """A liver with tumours 2 and 3, moved along x by so many voxels."""
    array = np.zeros(GRID.shape, dtype=np.uint8)
    array[4:16, 4:18, 4 + shift : 18 + shift] = 1
    for number in range(tumours):
        array[6:9, 6 + 5 * number : 9 + 5 * number, 6 + shift : 9 + shift] = 2 + number
    return Volume(array, GRID)


def write_reference(folder: Path, name: str, looks: list[str] | None, tumours: int = 2, **info) -> None:
    image = Volume(np.random.default_rng(0).uniform(-100, 100, GRID.shape).astype(np.float32), GRID)
    simulation = {"simulation": {"tumours_in_ct": looks}} if looks else {}
    kind = "simulated" if looks else "clinical"
    case = Case(image, image, label_map(), {1: "Liver"}, label_map(tumours=tumours),
                info={"id": name, "kind": kind, **simulation, **info})  # fmt: skip
    write_case(folder / name, case)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Predictions moved by 0, 1 and 2 voxels, and their references: tumours invisible; one of each; not known."""
    for number, looks in enumerate((["invisible"] * 2, ["invisible", "visible"], None)):
        write_reference(tmp_path / "cohort", f"p{number}", looks)
        (tmp_path / "found" / f"p{number}").mkdir(parents=True)
        write_volume(label_map(number), tmp_path / "found" / f"p{number}" / "ct_labels.nii.gz")
    return tmp_path / "found", tmp_path / "cohort"


def rows_of(folders, **more) -> list[dict]:
    return [evaluate.evaluate(comparison, **more) for comparison in evaluate.comparisons(*folders)]


def test_tumours_go_into_the_row_of_how_the_ct_shows_them(folders):
    rows = rows_of(folders)
    assert [list(row["figures"]) for row in rows] == [
        ["visible healthy liver", "invisible tumours"],
        ["visible healthy liver", "invisible tumours", "visible tumours"],
        ["visible healthy liver", "tumours, visibility not known"],
    ]
    for shift, row in enumerate(rows):
        for name, size in (("visible healthy liver", 14), (list(row["figures"])[1], 3)):
            assert row["figures"][name]["dice"] == pytest.approx((size - shift) / size)
            assert row["figures"][name]["mssd_mm"] == pytest.approx(3.0 * shift)
    assert [row["false_tumour_ml"] for row in rows] == pytest.approx([0, 2 * 9 * 0.036, 2 * 18 * 0.036])


def test_values_that_mean_nothing_are_compared_as_one(folders):
    found, _ = folders
    for number in range(3):  # a segmentation: both tumours under one value
        path = found / f"p{number}" / "ct_labels.nii.gz"
        array = label_map(number).array
        write_volume(Volume(np.minimum(array, 2), GRID), path)
    by_label = rows_of(folders)[0]["figures"]["invisible tumours"]["dice"]
    assert by_label == pytest.approx(1.0)  # both are invisible and were taken together
    assert rows_of(folders)[1]["figures"]["visible tumours"]["dice"] == 0.0
    rows = rows_of(folders, match="any")
    assert list(rows[1]["figures"]) == ["visible healthy liver", "tumours, visible and invisible together"]
    assert rows[1]["figures"]["tumours, visible and invisible together"]["dice"] == pytest.approx(2 / 3)


def test_the_summary_is_the_mean_with_an_interval_that_holds_it(folders):
    table = evaluate.summary(rows_of(folders), replicates=500, seed=1)
    liver = table["visible healthy liver"]
    assert liver["patients"] == 3
    assert liver["dice"]["mean"] == pytest.approx((14 + 13 + 12) / 42)
    assert 12 / 14 <= liver["dice"]["low"] < liver["dice"]["mean"] < liver["dice"]["high"] <= 1
    assert liver == evaluate.summary(rows_of(folders), replicates=500, seed=1)["visible healthy liver"]
    assert liver != evaluate.summary(rows_of(folders), replicates=500, seed=2)["visible healthy liver"]
    assert np.isnan(table["visible tumours"]["dice"]["low"])  # one patient has no interval


def test_the_interval_has_the_coverage_that_it_names():
    """Against the theory: the mean of 40 normal values has a standard error of 1 / sqrt(40)."""
    values = np.random.default_rng(2).normal(size=(40, 1))
    low, high = evaluate.bootstrap_interval(values, range(40), 4000, seed=0)
    assert float(high[0] - low[0]) == pytest.approx(2 * 1.96 * values.std() / np.sqrt(40), rel=0.1)
    # Each value ten times, as ten images of one patient: no narrower.
    ten = np.repeat(values, 10, axis=0)
    clustered = evaluate.bootstrap_interval(ten, np.repeat(np.arange(40), 10), 4000, seed=0)
    assert np.allclose(clustered, (low, high))


def test_label_maps_of_one_person_are_one_patient(tmp_path):
    for number, subjects in enumerate((["a"], ["a", "b"], ["c"])):
        write_reference(tmp_path / "cohort", f"p{number}", None, subjects=subjects)
        write_volume(label_map(number), tmp_path / f"p{number}.nii.gz")
    line = evaluate.summary(rows_of((tmp_path, tmp_path / "cohort")))["visible healthy liver"]
    assert (line["patients"], line["label_maps"]) == (2, 3)


# -- the command --------------------------------------------------------------------------------------------------
def test_folds_take_what_they_test(folders, tmp_path, capsys):
    found, cohort = folders
    (found / "fold-1").mkdir()
    shutil.move(found / "p2", found / "fold-1" / "p2")
    content = {"schema": 1, "folds": [{"train": ["p2"], "test": ["p1"]}, {"train": ["p1"], "test": ["p2"]}]}
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps(content))
    line = ["evaluate", str(found), str(cohort), "--splits", str(splits), "--out", str(tmp_path / "out")]
    assert cli.main([*line, "--replicates", "100"]) == 0
    assert "2 folds, each patient tested in one of them" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert [(row["patient"], row["fold"]) for row in written["rows"]] == [("p1", 0), ("p2", 1)]
    assert written["summary"]["visible healthy liver"]["dice"]["mean"] == pytest.approx((13 + 12) / 28)
    text = (tmp_path / "out" / "evaluation.md").read_text()
    assert "| fold 1 | visible healthy liver | 1 | 0.857 |" in text
    assert "| p1 | invisible tumours | 0.667 |" in text


def commands_of(page: str, command: str) -> list[list[str]]:
    """The words of each line of a page that gives a command, with what its block sets before."""
    lines = (Path(__file__).parents[2] / page).read_text(encoding="utf-8").splitlines()
    (fold,) = [line[6:-1] for line in lines if line.startswith('fold="')] or [""]
    return [line.replace("$fold", fold).split()[1:] for line in lines if line.startswith(f"weaktumour {command}")]


def test_the_tutorials_evaluation(folders, tmp_path, capsys, monkeypatch):
    """Step 4 of Resources/from_corrections.md, where fold 0 holds out p1 and p2 and the CT of p2 has no labels."""
    _, cohort = folders
    (cohort / "p2" / "ct_labels.nii.gz").unlink()
    content = {"schema": 1, "folds": [{"train": ["p0"], "test": ["p1", "p2"]}, {"train": ["p1", "p2"], "test": ["p0"]}]}
    (tmp_path / "splits.json").write_text(json.dumps(content))
    for number, name in enumerate(("before", "after")):
        (tmp_path / f"unet-{name}" / "fold-0").mkdir(parents=True)
        for case in ("p1", "p2"):
            found = label_map(1 - number)
            (tmp_path / name / "fold-0" / "results" / case).mkdir(parents=True)
            write_volume(found, tmp_path / name / "fold-0" / "results" / case / "ct_labels.nii.gz")
            write_volume(found, tmp_path / f"unet-{name}" / "fold-0" / f"{case}.nii.gz")
    monkeypatch.chdir(tmp_path)
    commands = commands_of("Resources/from_corrections.md", "evaluate ")
    assert len(commands) == 4
    for command in commands:
        assert cli.main(command) == 0
        told = capsys.readouterr().out
        assert "Left out, since nobody labelled the CT (no ct_labels.nii.gz): p2" in told
        assert "1 label maps, fold 0 of 0 to 1, its test part." in told
    names = ("before", "after", "unet-before", "unet-after")
    figures = [json.loads((tmp_path / f"figures/{n}-0/evaluation.json").read_text()) for n in names]
    assert [[row["patient"] for row in content["rows"]] for content in figures] == [["p1"]] * 4
    means = [content["summary"]["visible healthy liver"]["dice"]["mean"] for content in figures]
    assert means == pytest.approx([13 / 14, 1.0] * 2)
    assert cli.main(commands[0]) == 2  # nothing is replaced unasked
    assert "is not empty; choose another folder, or add --overwrite." in capsys.readouterr().err
    assert cli.main([*commands[0], "--overwrite"]) == 0
    capsys.readouterr()

    (tmp_path / "unet-before" / "fold-0" / "p1.nii.gz").unlink()  # a CT without a liver, says the shipped network
    assert cli.main([*commands[2], "--overwrite"]) == 2
    assert "holds no prediction at all" in capsys.readouterr().err
    for fold in ("2", "-1"):
        assert cli.main(["evaluate", "unet-after", "cohort", "--splits", "splits.json", "--fold", fold]) == 2
        assert "--splits has the folds 0 to 1" in capsys.readouterr().err
    assert cli.main(["evaluate", "unet-after", "cohort", "--fold", "0"]) == 2
    assert "give both or neither" in capsys.readouterr().err


def test_cts_without_an_mri_are_left_out_of_what_was_registered(folders, tmp_path, capsys, monkeypatch):
    """The last line of README's block on cohorts, whose public data hold such CTs."""
    found, cohort = folders
    write_single(cohort / "alone-ct", "ct", label_map(), label_map(), {1: "Liver"}, {"id": "alone", "kind": "clinical"})
    folds = [{"train": ["p1", "p2"], "test": ["p0", "alone-ct"]}, {"train": ["p0", "alone-ct"], "test": ["p1", "p2"]}]
    (tmp_path / "splits.json").write_text(json.dumps({"schema": 1, "folds": folds}))
    shutil.move(found, tmp_path / "run" / "results")
    for result in (tmp_path / "run" / "results").iterdir():
        (result / "result.json").write_text("{}")  # as registration leaves it
    monkeypatch.chdir(tmp_path)
    (command,) = commands_of("README.md", "evaluate run/")
    assert cli.main(command) == 0
    assert "no MRI to carry labels from: alone-ct" in capsys.readouterr().out
    text = (tmp_path / "figures/evaluation.md").read_text()
    assert "1 CTs without an MRI are left out." in text
    assert "| visible healthy liver | 3 |" in text
    assert cli.main(["evaluate", "run/results", "cohort", "--missing", "empty"]) == 0
    assert "| visible healthy liver | 3 |" in capsys.readouterr().out

    # What `segment` found could have been found in that CT, too.
    for name in ("p0", "p1", "p2"):
        shutil.copy(tmp_path / "run" / "results" / name / "ct_labels.nii.gz", tmp_path / f"{name}.nii.gz")
    assert cli.main(["evaluate", ".", "cohort"]) == 2
    assert "there is no prediction for alone-ct" in capsys.readouterr().err
    assert cli.main(["evaluate", ".", "cohort", "--missing", "empty"]) == 0
    assert "| visible healthy liver | 4 |" in capsys.readouterr().out
    (tmp_path / "nothing").mkdir()
    for name in ("p0", "p1", "p2"):
        shutil.rmtree(cohort / name)
    assert cli.main(["evaluate", "nothing", "cohort", "--missing", "empty"]) == 2
    assert "holds no prediction at all" in capsys.readouterr().err


def test_a_missing_prediction_counts_as_empty_where_asked(folders, capsys):
    found, cohort = folders
    shutil.rmtree(found / "p0")
    assert cli.main(["evaluate", str(found), str(cohort)]) == 2
    assert "let it count as empty with --missing empty" in capsys.readouterr().err
    assert cli.main(["evaluate", str(found), str(cohort), "--missing", "empty"]) == 0
    told = capsys.readouterr().out
    assert "1 cases have no prediction and count as empty." in told
    assert f"| visible healthy liver | 3 | {(0 + 13 + 12) / 42:.3f}" in told


def test_labels_of_another_scheme_are_what_their_json_says(folders):
    """5 liver, 7 and 9 tumours, 1 and 3 something else; at last the prediction knows no tumour 7."""
    found, cohort = folders
    before = rows_of(folders)[1]["figures"]

    def renumbered(path: Path, named: dict[int, str], drop: int = 0) -> None:
        array = label_map(int(path.parent == found / "p1")).array
        new = np.zeros_like(array)
        for old, value in ((1, 5), (2, 7), (3, 9)):
            new[array == old] = 5 if value == drop else value
        new[0, :5], new[1, :5] = 1, 3
        write_volume(Volume(new, GRID), path)
        entries = [{"value": v, "name": str(v), "role": role} for v, role in named.items()]
        (path.parent / "labels.json").write_text(json.dumps({"schema": 1, "labels": entries}))

    roles = {1: "other", 3: "other", 5: "liver", 7: "tumour", 9: "tumour"}
    renumbered(found / "p1" / "ct_labels.nii.gz", roles)
    assert rows_of(folders)[1]["figures"] == before  # one of ours, one of theirs
    renumbered(cohort / "p1" / "ct_labels.nii.gz", roles)
    assert rows_of(folders)[1]["figures"] == before
    del roles[7]
    renumbered(found / "p1" / "ct_labels.nii.gz", roles, drop=7)
    row = rows_of(folders)[1]
    assert row["figures"]["invisible tumours"]["dice"] == 0
    assert row["figures"]["visible tumours"] == before["visible tumours"]
    assert row["false_tumour_ml"] == pytest.approx(9 * 0.036)


def test_one_result_and_its_case(simulated_case, registered_result, tmp_path):
    """The demo's own folders: how the CT shows the tumours is known from the case."""
    (found,) = evaluate.comparisons(registered_result, simulated_case)
    assert evaluate.evaluate(found, "label")["figures"].keys() == {evaluate.LIVER, evaluate.TUMOURS["invisible"]}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"the prediction .*empty.* does not exist; give a result folder"):
        evaluate.comparisons(tmp_path / "empty", simulated_case)


def test_two_files_and_an_empty_prediction(tmp_path, capsys):
    write_volume(label_map(), tmp_path / "truth.nii.gz")
    nothing = Volume(np.zeros(GRID.shape, dtype=np.uint8), GRID)
    write_volume(nothing, tmp_path / "found.nii.gz")
    assert cli.main(["evaluate", str(tmp_path / "found.nii.gz"), str(tmp_path / "truth.nii.gz")]) == 0
    assert "| visible healthy liver | 1 | 0.000 | 100.00 |" in capsys.readouterr().out
    assert cli.main(["evaluate", str(tmp_path / "truth.nii.gz"), str(tmp_path / "truth.nii.gz")]) == 0
    assert "| visible healthy liver | 1 | 1.000 | 0.00 | 0.00 | 0.00 | 100.0 |" in capsys.readouterr().out


def test_tumours_that_nobody_has_are_counted(tmp_path, capsys):
    people = {"pairing": "different_people", "subjects": ["a", "b"]}
    write_reference(tmp_path / "cohort", "healthy", None, tumours=0, **people)
    write_volume(label_map(), tmp_path / "healthy.nii.gz")
    assert cli.main(["evaluate", str(tmp_path), str(tmp_path / "cohort")]) == 0
    text = capsys.readouterr().out
    assert "1 references have no tumour; in 1 of these the prediction claims one." in text
    assert f"{54 * 0.036:.1f} ml a patient" in text
    assert "In 1 of these cases MRI and CT are of different people" in text


def test_what_cannot_be_compared_is_refused(folders, tmp_path):
    found, cohort = folders
    write_reference(cohort, "q", None)
    with pytest.raises(InputError, match="no prediction for q"):
        evaluate.comparisons(found, cohort)
    sitk.WriteImage(label_map().to_image()[1:, :, :], str(found / "q.nii.gz"))
    with pytest.raises(InputError, match="Prediction q: it lies on another grid"):
        evaluate.evaluate(evaluate.comparisons(found, cohort)[-1])
    with pytest.raises(InputError, match="are no folder"):
        evaluate.comparisons(tmp_path / "absent", cohort)
    with pytest.raises(InputError, match="holds no case with a ct_labels"):
        evaluate.comparisons(found, tmp_path)
