"""Cohorts: public data come in voxel by voxel, checks find what is wrong, splits keep patients whole."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from chaos_folder import GREY_LEVELS, write_ground, write_series
from weaktumour import cli
from weaktumour.cases import Case, read_case, read_case_info, subjects_of, write_case, write_single
from weaktumour.datasets import chaos
from weaktumour.datasets.check import Entry, check_case, check_cohort, fingerprint
from weaktumour.datasets.splits import Fold, check_leaks, make_folds, read_splits
from weaktumour.errors import InputError
from weaktumour.volumes import Grid, Volume, read_volume

HEAD_FIRST = [True, False]


# -- CHAOS --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real_ct(shared_data: Path) -> tuple[sitk.Image, np.ndarray]:
    """A real CHAOS CT, every second voxel in the plane, and its liver (z, y, x) as 0 and 1."""
    image, liver = (sitk.ReadImage(str(shared_data / "chaos_ct" / f"{name}.nii.gz")) for name in ("ct", "liver"))
    return image[::2, ::2, 20:60], sitk.GetArrayFromImage(liver[::2, ::2, 20:60])


def ct_folder(source: Path, real_ct, head_first: bool, number: str = "1", **series) -> Path:
    image, liver = real_ct
    folder = source / "CT" / number
    write_series(folder / "DICOM_anon", image, head_first=head_first, **series)
    write_ground(folder / "Ground", (255 * liver).astype(np.uint8), head_first=head_first)
    return folder


def organ_map(liver: np.ndarray) -> np.ndarray:
    """The liver as 1, and boxes beside it as 2, 3 and 4."""
    organs = liver.astype(np.uint8)
    for value, place in ((2, (slice(2, 8), slice(0, 9))), (3, (slice(4, 9), slice(80, 99))), (4, (slice(9, 20), 50))):
        organs[place][organs[place] == 0] = value
    return organs


def mr_folder(source: Path, real_ct, head_first: bool, number: str = "1") -> np.ndarray:
    """T1DUAL with its two phases counted in turn, as the challenge's files are, and T2SPIR; returns the organs."""
    image, liver = real_ct
    organs = organ_map(liver)
    grey = np.zeros_like(organs)
    for value, level in GREY_LEVELS.items():
        grey[organs == value] = level
    number_of_slices = len(organs)
    even, odd = range(2, 2 * number_of_slices + 1, 2), range(1, 2 * number_of_slices, 2)
    named = {"head_first": head_first, "name": "IMG-0004-{:05d}.dcm"}
    folder = source / "MR" / number
    write_series(folder / "T1DUAL/DICOM_anon/InPhase", image, numbers=odd, **named)
    write_series(folder / "T1DUAL/DICOM_anon/OutPhase", image + 7, numbers=even, **named)
    write_series(folder / "T2SPIR/DICOM_anon", image + 9, **named)
    write_ground(folder / "T1DUAL/Ground", grey, head_first=head_first, name="IMG-0004-{:05d}.png", numbers=even)
    write_ground(folder / "T2SPIR/Ground", grey, head_first=head_first, name="IMG-0004-{:05d}.png")
    return organs


@pytest.mark.parametrize("head_first", HEAD_FIRST)
def test_a_chaos_ct_comes_in_voxel_by_voxel(tmp_path, real_ct, head_first):
    """Whichever way the slices were counted: the volume is the source, and the labels lie where its liver is."""
    ct_folder(tmp_path, real_ct, head_first, own_series=head_first)
    (subject,), none = chaos.subjects_in(tmp_path)
    image, labels = chaos.read_ct(subject)
    source, liver = real_ct
    assert none == []
    assert np.array_equal(image.array, sitk.GetArrayFromImage(source))
    assert np.array_equal(labels.array, liver)
    assert image.grid.same_as(Grid.of(source))
    assert labels.grid.same_as(image.grid)


@pytest.mark.parametrize("head_first", HEAD_FIRST)
def test_a_chaos_mr_has_three_images_and_four_organs(tmp_path, real_ct, head_first):
    organs = mr_folder(tmp_path, real_ct, head_first)
    _, (subject,) = chaos.subjects_in(tmp_path)
    for sequence, added in (("t1-in", 0), ("t1-out", 7), ("t2", 9)):
        image, labels = chaos.read_mr(subject, sequence)
        assert np.array_equal(image.array, sitk.GetArrayFromImage(real_ct[0]) + added)
        assert np.array_equal(labels.array, organs)


def test_grey_levels_are_organs_by_the_organisers_ranges():
    grey = np.array([0, 55, 63, 70, 110, 126, 135, 175, 189, 200, 240, 252, 255], dtype=np.uint8)
    assert chaos.organs_of(grey, "MR").tolist() == [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    with pytest.raises(InputError, match=r"MR: 1 pixels .* such as 90"):
        chaos.organs_of(np.array([63, 90], dtype=np.uint8), "MR")


def reverse_pngs(folder: Path) -> None:
    files = sorted(folder.glob("*.png"))
    contents = [file.read_bytes() for file in files]
    for file, content in zip(files, reversed(contents), strict=True):
        file.write_bytes(content)


def mirror_pngs(folder: Path) -> None:
    for file in folder.glob("*.png"):
        sitk.WriteImage(sitk.ReadImage(str(file))[::-1, :], str(file))


def drop_one(folder: Path) -> None:
    sorted(folder.glob("*.png"))[3].unlink()


def rename_slices(folder: Path) -> None:
    images = folder.parent / "DICOM_anon"
    first, second = images / "i0004,0000b.dcm", images / "i0011,0000b.dcm"
    first.rename(images / "x"), second.rename(first), (images / "x").rename(second)


def wrong_size(folder: Path) -> None:
    file = sorted(folder.glob("*.png"))[3]
    sitk.WriteImage(sitk.ReadImage(str(file))[1:, :], str(file))


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (reverse_pngs, "fit the image better in the reverse order of slices"),
        (mirror_pngs, "fit the image better left and right exchanged"),
        (drop_one, "40 DICOM images but 39 PNG files"),
        (rename_slices, "named in another order than their instance numbers"),
        (wrong_size, "liver_GT_003.png has 139 x 99 pixels"),
        (shutil.rmtree, "Ground is missing; only the challenge's training sets"),
    ],
)
def test_png_files_that_do_not_belong_to_the_slices_are_refused(tmp_path, real_ct, spoil, sentence):
    folder = ct_folder(tmp_path, real_ct, head_first=True)
    spoil(folder / "Ground")
    with pytest.raises(InputError, match=f"CHAOS CT 1: .*{sentence}"):
        chaos.read_ct(chaos.subjects_in(tmp_path)[0][0])


def test_importing_chaos_names_the_pair_for_what_it_is(tmp_path, real_ct, capsys):
    source = tmp_path / "Train_Sets"
    for number in ("2", "10"):
        ct_folder(source, real_ct, head_first=True, number=number)
    organs = mr_folder(source, real_ct, head_first=True, number="5")
    out = tmp_path / "cohort"
    assert cli.main(["dataset", "import", str(source), "--format", "chaos", "--out", str(out)]) == 0
    assert "different people" in capsys.readouterr().err
    assert sorted(path.name for path in out.iterdir()) == ["chaos-ct-10", "chaos-mr-05_chaos-ct-02"]
    case = read_case(out / "chaos-mr-05_chaos-ct-02")
    assert case.info["pairing"] == "different_people"
    assert subjects_of(case.info) == ("chaos-mr-05", "chaos-ct-02")
    assert np.array_equal(case.mr_labels.array, organs == 1)  # the kidneys are no tumours
    assert np.array_equal(read_volume(out / "chaos-mr-05_chaos-ct-02/mr_organs.nii.gz", "organs").array, organs)
    assert np.array_equal(case.ct_labels.array, real_ct[1])
    assert case.info["ct_labels"] == "truth"
    with pytest.raises(InputError, match="pairing single"):
        read_case(out / "chaos-ct-10")
    assert "CHAOS^" not in (out / "chaos-ct-10/case.json").read_text()
    # The two CTs of this test are one image, under two names: the check says so.
    capsys.readouterr()
    assert cli.main(["dataset", "check", str(out)]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "chaos-mr-05_chaos-ct-02: its CT has the same voxels as that of chaos-ct-10, under another subject; "
        "remove one of the two, or list the common subject in both case.json.",
        "2 cases, 1 of them unusable.",
    ]
    assert cli.main(["dataset", "import", str(source), "--format", "chaos", "--out", str(out)]) == 2  # not empty
    assert cli.main(["dataset", "import", str(out), "--format", "chaos", "--out", str(tmp_path / "no")]) == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith("such as CHAOS_Train_Sets/Train_Sets.")


# -- Learn2Reg ----------------------------------------------------------------------------------------------------
def small_volume(seed: int, low: float = -200.0) -> Volume:
    grid = Grid((9, 8, 7), (20.0, 20.0, 25.0), (-80.0, 30.0, 5.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    return Volume(np.random.default_rng(seed).uniform(low, 250, grid.shape).astype(np.float32), grid)


def label_box(volume: Volume, value: int, tumour: int | None = None) -> Volume:
    array = np.zeros(volume.array.shape, dtype=np.uint8)
    array[2:5, 2:6, 2:6] = value
    if tumour is not None:
        array[3, 3:5, 3:5] = tumour
    return Volume(array, volume.grid)


@pytest.fixture
def learn2reg(tmp_path: Path) -> Path:
    """A patient with both images, two with one, and a pair of different people; liver 3, a lesion 7, a kidney 5."""
    folder = tmp_path / "AbdomenMRCT"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    names = ["0001_0000", "0001_0001", "0002_0000", "0003_0000", "0004_0001", "0005_0001"]
    for seed, name in enumerate(names):
        volume = small_volume(seed)
        labels = label_box(volume, 3, 7)
        labels.array[0] = 5
        for kind, content in (("images", volume), ("labels", labels)):
            sitk.WriteImage(content.to_image(), str(folder / f"{kind}Tr" / f"AbdomenMRCT_{name}.nii.gz"))
    image = "./imagesTr/AbdomenMRCT_{}.nii.gz"
    names_of_labels = {"0": "background", "3": "Liver", "5": "kidney", "7": "lesion"}
    content = {
        "name": "AbdomenMRCT",
        "modality": {"0": "MR", "1": "CT"},
        "labels": {"0": names_of_labels, "1": names_of_labels},
        "training": [{"image": image.format(name), "label": "..."} for name in names],
        "training_paired_images": [{"fixed": image.format("0002_0000"), "moving": image.format("0004_0001")}],
        "registration_val": [{"fixed": image.format("0001_0000"), "moving": image.format("0001_0001")}],
    }
    (folder / "AbdomenMRCT_dataset.json").write_text(json.dumps(content))
    return folder


def test_importing_learn2reg(tmp_path, learn2reg):
    out = tmp_path / "cohort"
    line = ["dataset", "import", str(learn2reg), "--format", "learn2reg", "--out", str(out)]
    assert cli.main([*line, "--label-map", "3=liver,7=tumour"]) == 0
    pairings = {path.name: read_case_info(path)["pairing"] for path in out.iterdir()}
    assert pairings == {
        "AbdomenMRCT_0001": "same_patient",
        "AbdomenMRCT_0002_AbdomenMRCT_0004": "different_people",
        "AbdomenMRCT_0003-mr": "single",
        "AbdomenMRCT_0005-ct": "single",
    }
    case = read_case(out / "AbdomenMRCT_0001")
    for volume, number in ((case.mr, 0), (case.ct, 1)):
        assert np.array_equal(volume.array, small_volume(number).array)
        assert volume.grid.same_as(small_volume(number).grid)
    assert np.array_equal(case.mr_labels.array, label_box(small_volume(0), 1, 2).array)
    assert case.label_names == {1: "Liver", 2: "Tumour 1"}
    assert check_cohort(out) == []
    shutil.rmtree(out)
    assert cli.main([*line, "--unpaired"]) == 0  # the liver by its name alone
    assert len(list(out.iterdir())) == 6
    single = read_volume(out / "AbdomenMRCT_0004-ct/ct_labels.nii.gz", "labels")
    assert np.array_equal(single.array, label_box(small_volume(4), 3, 7).array == 3)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda content: content.pop("modality"), "does not describe images"),
        (lambda content: content.update(modality={"0": "MR", "1": "US"}), "does not describe images"),
        (lambda content: content.update(labels={"0": "background", "1": "spleen"}), 'names no label "liver"'),
        (lambda content: content["training"].append({"image": "imagesTr/x_0000.nii.gz"}), "missing; restore"),
        (
            lambda content: content["registration_val"].append(
                {"fixed": content["training"][0]["image"], "moving": content["training"][2]["image"]}
            ),
            "are a pair in .* but no MR and CT",
        ),
    ],
)
def test_a_learn2reg_set_that_cannot_be_used_is_refused(tmp_path, learn2reg, capsys, change, sentence):
    path = learn2reg / "AbdomenMRCT_dataset.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    line = ["dataset", "import", str(learn2reg), "--format", "learn2reg", "--out", str(tmp_path / "cohort")]
    assert cli.main(line) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("weaktumour: Learn2Reg: ")
    assert re.search(sentence, error)
    assert not (tmp_path / "cohort").exists()


# -- check --------------------------------------------------------------------------------------------------------
def small_case(seed: int, **info) -> Case:
    mr, ct = small_volume(2 * seed, 0.0), small_volume(2 * seed + 1)
    return Case(mr, ct, label_box(mr, 1, 2), {1: "Liver", 2: "Tumour 1"}, label_box(ct, 1, 2),
                info={"id": f"case-{seed}", "kind": "clinical", "ct_labels": "truth", **info})  # fmt: skip


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    for seed in range(3):
        write_case(tmp_path / "cohort" / f"case-{seed}", small_case(seed))
    return tmp_path / "cohort"


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def write(volume: Volume, path: Path) -> None:
    sitk.WriteImage(volume.to_image(), str(path))


def shifted(volume: Volume, by_mm: float) -> Volume:
    grid = volume.grid
    return Volume(
        volume.array, Grid(grid.size, grid.spacing, (grid.origin[0] + by_mm, *grid.origin[1:]), grid.direction)
    )


def finer(volume: Volume) -> Volume:
    """The same, each voxel cut in two along x."""
    grid = volume.grid
    half = (grid.spacing[0] / 2, *grid.spacing[1:])
    origin = (grid.origin[0] - half[0] / 2, *grid.origin[1:])
    size = (2 * grid.size[0], *grid.size[1:])
    return Volume(np.repeat(volume.array, 2, axis=2), Grid(size, half, origin, grid.direction))


def name_in_header(path: Path) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[148:160] = b"Doe^Jane    "
    path.write_bytes(gzip.compress(bytes(data)))


SPOILT = {
    "no case.json": (lambda f: (f / "case.json").unlink(), "holds no case.json"),
    "kind": (lambda f: edit_json(f / "case.json", kind="dreamt"), "says kind 'dreamt'"),
    "pairing": (lambda f: edit_json(f / "case.json", pairing="twins"), "says pairing 'twins'"),
    "people": (lambda f: edit_json(f / "case.json", pairing="different_people"), "does not list both in subjects"),
    "id": (lambda f: edit_json(f / "case.json", id="case-0"), "the id case-0 of case-0"),
    "no id": (lambda f: (f / "case.json").write_text('{"schema": 1, "kind": "clinical"}'), "case.json has no id"),
    "MR grid": (lambda f: write(finer(small_case(1).mr_labels), f / "mr_labels.nii.gz"), "the MRI's own grid"),
    "missing": (lambda f: (f / "mr.nii.gz").unlink(), "MRI: .* does not exist"),
    "cut off": (lambda f: (f / "ct.nii.gz").write_bytes((f / "ct.nii.gz").read_bytes()[:900]), "CT: ct.nii.gz"),
    "not Hounsfield": (lambda f: write(small_volume(7, 0.0), f / "ct.nii.gz"), "cannot be Hounsfield units"),
    "other grid": (lambda f: write(shifted(small_case(1).ct_labels, 5.0), f / "ct_labels.nii.gz"), "the CT's own grid"),
    "beside": (lambda f: write(shifted(small_case(1).mr_labels, 500.0), f / "mr_labels.nii.gz"), "lie outside the MRI"),
    "no liver": (lambda f: write(label_box(small_case(1).mr, 2), f / "mr_labels.nii.gz"), "no voxel is liver"),
    "points": (lambda f: (f / "truth_points.csv").write_text("1,2"), "not a table"),
    "key": (lambda f: edit_json(f / "case.json", PatientName="x"), 'an entry "PatientName"'),
    "birth": (lambda f: edit_json(f / "case.json", note={"seen": "1961-04-30"}), 'a name or a date in "seen"'),
    "header": (lambda f: name_in_header(f / "mr.nii.gz"), "mr.nii.gz carries a name"),
    "DICOM": (lambda f: (f / "IM1.dcm").write_text(""), "IM1.dcm is a DICOM file"),
    "same image": (lambda f: shutil.copy(f.parent / "case-0/mr.nii.gz", f), "same voxels as that of case-0"),
}  # fmt: skip


@pytest.mark.parametrize("spoil", SPOILT)
def test_check_names_what_is_unusable(cohort, capsys, spoil):
    change, sentence = SPOILT[spoil]
    change(cohort / "case-1")
    assert cli.main(["dataset", "check", str(cohort)]) == 2
    line, last = capsys.readouterr().out.splitlines()
    assert line.startswith("case-1: ")
    assert re.search(sentence, line)
    assert last == "3 cases, 1 of them unusable."


def test_check_passes_what_is_right_and_notes_the_rest(cohort, capsys):
    write_single(cohort / "alone", "ct", small_volume(50), label_box(small_volume(50), 1), {1: "Liver"},
                 {"id": "alone", "kind": "clinical", "ct_labels": "truth"})  # fmt: skip
    (cohort / "case-7.partial-123").mkdir()
    assert cli.main(["dataset", "check", str(cohort)]) == 0
    assert capsys.readouterr().out == "4 cases, 0 of them unusable.\n"
    (cohort / "case-2/labels.json").unlink()
    assert cli.main(["dataset", "check", str(cohort)]) == 0
    assert "case-2: note: labels.json: no name for the value 1 of the MRI labels" in capsys.readouterr().out
    assert cli.main(["dataset", "check", str(cohort / "absent")]) == 2


def test_a_simulated_case_passes(simulated_case):
    problems, entry = check_case(simulated_case)
    assert problems == []
    assert entry.subjects == ("weaktumour.simulation, phantom, seed 1",)


def test_a_case_says_whose_images_it_holds(tmp_path):
    assert subjects_of(small_case(1).info) == ("case-1",)
    assert subjects_of(small_case(1, subjects=["a", "b"]).info) == ("a", "b")
    of_a_map = {"kind": "simulated", "source": "weaktumour.simulation, map-7", "id": "x", "simulation": {"seed": 4}}
    assert subjects_of(of_a_map) == ("weaktumour.simulation, map-7",)  # whatever the seed
    with pytest.raises(ValueError, match="'twins' is none of"):
        write_case(tmp_path / "new", small_case(1, pairing="twins"))
    with pytest.raises(ValueError, match="use write_single"):
        write_case(tmp_path / "new", small_case(1, pairing="single"))
    with pytest.raises(ValueError, match="neither mr nor ct"):
        write_single(tmp_path / "new", "pet", small_volume(0), small_volume(0), {}, {"id": "x", "kind": "clinical"})
    assert not (tmp_path / "new").exists()


def test_an_image_is_known_again_however_it_is_stored():
    volume = small_volume(3)
    turned = Volume.from_image(sitk.DICOMOrient(volume.to_image(), "ASR"))
    assert turned.array.shape != volume.array.shape
    assert fingerprint(turned) == fingerprint(volume) == fingerprint(shifted(volume, 3.0))
    other = volume.array.copy()
    other[3, 3, 3] += 1
    assert fingerprint(Volume(other, volume.grid)) != fingerprint(volume)


# -- split --------------------------------------------------------------------------------------------------------
def entries(*subjects: tuple[str, ...]) -> list[Entry]:
    return [Entry(f"c{k:02}", {"id": f"c{k}", "subjects": list(names)}, {"ct": f"sum{k}"}) for k, names in
            enumerate(subjects)]  # fmt: skip


def test_folds_test_each_case_once_and_keep_people_together():
    # c0 and c1 show one person; c2, c3 and c4 are a chain by way of people that two of them share.
    chain = entries(("a",), ("a",), ("p", "q"), ("q", "r"), ("r", "s"), *((f"x{k}",) for k in range(7)))
    folds = make_folds(chain, folds=4, seed=3)
    assert sorted(name for fold in folds for name in fold.test) == [entry.name for entry in chain]
    assert sorted(len(fold.test) for fold in folds) == [3, 3, 3, 3]
    for fold in folds:
        assert not set(fold.train) & set(fold.test)
        for together in ({"c00", "c01"}, {"c02", "c03", "c04"}):
            assert together <= set(fold.test) or together <= set(fold.train)
    check_leaks(folds, chain)
    assert folds == make_folds(chain, folds=4, seed=3)
    assert folds != make_folds(chain, folds=4, seed=4)
    (held_out,) = make_folds(chain, test=4, seed=1)
    assert 4 <= len(held_out.test) <= 6
    check_leaks([held_out], chain)


def test_leaks_and_duplicates_are_refused_with_a_sentence():
    three = entries(("a",), ("a",), ("b",))
    with pytest.raises(InputError, match="fold 0 learns from c00 and tests c01, which show the same person"):
        check_leaks([Fold(("c00", "c02"), ("c01",))], three)
    with pytest.raises(InputError, match="c09 is not in the cohort"):
        check_leaks([Fold(("c00",), ("c09",))], three)
    twice = [*three, Entry("copy", {"id": "copy"}, {"ct": "sum2"})]
    with pytest.raises(InputError, match="copy: its CT has the same voxels as that of c02"):
        make_folds(twice, folds=2)
    for wrong in ({"folds": 3}, {"folds": 1}, {"test": 0}, {"test": 3}, {"folds": 2, "test": 1}, {}):
        with pytest.raises(InputError, match=r"--folds|--test"):
            make_folds(three, **wrong)


def test_the_command_splits_once_and_checks(cohort, tmp_path, capsys):
    path = tmp_path / "splits.json"
    assert cli.main(["dataset", "split", str(cohort), "--out", str(path), "--folds", "3", "--seed", "5"]) == 0
    told = capsys.readouterr().out
    assert "3 cases of 3 patients" in told
    assert [line.split(":")[0] for line in told.splitlines()[:3]] == ["fold 0", "fold 1", "fold 2"]
    assert [len(fold.test) for fold in read_splits(path)] == [1, 1, 1]
    assert cli.main(["dataset", "check", str(cohort), "--splits", str(path)]) == 0
    assert "nobody is both learnt from and tested" in capsys.readouterr().out
    assert cli.main(["dataset", "split", str(cohort), "--out", str(path), "--folds", "3"]) == 2
    assert "a split that was used is never changed" in capsys.readouterr().err
    content = json.loads(path.read_text())
    for change, sentence in (
        (lambda folds: folds[0]["train"].append(folds[0]["test"][0]), "both learnt from and tested in fold 0"),
        (lambda folds: folds[1]["test"].extend(folds[0]["test"]), "in fold 1 of|two folds"),
    ):
        spoilt = json.loads(json.dumps(content))
        change(spoilt["folds"])
        (tmp_path / "spoilt.json").write_text(json.dumps(spoilt))
        with pytest.raises(InputError, match=sentence):
            read_splits(tmp_path / "spoilt.json")
    for case in ("case-1", "case-2"):
        edit_json(cohort / case / "case.json", subjects=["one-person"])
    assert cli.main(["dataset", "check", str(cohort), "--splits", str(path)]) == 2
    assert "show the same person" in capsys.readouterr().err
    shutil.copy(cohort / "case-0/ct.nii.gz", cohort / "case-1")
    assert cli.main(["dataset", "split", str(cohort), "--out", str(tmp_path / "new.json"), "--test", "1"]) == 2
    assert "case-1: its CT has the same voxels as that of case-0" in capsys.readouterr().err
