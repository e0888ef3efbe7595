"""Weights: what is shipped, what a user imports and removes, and everything that is refused."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from weaktumour import cli, models, networks
from weaktumour.errors import ModelError

ROOT = str(Path(models.__file__).resolve().parents[1])
ARGUMENTS = {"in_channels": 1, "out_channels": 3, "widths": [4, 8], "norm": "batch"}
METADATA = {
    "task": "segmentation",
    "input": {"spacing_mm": [2.0, 2.0, 2.0], "normalisation": "percentiles 1 and 99 to [0, 1]"},
    "output": {"channels": ["background", "liver", "tumour"]},
    "licence": "CC BY-SA 4.0",
    "training": {"hours": 0.0},
    "figures": {"liver_dice": None},
    "description": "Never trained.",
}


@pytest.fixture(autouse=True)
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "deep" / "models"
    monkeypatch.setenv("WEAKTUMOUR_MODELS", str(folder))
    return folder


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shipped folder with one model, "house", the default for segmentation."""
    folder = tmp_path / "shipped"
    with monkeypatch.context() as release:  # as a release does it
        release.setenv("WEAKTUMOUR_MODELS", str(folder))
        models.import_model(weights_file(tmp_path / "house.pt", seed=9))
    manifest = json.loads((folder / "models.json").read_text())
    manifest["defaults"]["segmentation"] = "house"
    (folder / "models.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(models, "shipped_folder", lambda: folder)
    return folder


def small_network(seed: int = 0, **arguments) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return networks.build("unet", {**ARGUMENTS, **arguments}).eval()


def weights_file(path: Path, seed: int = 0, **keywords) -> Path:
    models.save_weights(path, small_network(seed), "unet", ARGUMENTS, METADATA, **keywords)
    return path


def rewritten(path: Path, **changes) -> Path:
    """The file with other content; a value of None drops the key."""
    content = torch.load(path, weights_only=True) | changes
    torch.save({name: value for name, value in content.items() if value is not None}, path)
    return path


def command(*words: object) -> int:
    return cli.main(["models", *map(str, words)])


def files_in(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != ".lock") if folder.is_dir() else []


# -- the way of an imported model -------------------------------------------------------------------------------------
def test_an_imported_model_is_listed_loaded_and_removed(tmp_path, user_folder, capsys):
    file = weights_file(tmp_path / "My UNet (2).pt")
    assert command("import", file) == 0
    assert "my-unet-2 (segmentation)" in capsys.readouterr().out
    assert command("list") == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "my-unet-2" in line]
    assert all(word in row for word in ("segmentation", "CC BY-SA 4.0", " MB", "user"))
    assert command("list", "--json") == 0
    (listed,) = [entry for entry in json.loads(capsys.readouterr().out) if entry["id"] == "my-unet-2"]
    assert {name: listed[name] for name in METADATA} == METADATA
    assert listed["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (listed["origin"], listed["default"], listed["size_bytes"]) == ("user", False, file.stat().st_size)
    assert Path(listed["path"]).read_bytes() == file.read_bytes()
    assert command("verify", "my-unet-2") == 0
    assert "my-unet-2: " in capsys.readouterr().out

    network = models.load(models.find("my-unet-2", "segmentation"))
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    image = torch.rand(1, 1, 8, 8, 8)
    torch.testing.assert_close(network(image), small_network()(image))

    assert command("remove", "my-unet-2") == 0
    assert files_in(user_folder) == ["models.json"]
    assert command("verify", "my-unet-2") == 2
    assert "not known" in capsys.readouterr().err


def test_loading_leaves_the_random_numbers_alone(tmp_path):
    entry = models.import_model(weights_file(tmp_path / "a.pt"))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    models.load(entry)
    assert torch.equal(torch.rand(4), expected)


def test_half_precision_is_stored_small_and_loaded_as_float32(tmp_path):
    full, half = weights_file(tmp_path / "full.pt"), weights_file(tmp_path / "half.pt", half=True)
    stored = torch.load(half, weights_only=True)["state_dict"]
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.int64}
    assert half.stat().st_size < 0.75 * full.stat().st_size
    network = models.load(models.import_model(half))
    expected = small_network().state_dict()
    for name, tensor in network.state_dict().items():
        assert tensor.dtype == expected[name].dtype
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-6)


def test_the_same_weights_give_the_same_file(tmp_path):
    assert weights_file(tmp_path / "a.pt").read_bytes() == weights_file(tmp_path / "other.pt").read_bytes()


def test_the_returned_checksum_is_the_files(tmp_path):
    told = models.save_weights(tmp_path / "a.pt", small_network(), "unet", ARGUMENTS, METADATA)
    assert told == hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()


def test_an_id_is_replaced_only_when_told_to(tmp_path, user_folder, capsys):
    first, second = weights_file(tmp_path / "a.pt", seed=1), weights_file(tmp_path / "b.pt", seed=2)
    assert command("import", first, "--id", "mine") == 0
    assert command("import", second, "--id", "mine") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert models.find("mine", "segmentation").path.read_bytes() == first.read_bytes()
    assert command("import", second, "--id", "mine", "--overwrite") == 0
    entry = models.find("mine", "segmentation")
    assert entry.path.read_bytes() == second.read_bytes()
    models.verify(entry)
    assert files_in(user_folder) == sorted([entry.file, "models.json"])


def test_tuples_in_arguments_survive(tmp_path):
    path = tmp_path / "a.pt"
    models.save_weights(path, small_network(), "unet", {**ARGUMENTS, "widths": (4, 8)}, METADATA)
    assert models.import_model(path).arguments == ARGUMENTS
    path = rewritten(path, arguments={**ARGUMENTS, "widths": (4, 8)})
    models.verify(models.import_model(path, "b"))


def test_the_published_checkpoint_is_imported(shared_data, user_folder, capsys):
    checkpoint = shared_data.parent / "reference" / "mscgunet_published.pth"
    assert command("import", checkpoint, "--id", "published") == 0
    entry = models.find("published", "registration")
    assert (entry.architecture, entry.arguments) == ("mscgunet", {"published": True})
    assert "window level 50 width 350" in entry.input["normalisation"]
    network = models.load(entry)
    assert isinstance(network, networks.ARCHITECTURES["mscgunet"])
    numbers = {math.fsum(tensor.double().flatten().tolist()) for tensor in network.state_dict().values()}
    foreign = torch.load(checkpoint, map_location="cpu", weights_only=True)
    stored = foreign["conv_decoder3_training"] | foreign["scg_training"]
    assert {math.fsum(tensor.double().flatten().tolist()) for tensor in stored.values()} <= numbers
    assert command("verify") == 0
    assert "published: " in capsys.readouterr().out


# -- refused when imported --------------------------------------------------------------------------------------------
def refused(capsys: pytest.CaptureFixture[str], user_folder: Path, *words: object) -> str:
    """The one sentence with which an import is refused; nothing may be left of it."""
    before = files_in(user_folder)
    assert command("import", *words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("weaktumour: ")
    assert captured.err.endswith(".\n")
    assert captured.err.count("\n") == 1
    assert files_in(user_folder) == before
    return captured.err.replace(str(user_folder.parents[1]), "")  # pytest's folder, which holds the test's name


class Malicious:
    """Unpickled with trust, it would make a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def zip_file(content: object, path: Path) -> None:
    torch.save(content, path)


def legacy_file(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def bare_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [zip_file, legacy_file, bare_pickle])
def test_a_pickle_with_code_is_not_run(write, tmp_path, user_folder, capsys):
    target, path = tmp_path / "was-here", tmp_path / "bad.pt"
    write({"format": models.FORMAT, "state_dict": Malicious(target)}, path)
    assert "code or objects" in refused(capsys, user_folder, path)
    assert not target.exists()
    pickle.loads(pickle.dumps(Malicious(target)))  # it would have
    assert target.exists()


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_file_is_refused(kept, tmp_path, user_folder, capsys):
    path = weights_file(tmp_path / "a.pt")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert "truncated" in refused(capsys, user_folder, path)


def test_what_is_no_weights_file_is_refused(tmp_path, user_folder, capsys):
    path = tmp_path / "a.pt"
    for text in ("hello world", "# Read me", "<html>"):
        path.write_text(text)
        assert "not a weights file" in refused(capsys, user_folder, path)
    torch.save([1, 2], path)
    assert "not a weights file" in refused(capsys, user_folder, path)
    torch.save({"state_dict": small_network().state_dict()}, path)
    assert "neither" in refused(capsys, user_folder, path)
    torch.save(small_network(), path)
    assert "code or objects" in refused(capsys, user_folder, path)
    assert "cannot be read" in refused(capsys, user_folder, tmp_path / "gone.pt")
    assert "cannot be read" in refused(capsys, user_folder, tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "transformer"}, "transformer"),
        ({"arguments": {"depth": 7}}, "depth"),
        ({"arguments": {**ARGUMENTS, "widths": [4, 16]}}, "do not fit the architecture unet"),
        ({"arguments": {**ARGUMENTS, "widths": [4, 8, 8]}}, "is missing"),
        ({"arguments": {**ARGUMENTS, "widths": [4]}}, "at least two levels"),
        ({"state_dict": small_network(attention=True).state_dict()}, "is not part of it"),
        ({"state_dict": None}, "state_dict"),
        ({"state_dict": {"a": 1}}, "state_dict"),
        ({"state_dict": {"a": torch.ones(2, 2).to_sparse()}}, "dense"),
        ({"task": "detection"}, "task"),
        ({"licence": None}, "licence must be a text"),
        ({"licence": "two\nlines"}, "printable"),
        ({"figures": {"dice": torch.ones(1)}}, "JSON"),
        ({"figures": {"dice": math.nan}}, "JSON"),
        ({"extra": 1}, "'extra'"),
    ],
)
def test_an_ill_described_file_is_refused(changes, words, tmp_path, user_folder, capsys):
    path = rewritten(weights_file(tmp_path / "a.pt"), **changes)
    assert words in refused(capsys, user_folder, path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path, user_folder, capsys):
    path = weights_file(tmp_path / "a.pt")
    weights = torch.load(path, weights_only=True)["state_dict"]
    name = next(name for name, tensor in weights.items() if tensor.ndim == 5)
    weights[name][0, 0, 0, 0, 0] = value
    assert f"({name})" in refused(capsys, user_folder, rewritten(path, state_dict=weights))


def test_weights_that_are_no_numbers_are_not_written(tmp_path):
    network = small_network()
    next(network.parameters()).data.fill_(1e6)
    models.save_weights(tmp_path / "a.pt", network, "unet", ARGUMENTS, METADATA)
    with pytest.raises(ModelError, match="finite"):  # too large for half precision
        models.save_weights(tmp_path / "b.pt", network, "unet", ARGUMENTS, METADATA, half=True)
    with pytest.raises(ModelError, match="task"):
        models.save_weights(tmp_path / "b.pt", network, "unet", ARGUMENTS, {**METADATA, "task": "detection"})
    assert not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize("model_id", ["", "../a", "A", "a b", ".a", "a/b", "x" * 65])
def test_an_improper_id_is_refused(model_id, tmp_path, user_folder, capsys):
    assert "proper" in refused(capsys, user_folder, weights_file(tmp_path / "a.pt"), "--id", model_id)


def test_a_foreign_checkpoint_with_other_weights_is_refused(tmp_path, user_folder, shared_data, capsys):
    checkpoint = torch.load(shared_data.parent / "reference/mscgunet_published.pth", map_location="cpu")
    part = checkpoint["upsampler1_training"]
    part[next(iter(part))] = torch.zeros(3)
    torch.save(checkpoint, tmp_path / "a.pth")
    assert "published" in refused(capsys, user_folder, tmp_path / "a.pth")


# -- refused when loaded ----------------------------------------------------------------------------------------------
@pytest.fixture
def imported(tmp_path: Path) -> models.ModelEntry:
    return models.import_model(weights_file(tmp_path / "mine.pt"))


def refused_to_load(capsys: pytest.CaptureFixture[str]) -> str:
    assert command("verify") == 2
    captured = capsys.readouterr()
    assert "mine" not in captured.out  # the shipped ones are right all the same
    assert captured.err.startswith("weaktumour: Model 'mine': ")
    assert captured.err.endswith("--overwrite).\n")
    assert captured.err.count("\n") == 1
    return captured.err


def alter_manifest(folder: Path, **changes) -> None:
    manifest = json.loads((folder / "models.json").read_text())
    manifest["models"][0].update(changes)
    (folder / "models.json").write_text(json.dumps(manifest))


def test_a_wrong_checksum_is_refused(imported, capsys):
    content = bytearray(imported.path.read_bytes())
    content[len(content) // 2] ^= 1
    imported.path.write_bytes(content)
    assert "SHA-256" in refused_to_load(capsys)
    imported.path.write_bytes(content[:-100])
    assert "SHA-256" in refused_to_load(capsys)


def test_a_missing_file_is_refused(imported, capsys):
    imported.path.unlink()
    assert "cannot be read" in refused_to_load(capsys)
    assert command("list") == 0
    assert "missing" in capsys.readouterr().out


def test_code_under_a_right_checksum_is_not_run(imported, user_folder, tmp_path, capsys):
    target = tmp_path / "was-here"
    torch.save({"format": models.FORMAT, "state_dict": Malicious(target)}, imported.path)
    alter_manifest(user_folder, sha256=hashlib.sha256(imported.path.read_bytes()).hexdigest())
    assert "code or objects" in refused_to_load(capsys)
    assert not target.exists()


def test_a_manifest_that_tells_another_network_is_refused(imported, user_folder, capsys):
    alter_manifest(user_folder, arguments={**ARGUMENTS, "widths": [4, 16]})
    assert "another network" in refused_to_load(capsys)


def test_the_bytes_that_are_checked_are_the_bytes_that_are_read(imported, monkeypatch):
    reads = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path) or read_bytes(path))
    monkeypatch.setattr("builtins.open", lambda *_, **__: pytest.fail("read again"))
    models.load(imported)
    assert reads == [imported.path]


# -- which model ------------------------------------------------------------------------------------------------------
def test_the_default_is_the_shipped_one_unless_the_user_chose(shipped, user_folder, tmp_path, capsys):
    assert models.default_id("registration") is None
    assert models.find(None, "segmentation").id == "house"
    with pytest.raises(ModelError, match="No registration model is set as default; there are no registration models"):
        models.find(None, "registration")
    models.import_model(weights_file(tmp_path / "mine.pt"))
    assert models.find(None, "segmentation").id == "house"
    manifest = json.loads((user_folder / "models.json").read_text())
    manifest["defaults"]["segmentation"] = "mine"
    (user_folder / "models.json").write_text(json.dumps(manifest))
    assert models.find(None, "segmentation").id == "mine"
    assert command("list") == 0
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert rows["house"].split()[-2:] == ["-", "shipped"]
    assert rows["mine"].split()[-2:] == ["default", "user"]
    models.remove("mine")
    assert models.find(None, "segmentation").id == "house"


def test_an_unknown_id_and_a_wrong_task_are_told(shipped, imported):
    with pytest.raises(ModelError, match=r"'gone' is not known; known segmentation models are house, mine\.") as told:
        models.find("gone", "segmentation")
    assert (told.value.kind, told.value.exit_code) == ("model", 2)
    with pytest.raises(ModelError, match="'mine' is for segmentation, not for registration; there are no registration"):
        models.find("mine", "registration")


def test_shipped_models_are_neither_removed_nor_shadowed(shipped, user_folder, tmp_path, capsys):
    before = files_in(shipped)
    assert command("remove", "house") == 2
    assert "came with WeakTumourSeg" in capsys.readouterr().err
    assert "shipped model" in refused(capsys, user_folder, weights_file(tmp_path / "house.pt"))
    assert files_in(shipped) == before


def test_a_model_shipped_later_under_the_users_id_is_told(shipped, user_folder, capsys):
    shutil.copytree(shipped, user_folder)  # the user's "house" was there first
    with pytest.raises(ModelError, match="both shipped and imported"):
        models.find("house", "segmentation")
    assert command("remove", "house") == 0
    assert models.find("house", "segmentation").origin == "shipped"


def test_the_users_folder_is_where_the_platform_keeps_data(tmp_path, monkeypatch):
    monkeypatch.delenv("WEAKTUMOUR_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    for platform, variables, expected in (
        ("linux", {}, ".local/share"),
        ("linux", {"XDG_DATA_HOME": str(tmp_path / "xdg")}, "xdg"),
        ("darwin", {}, "Library/Application Support"),
        ("win32", {"LOCALAPPDATA": str(tmp_path / "local")}, "local"),
    ):
        with monkeypatch.context() as there:
            there.setattr(sys, "platform", platform)
            there.delenv("XDG_DATA_HOME", raising=False)
            for name, value in variables.items():
                there.setenv(name, value)
            assert models.user_folder() == tmp_path / expected / "weaktumour" / "models"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        ('{"schema": 2, "defaults": {}, "models": []}', "schema 2 is not known"),
        ('{"schema": 1, "models": []}', "must have schema, defaults"),
        ('{"schema": 1, "defaults": {"registration": 1, "segmentation": null}, "models": []}', "defaults must"),
        ('{"schema": 1, "defaults": {"registration": null, "segmentation": null}, "models": [1]}', "an entry"),
    ],
)
def test_an_unreadable_manifest_is_told(text, words, user_folder, capsys):
    user_folder.mkdir(parents=True)
    (user_folder / "models.json").write_text(text)
    assert command("list") == 2
    told = capsys.readouterr().err
    assert words in told
    assert str(user_folder / "models.json") in told
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"file": "../mine.pt"}, "file '../mine.pt'"),
        ({"file": "/etc/passwd"}, "file"),
        ({"sha256": "0"}, "sha256"),
        ({"id": "Mine"}, "id 'Mine'"),
        ({"task": "x"}, "task must be one of"),
        ({"input": []}, "input must be an object"),
        ({"colour": 1}, "unknown key 'colour'"),
    ],
)
def test_an_improper_entry_is_told(changes, words, imported, user_folder, capsys):
    alter_manifest(user_folder, **changes)
    assert command("list") == 2
    assert words in capsys.readouterr().err


def test_a_model_listed_twice_is_told(imported, user_folder, capsys):
    manifest = json.loads((user_folder / "models.json").read_text())
    manifest["models"] *= 2
    (user_folder / "models.json").write_text(json.dumps(manifest))
    assert command("list") == 2
    assert "listed twice" in capsys.readouterr().err


# -- whole or not at all ----------------------------------------------------------------------------------------------
def test_imports_at_once_are_all_kept(tmp_path, user_folder, monkeypatch):
    file = weights_file(tmp_path / "a.pt")
    names = [f"m{number}" for number in range(4)]
    write = models._write_whole
    # The lock matters between reading the manifest and writing it: stay there. It tells threads apart like processes.
    monkeypatch.setattr(models, "_write_whole", lambda *words: (time.sleep(0.1), write(*words)))
    with ThreadPoolExecutor(len(names)) as pool:
        entries = list(pool.map(lambda name: models.import_model(file, name), names))
    assert sorted(entry.id for entry in models.list_models() if entry.origin == "user") == names
    assert files_in(user_folder) == sorted([*(entry.file for entry in entries), "models.json"])


def start_import(file: Path, model_id: str, before: str) -> subprocess.Popen:
    """Import in a process that runs some lines first."""
    code = f"{before}\nfrom weaktumour import cli; import sys; sys.exit(cli.main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, "models", "import", str(file), "--id", model_id],
        env=dict(os.environ, PYTHONPATH=ROOT, OMP_NUM_THREADS="1"),
    )


@pytest.mark.parametrize("moment", [1, 2])
def test_a_killed_import_leaves_what_was_there(moment, tmp_path, user_folder):
    """Killed while it writes the weights (1) or the manifest (2)."""
    models.import_model(weights_file(tmp_path / "a.pt", seed=1), "mine")
    before = (user_folder / "models.json").read_bytes()
    killed = (
        "import os, signal; replace, calls = os.replace, []\n"
        "def kill(*names):\n"
        "    calls.append(names)\n"
        f"    os.kill(os.getpid(), signal.SIGKILL) if len(calls) == {moment} else replace(*names)\n"
        "os.replace = kill"
    )
    assert start_import(weights_file(tmp_path / "b.pt", seed=2), "other", killed).wait(timeout=120) == -9
    assert (user_folder / "models.json").read_bytes() == before
    assert [entry.id for entry in models.list_models() if entry.origin == "user"] == ["mine"]
    models.verify(models.find("mine", "segmentation"))
    models.import_model(tmp_path / "b.pt", "other")  # neither its lock nor its remains are in the way
    assert not [name for name in files_in(user_folder) if "partial" in name]
    assert len(files_in(user_folder)) == 3


def test_a_folder_that_cannot_be_written_is_told(tmp_path, user_folder, capsys):
    user_folder.parent.mkdir()
    user_folder.write_text("a file")
    assert command("import", weights_file(tmp_path / "a.pt")) == 2
    assert str(user_folder) in capsys.readouterr().err


# -- what is shipped --------------------------------------------------------------------------------------------------
def test_the_shipped_models_are_right():
    folder = models.shipped_folder()
    assert folder == Path(ROOT) / "Resources" / "Models"
    entries = models.list_models()  # the user's folder is empty
    for entry in entries:
        models.verify(entry)
        assert entry.path.stat().st_size <= {"registration": 4e6, "segmentation": 25e6}[entry.task], entry.id
    assert files_in(folder) == sorted([*(entry.file for entry in entries), "models.json", "uncertainty.json"])
    for task in models.TASKS:
        if models.default_id(task) is not None:
            assert models.find(None, task).origin == "shipped"


def test_listing_needs_no_torch():
    code = "import sys; from weaktumour import cli; cli.main(['models', 'list']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=ROOT), capture_output=True)
    assert done.returncode == 0, done.stderr
