"""Every bad input: exit 2, one plain sentence that names the input, no result folder, nothing left behind.

The command line is run in this process (its own child process costs seconds each); one case goes the whole way.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from weaktumour import cli, worker
from weaktumour.volumes import Grid, Volume, read_volume, write_volume

Files = dict[str, Path]
SIZE, SPACING = (24, 20, 16), (8.0, 8.0, 10.0)


# -- good inputs, to be spoilt ----------------------------------------------------------------------------------
def small_ct(seed: int = 0) -> np.ndarray:
    """(z, y, x) HU: a body in air, with noise."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZE[::-1]), indexing="ij")
    noise = np.random.default_rng(seed).normal(0, 20, x.shape)
    return np.where(x**2 + y**2 < 0.7, 40 + 30 * z, -1000) + noise


def small_labels() -> np.ndarray:
    labels = np.zeros(SIZE[::-1], np.uint8)
    labels[5:12, 6:14, 5:14] = 1
    labels[7:9, 8:10, 8:10] = 2
    return labels


GRID = Grid(SIZE, SPACING, (-90.0, -75.0, -70.0))


@pytest.fixture
def files(tmp_path) -> Files:
    folder = tmp_path / "in"
    folder.mkdir()
    write_volume(Volume(small_ct().astype(np.int16), GRID), folder / "ct.nii.gz")
    write_volume(Volume((small_ct(1) + 1100).astype(np.int16), GRID), folder / "mr.nii.gz")
    write_volume(Volume(small_labels(), GRID), folder / "labels.nii.gz")
    return {
        "mr": folder / "mr.nii.gz",
        "ct": folder / "ct.nii.gz",
        "mr_labels": folder / "labels.nii.gz",
        "out": tmp_path / "work" / "out",
    }


def run(arguments: dict[str, object], tmp_path: Path, capfd) -> tuple[int, list[str]]:
    """Exit code and the error lines. Checks what is true of every failure."""
    (tmp_path / "work").mkdir(exist_ok=True)
    before = everything(tmp_path)
    line = ["register"]
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        line += [flag] if value is True else [flag, str(value)]
    code = cli.main(line, run=worker.run_here)
    stderr = capfd.readouterr().err.splitlines()
    assert everything(tmp_path) == before, "something was left behind"
    errors = [text for text in stderr if not text.lstrip()[:3].strip(" %").isdigit()]
    assert len(errors) == 1, f"more than one line: {stderr}"
    assert errors[0].startswith("weaktumour: ")
    assert errors[0].endswith(".")
    assert "Traceback" not in errors[0]
    return code, errors


def everything(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


# -- ways to spoil them -----------------------------------------------------------------------------------------
def edit_voxels(name: str, change: Callable[[np.ndarray], np.ndarray]):
    def spoiler(files: Files) -> None:
        volume = read_volume(files[name], name)
        sitk.WriteImage(Volume(change(volume.array), volume.grid).to_image(), str(files[name]))

    return spoiler


def edit_bytes(name: str, suffix: str, change: Callable[[bytearray], None]):
    """Rewrite an input in another format and change its bytes."""

    def spoiler(files: Files) -> None:
        path = files[name].with_name(f"spoilt{suffix}")
        sitk.WriteImage(sitk.ReadImage(str(files[name])), str(path))
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)
        files[name] = path

    return spoiler


def put(offset: int, form: str, *values: float) -> Callable[[bytearray], None]:
    return lambda content: struct.pack_into(form, content, offset, *values)


def swap(old: bytes, new: bytes) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        assert old in content
        content[:] = bytes(content).replace(old, new, 1)

    return change


def cut(content: bytearray) -> None:
    del content[len(content) * 2 // 3 :]


def sheared_sform(content: bytearray) -> None:
    x, y, z = SPACING
    # The qform stays as it was, perpendicular: ITK alone would take it and say nothing.
    struct.pack_into("<12f", content, 280, -x, 0.2 * y, 0, 90, 0, -0.98 * y, 0, 75, 0, 0, z, -70)


def write(name: str, filename: str, content: bytes):
    def spoiler(files: Files) -> None:
        files[name] = files[name].with_name(filename)
        files[name].write_bytes(content)

    return spoiler


def image(name: str, filename: str, make: Callable[[], sitk.Image]):
    def spoiler(files: Files) -> None:
        files[name] = files[name].with_name(filename)
        sitk.WriteImage(make(), str(files[name]))

    return spoiler


def give(**values: object):
    def spoiler(files: Files) -> None:
        files.update(values)

    return spoiler


def exchange(files: Files) -> None:
    files["mr"], files["ct"] = files["ct"], files["mr"]


def absent(name: str):
    def spoiler(files: Files) -> None:
        files[name] = files[name].with_name("absent.nii.gz")

    return spoiler


def beside_its_unpacked_twin(files: Files) -> None:
    files["ct"].with_suffix("").write_bytes(gzip.decompress(files["ct"].read_bytes()))


def transform(filename: str, make: Callable[[], sitk.Transform] | bytes):
    def spoiler(files: Files) -> None:
        path = files["ct"].with_name(filename)
        if isinstance(make, bytes):
            path.write_bytes(make)
        else:
            sitk.WriteTransform(make(), str(path))
        files["initial_transform"] = path

    return spoiler


# -- DICOM ------------------------------------------------------------------------------------------------------
def write_dicom(folder: Path, positions_mm, series: str = "1.2.826.0.1.3680043.2.1125.1", tilt: float = 0.0) -> None:
    """One CT slice file for each position along z. tilt: sideways shift a slice, mm."""
    folder.mkdir(exist_ok=True)
    voxels = small_ct().astype(np.int16)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number, position in enumerate(positions_mm):
        piece = sitk.GetImageFromArray(voxels[number % len(voxels)][None])
        piece.SetSpacing(SPACING)
        piece.SetOrigin((-90.0, -75.0 + tilt * number, float(position)))
        origin = "\\".join(str(v) for v in piece.GetOrigin())
        for key, value in {
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series}.{number + 1}",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.9",
            "0020|000e": series,
            "0020|0013": str(number + 1),
            "0020|0032": origin,
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0010|0010": "Secret^Patient",
        }.items():
            piece.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{series[-1]}_{number:03}.dcm"))
        writer.Execute(piece)


REGULAR = [-70.0 + 10.0 * number for number in range(16)]


def dicom(*calls: dict[str, object], extra: Callable[[Path], None] | None = None):
    def spoiler(files: Files) -> None:
        folder = files["ct"].with_name("dicom")
        folder.mkdir()
        for call in calls:
            write_dicom(folder, **call)
        if extra:
            extra(folder)
        files["ct"] = folder

    return spoiler


def keep_one(folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


def test_a_good_dicom_folder_is_read(tmp_path):
    write_dicom(tmp_path / "dicom", REGULAR)
    volume = read_volume(tmp_path / "dicom", "CT")
    assert np.array_equal(volume.array, small_ct().astype(np.int16))
    assert volume.grid.same_as(GRID)
    # Files in any order, in the other direction, with something else beside.
    shutil.rmtree(tmp_path / "dicom")
    write_dicom(tmp_path / "dicom", REGULAR[::-1])
    (tmp_path / "dicom" / "README.txt").write_text("not an image")
    assert np.array_equal(read_volume(tmp_path / "dicom", "CT").array, small_ct().astype(np.int16)[::-1])


# -- the list ---------------------------------------------------------------------------------------------------
BAD = [
    # missing or unreadable
    ("missing MRI", absent("mr"), "MRI: .*absent.nii.gz does not exist"),
    ("missing CT", absent("ct"), "CT: .*absent.nii.gz does not exist"),
    ("missing labels", absent("mr_labels"), "MRI labels: .*absent.nii.gz does not exist"),
    ("garbage", write("ct", "x.nii.gz", b"garbage" * 1000), "CT: x.nii.gz cannot be read"),
    ("garbage nrrd", write("mr", "x.nrrd", b"NRRD0004\ngarbage"), "MRI: x.nrrd cannot be read"),
    ("garbage mha", write("mr", "x.mha", b"ObjectType = Image\ngarbage"), "MRI: x.mha cannot be read"),
    ("text file", write("ct", "x.txt", b"hello"), "CT: x.txt cannot be read"),
    ("empty file", write("ct", "x.nii", b""), "CT: x.nii cannot be read"),
    ("empty gz", write("ct", "x.nii.gz", gzip.compress(b"")), "CT: x.nii.gz cannot be read"),
    ("truncated gz", edit_bytes("ct", ".nii.gz", cut), "CT: spoilt.nii.gz .*incomplete"),
    ("truncated nii", edit_bytes("ct", ".nii", cut), "CT: spoilt.nii .*incomplete"),
    ("truncated mha", edit_bytes("mr", ".mha", cut), "MRI: spoilt.mha .*incomplete"),
    ("truncated nrrd", edit_bytes("mr", ".nrrd", cut), "MRI: spoilt.nrrd cannot be read"),
    ("damaged gz", edit_bytes("ct", ".nii.gz", lambda b: b.__setitem__(len(b) // 2, b[len(b) // 2] ^ 85)), "damaged"),
    ("nii.gz beside nii", beside_its_unpacked_twin, "CT: .*mixed up"),
    # not 3-D
    ("2-D", image("ct", "x.mha", lambda: sitk.Image(30, 20, sitk.sitkInt16)), "CT: .*not a single 3-D"),
    ("one slice", image("ct", "x.mha", lambda: sitk.Image(30, 20, 1, sitk.sitkInt16)), "CT: .*single slice"),
    ("4-D", image("mr", "x.nii.gz", lambda: sitk.Image((9, 8, 7, 3), sitk.sitkInt16)), "MRI: .*not a single 3-D"),
    ("vector", image("mr", "x.nrrd", lambda: sitk.Image((9, 8, 7), sitk.sitkVectorUInt8, 3)), "MRI: .*single 3-D"),
    ("complex", image("mr", "x.nii", lambda: sitk.Image((9, 8, 7), sitk.sitkComplexFloat32)), "MRI: "),
    # voxels
    ("constant", edit_voxels("mr", np.zeros_like), "MRI: every voxel has the value 0"),
    ("NaN", edit_voxels("mr", lambda a: np.where(a == a.max(), np.nan, a)), "MRI: .*NaN or infinite"),
    ("infinite", edit_voxels("ct", lambda a: np.where(a == a.max(), np.inf, a)), "CT: .*NaN or infinite"),
    # geometry
    ("zero spacing nii", edit_bytes("ct", ".nii", put(80, "<f", 0.0)), "CT: .*spacing .*not positive"),
    ("negative spacing nii", edit_bytes("ct", ".nii", put(84, "<f", -8.0)), "CT: .*spacing .*not positive"),
    ("NaN spacing nii", edit_bytes("ct", ".nii", put(84, "<f", float("nan"))), "CT: .*spacing .*not positive"),
    ("zero spacing mha", edit_bytes("mr", ".mha", swap(b"Spacing = 8", b"Spacing = 0")), "MRI: .*spacing .*not pos"),
    ("negative spacing mha", edit_bytes("mr", ".mha", swap(b"Spacing = 8", b"Spacing = -8")), "MRI: .*spacing"),
    ("zero spacing nrrd", edit_bytes("mr", ".nrrd", swap(b"(8,0,0)", b"(0,0,0)")), "MRI: .*spacing .*not pos"),
    ("two spacings", edit_bytes("ct", ".nii", put(280, "<f", -4.0)), "CT: .*two voxel spacings"),
    ("sheared nii", edit_bytes("ct", ".nii", sheared_sform), "CT: .*not perpendicular"),
    ("sheared mha", edit_bytes("mr", ".mha", swap(b"Matrix = 1 0 0", b"Matrix = 0.9 0.4 0")), "MRI: .*perpendicular"),
    ("sheared nrrd", edit_bytes("mr", ".nrrd", swap(b"(8,0,0)", b"(8,2,0)")), "MRI: .*not perpendicular"),
    # DICOM
    ("empty folder", dicom(), "CT: .*no DICOM images"),
    ("one DICOM slice", dicom({"positions_mm": REGULAR}, extra=keep_one), "CT: .*single slice"),
    (
        "several series",
        dicom({"positions_mm": REGULAR}, {"positions_mm": REGULAR[:4], "series": "1.2.826.0.1.3680043.2.1125.2"}),
        r"CT: .*2 DICOM series \(.*16 image.*4 image",
    ),
    ("missing slices", dicom({"positions_mm": REGULAR[:5] + REGULAR[7:]}), r"CT: .*2 slice\(s\) missing"),
    ("uneven slices", dicom({"positions_mm": [*REGULAR[:8], 13.0, *REGULAR[9:]]}), "CT: .*not evenly spaced"),
    ("doubled slices", dicom({"positions_mm": sorted(REGULAR * 2)}), "CT: .*one position"),
    ("gantry tilt", dicom({"positions_mm": REGULAR, "tilt": 2.0}), "CT: .*(gantry tilt|perpendicular)"),
    # meaning
    ("CT not HU", edit_voxels("ct", lambda a: np.clip(a, 0, None)), "CT: .*cannot be Hounsfield units"),
    ("CT scaled to 0..1", edit_voxels("ct", lambda a: (a + 1100) / 2200), "CT: .*cannot be Hounsfield units"),
    ("CT of air", edit_voxels("ct", lambda a: np.where(a > -500, -1000, a)), "CT: .*cannot be Hounsfield units"),
    ("MRI and CT exchanged", exchange, "CT: .*MRI and CT are not exchanged"),
    # labels
    (
        "no labels given and no model",
        lambda files: (files.pop("mr_labels"), files.update(segmentation_model="none")),
        "MRI labels: .*liver.*--segmentation-model",
    ),
    (
        "labels without liver and no model",
        lambda files: (
            edit_voxels("mr_labels", lambda a: np.where(a, 5, 0))(files),
            files.update(segmentation_model="none"),
        ),
        "labels: .*liver.*--mr-label-map",
    ),
    ("unknown model", give(segmentation_model="nobody"), "nobody"),
    ("model of another task", give(registration_model="unet"), "unet"),
    ("labels empty", edit_voxels("mr_labels", np.zeros_like), "MRI labels: .*empty"),
    ("labels are an image", edit_voxels("mr_labels", lambda a: a + 0.25), "MRI labels: .*whole numbers"),
    ("labels negative", edit_voxels("mr_labels", lambda a: -a.astype(np.int16)), "MRI labels: .*between 0 and"),
    (
        "labels elsewhere",
        lambda files: write_volume(
            Volume(small_labels(), Grid(SIZE, SPACING, (900.0, 0.0, 0.0))), files["mr_labels"]
        ),
        "MRI labels: .*inside the MRI",
    ),
    ("map syntax", give(mr_label_map="1:liver"), "[Ll]abel map: .*1=liver|[Ll]abel map: .*5=liver"),
    ("map word", give(mr_label_map="1=leber"), "[Ll]abel map: .*VALUE=liver"),
    ("map twice", give(mr_label_map="1=liver,1=tumour"), "[Ll]abel map: .*twice"),
    ("map absent value", give(mr_label_map="1=liver,9=tumour"), "value 9"),
    ("map without liver and no model", give(mr_label_map="2=tumour", segmentation_model="none"), "MRI labels: .*liver"),
    (
        "map without labels",
        lambda files: (files.pop("mr_labels"), files.update(mr_label_map="5=liver")),
        "Label map: .*--mr-labels",
    ),
    ("missing CT liver", give(ct_liver="absent.nii.gz"), "CT liver: absent.nii.gz does not exist"),
    (
        "CT liver elsewhere",
        lambda files: (
            write_volume(
                Volume(small_labels(), Grid(SIZE, SPACING, (900.0, 0.0, 0.0))), files["ct"].with_name("liver.nrrd")
            ),
            files.update(ct_liver=files["ct"].with_name("liver.nrrd")),
        ),
        "CT liver: .*CT",
    ),
    # transform
    ("missing transform", give(initial_transform="absent.tfm"), "[Ii]nitial transform: .*does not exist"),
    ("garbage transform", transform("x.tfm", b"garbage"), "[Ii]nitial transform: .*x.tfm"),
    ("garbage h5 transform", transform("x.h5", b"garbage"), "[Ii]nitial transform: .*x.h5"),
    ("2-D transform", transform("x.tfm", lambda: sitk.Euler2DTransform()), "[Ii]nitial transform: .*three-dimensional"),
    ("mirror", transform("x.tfm", lambda: sitk.ScaleTransform(3, (-1.0, 1.0, 1.0))), "nitial transform: .*mirror"),
    ("image as transform", give(initial_transform="IN/ct.nii.gz"), "[Ii]nitial transform: "),
    # settings
    ("stages", give(stages="alignment,magic"), "[Ss]tages: .*magic"),
    ("no stages", give(stages=","), "[Ss]tages: "),
    ("negative seed", give(seed=-1), "seed must be"),
]  # fmt: skip


@pytest.mark.parametrize(("spoiler", "words"), [pytest.param(*case[1:], id=case[0]) for case in BAD])
def test_bad_input(files, tmp_path, capfd, monkeypatch, spoiler, words):
    monkeypatch.chdir(tmp_path)
    spoiler(files)
    if str(files.get("initial_transform")).startswith("IN/"):
        files["initial_transform"] = files["ct"]
    capfd.readouterr()
    code, (error,) = run(files, tmp_path, capfd)
    assert code == 2, error
    assert re.search(words, error), error
    assert "Secret" not in error


# -- OUT --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("out", "overwrite", "words"),
    [
        ("full", False, "not empty.*--overwrite"),
        ("full", True, "not a result of this program"),
        ("file", True, "is a file"),
        ("missing/out", False, "does not exist"),
        ("file/out", False, "does not exist"),
        ("in", True, "not a result|would be lost"),
        ("", False, "out must be"),
    ],
)
def test_bad_out(files, tmp_path, capfd, monkeypatch, out, overwrite, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("dear")
    (tmp_path / "file").write_text("")
    code, (error,) = run({**files, "out": out} | ({"overwrite": True} if overwrite else {}), tmp_path, capfd)
    assert code == 2
    assert re.search(words, error), error


def test_out_in_a_read_only_folder(files, tmp_path, capfd):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    if os.access(locked, os.W_OK):  # root may write everywhere but into /proc
        locked = Path("/proc")
    code, (error,) = run({**files, "out": locked / "out"}, tmp_path, capfd)
    assert code == 2
    assert re.search("not writable|cannot be written", error), error


def test_mri_and_ct_that_share_no_anatomy(tmp_path, capfd, simulated_case):
    """A CT of two legs has all that a CT needs, but no liver."""
    grid = Grid((80, 60, 60), (5.0, 5.0, 5.0), (0.0, 0.0, 0.0))
    x, y = (grid.points()[..., axis] - middle for axis, middle in ((0, 200.0), (1, 150.0)))
    legs = (np.abs(x) - 90) ** 2 + y**2 < 60**2
    noise = np.random.default_rng(0).normal(0, 15, legs.shape)
    write_volume(Volume((np.where(legs, 40, -1000) + noise).astype(np.int16), grid), tmp_path / "legs.nii.gz")
    arguments = {
        "mr": simulated_case / "mr.nii.gz",
        "ct": tmp_path / "legs.nii.gz",
        "mr_labels": simulated_case / "mr_labels.nii.gz",
        "preset": "fast",
        "device": "cpu",
        "out": tmp_path / "work" / "out",
    }
    code, (error,) = run(arguments, tmp_path, capfd)
    assert code == 2
    assert "share no anatomy" in error


def test_a_device_that_is_absent(files, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # also where there is one
    # Not the fault of an input: exit 1, kind "device".
    code, (error,) = run({**files, "device": "cuda"}, tmp_path, capfd)
    assert code == 1
    assert "no CUDA GPU" in error


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("register", "required: --out, --mr, --ct"),
        ("register --out o --mr m --ct c --device tpu", "--device"),
        ("register --out o --mr m --ct c --preset best", "--preset"),
        ("register --out o --mr m --ct c --seed one", "--seed"),
        ("register --out o --mr m --ct c --certainty on", "--certainty"),
        ("register --out o --mr m --ct c --over", "--over"),
        ("segment --out y.nii.gz", "IMAGE"),
        ("segment x --modality pet --out y.nii.gz", "--modality"),
        ("", "COMMAND"),
    ],
)
def test_bad_command_line(capfd, line, words):
    with pytest.raises(SystemExit) as caught:
        cli.main(line.split())
    assert caught.value.code == 2
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith("weaktumour: ")
    assert words in error


def test_the_whole_way_through_the_process(files, tmp_path):
    """The same from outside: a real process and its child."""
    (tmp_path / "work").mkdir()
    (tmp_path / "tmp").mkdir()
    files["ct"].write_bytes(b"garbage")
    line = [value for name in files for value in ("--" + name.replace("_", "-"), str(files[name]))]
    root = str(Path(cli.__file__).resolve().parents[1])
    process = subprocess.run(
        [sys.executable, "-m", "weaktumour", "register", *line],
        env=dict(os.environ, PYTHONPATH=root, TMPDIR=str(tmp_path / "tmp")),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 2
    assert process.stdout == ""
    errors = [text for text in process.stderr.splitlines() if "%" not in text]
    assert errors == ["weaktumour: CT: ct.nii.gz cannot be read (not an image format that is known here); "
                      "export it again as NIfTI, NRRD or MHA."]  # fmt: skip
    assert everything(tmp_path / "work") == []
    assert everything(tmp_path / "tmp") == []
