"""The project around the engine: what is packaged, installed and documented is what there is."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path
from types import ModuleType

import cmake
import numpy as np
import pytest
import SimpleITK as sitk
from packaging.requirements import Requirement

from weaktumour import __version__, cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
MODULE = REPOSITORY / "WeakTumourSeg"


def script(path: str) -> ModuleType:
    """A script of the repository that belongs to no package."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, REPOSITORY / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check = script("Testing/check_cmake_lists.py")


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, its output captured; it may fail."""
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )


# -- what Slicer's package holds --------------------------------------------------------------------------------------
def test_every_file_is_listed_for_slicer():
    assert check.differences(MODULE) == []


@pytest.fixture
def small_module(tmp_path: Path) -> Path:
    for name in ("weaktumour/b.py", "weaktumour/a.py", "weaktumour/deep/schema.json", "weaktumour/__pycache__/a.pyc"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "CMakeLists.txt").write_text(
        "set(WeakTumourSeg_FILES\n  weaktumour/a.py # why\n  weaktumour/gone.py\n  weaktumour/a.py\n)\nmessage(x)\n"
    )
    return tmp_path


def test_a_wrong_list_is_told(small_module: Path, capsys: pytest.CaptureFixture[str]):
    assert check.main([str(small_module)]) == 1
    told = capsys.readouterr().err
    assert "not listed: weaktumour/b.py" in told
    assert "not listed: weaktumour/deep/schema.json" in told
    assert "not there: weaktumour/gone.py" in told
    assert "twice: weaktumour/a.py" in told
    assert "pyc" not in told


def test_a_wrong_list_is_mended(small_module: Path):
    assert check.main([str(small_module), "--fix"]) == 0
    text = (small_module / "CMakeLists.txt").read_text()
    assert check.listed_in(text) == ["weaktumour/a.py", "weaktumour/b.py", "weaktumour/deep/schema.json"]
    assert text.endswith(")\nmessage(x)\n")


def test_a_missing_list_is_an_error(tmp_path: Path):
    (tmp_path / "CMakeLists.txt").write_text("# nothing here\n")
    with pytest.raises(ValueError, match="WeakTumourSeg_FILES"):
        check.main([str(tmp_path)])


# What the module's CMakeLists takes from Slicer: scripts and resources are installed with their folders.
SLICER_MACROS = """
function(slicerMacroBuildScriptedModule)
  cmake_parse_arguments(MODULE "WITH_GENERIC_TESTS" "NAME" "SCRIPTS;RESOURCES" ${ARGN})
  if(MODULE_UNPARSED_ARGUMENTS OR NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${MODULE_NAME}.py")
    message(FATAL_ERROR "not as Slicer's macro wants it: ${MODULE_UNPARSED_ARGUMENTS}")
  endif()
  foreach(file IN LISTS MODULE_SCRIPTS MODULE_RESOURCES)
    get_filename_component(folder "${file}" DIRECTORY)
    install(FILES "${file}" DESTINATION "lib/modules/${folder}")
  endforeach()
  foreach(file IN LISTS MODULE_RESOURCES)
    if(file MATCHES "[.]py$")
      message(FATAL_ERROR "${file} is a script, not a resource")
    endif()
  endforeach()
endfunction()
function(slicer_add_python_unittest)
  cmake_parse_arguments(TEST "" "SCRIPT" "" ${ARGN})
  if(NOT EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/${TEST_SCRIPT}")
    message(FATAL_ERROR "no test ${TEST_SCRIPT}")
  endif()
  message(STATUS "self-test ${TEST_SCRIPT}")
endfunction()
"""


def test_what_cmake_installs_runs(tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(
        f"cmake_minimum_required(VERSION 3.16)\nproject(Host NONE)\n{SLICER_MACROS}\nset(BUILD_TESTING ON)\n"
        f'add_subdirectory("{MODULE.as_posix()}" module)\n'
    )
    build, target = tmp_path / "build", tmp_path / "target"
    told: list[str] = []
    for options in (["-S", source, "-B", build], ["--install", build, "--prefix", target]):
        done = run(Path(cmake.CMAKE_BIN_DIR) / "cmake", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        told.append(done.stdout)
    assert "self-test WeakTumourSeg.py" in told[0]
    modules = target / "lib/modules"
    assert check.files_of(modules) == check.files_of(MODULE)
    assert_runs_from(modules, tmp_path)
    assert_has_the_models(modules, modules / "Resources/Models", tmp_path)


def test_the_index_entry_agrees_with_cmake():
    cmake_text = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
    entry = json.loads((REPOSITORY / "WeakTumourSeg.json").read_text(encoding="utf-8"))
    (address,) = re.findall(r'^set\(WeakTumourSeg_REPOSITORY "(.*)"\)$', cmake_text, re.MULTILINE)
    assert entry["scm_url"] == f"{address}.git"
    assert cmake_text.count(address) == 1
    assert f'set(EXTENSION_CATEGORY "{entry["category"]}")' in cmake_text
    assert f'set(EXTENSION_DEPENDS "{" ".join(entry["build_dependencies"])}")' in cmake_text


def test_the_module_shows_the_extensions_icon():
    icon = MODULE / "Resources/Icons/WeakTumourSeg.png"
    assert icon.read_bytes() == (REPOSITORY / "WeakTumourSeg.png").read_bytes()


# -- what pip installs ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: a build leaves folders behind in its source
    for path in [REPOSITORY / name for name in ("pyproject.toml", "README.md", "LICENSE")] + [
        MODULE / name for name in check.files_of(MODULE)
    ]:
        target = source / path.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_whole_engine(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = {name.split("/")[0] for name in names if ".dist-info/" in name}
        metadata = HeaderParser().parsestr(archive.read(f"{info}/METADATA").decode())
        scripts = archive.read(f"{info}/entry_points.txt").decode()
        licence = archive.read(f"{info}/licenses/LICENSE")
    # For Slicer the models stand beside the engine.
    expected = [name.replace("Resources/Models/", "weaktumour/shipped_models/") for name in check.files_of(MODULE)]
    assert sorted(name for name in names if not name.startswith(info)) == sorted(
        name for name in expected if name.startswith("weaktumour/")
    )
    assert metadata["Version"] == __version__
    assert "weaktumour = weaktumour.cli:main" in scripts
    assert licence == (REPOSITORY / "LICENSE").read_bytes()


def test_the_wheel_runs_elsewhere(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert_runs_from(tmp_path / "site", tmp_path)
    assert_has_the_models(tmp_path / "site", tmp_path / "site/weaktumour/shipped_models", tmp_path)


def assert_runs_from(site: Path, cwd: Path) -> None:
    """The command line starts with the engine of that folder, its data files included."""
    told = run(sys.executable, "-m", "weaktumour", "--version", cwd=cwd, PYTHONPATH=str(site))
    assert told.stdout.strip() == f"weaktumour {__version__}", told.stderr
    code = "import weaktumour.pipeline, weaktumour.result as r; print(r.__file__); r.load_schema()"
    told = run(sys.executable, "-c", code, cwd=cwd, PYTHONPATH=str(site))
    assert told.returncode == 0, told.stderr
    assert Path(told.stdout.strip()).is_relative_to(site)


def assert_has_the_models(site: Path, folder: Path, cwd: Path) -> None:
    """The engine of that folder finds all shipped models there, and they load."""
    shipped = json.loads((MODULE / "Resources/Models/models.json").read_text(encoding="utf-8"))
    environment = {"PYTHONPATH": str(site), "WEAKTUMOUR_MODELS": str(cwd / "no-models-of-mine")}
    listed = run(sys.executable, "-m", "weaktumour", "models", "list", "--json", cwd=cwd, **environment)
    assert listed.returncode == 0, listed.stderr
    assert [Path(entry["path"]) for entry in json.loads(listed.stdout)] == [
        folder.resolve() / entry["file"] for entry in shipped["models"]
    ]
    verified = run(sys.executable, "-m", "weaktumour", "models", "verify", cwd=cwd, **environment)
    assert verified.returncode == 0, verified.stderr
    code = "import weaktumour.models as m; print(m.shipped_folder())"
    told = run(sys.executable, "-c", code, cwd=cwd, **environment)
    assert Path(told.stdout.strip()).resolve() == folder.resolve(), told.stderr


def test_each_dependency_is_pinned_within_its_range():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *extras["test"], *extras["train"], *extras["benchmark"], *extras["slicer"]]
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for requirement in map(Requirement, texts):
        for python in ("3.10", "3.11", "3.12", "3.13"):
            applies = [
                pin
                for pin in pins
                if pin.name.lower() == requirement.name.lower()
                and (pin.marker is None or pin.marker.evaluate({"python_version": python}))
            ]
            assert len(applies) == 1, f"{requirement.name} on Python {python}: {applies}"
            (version,) = (specifier.version for specifier in applies[0].specifier)
            assert requirement.specifier.contains(version), f"{requirement} is pinned to {version}"


# -- what the engine may import ---------------------------------------------------------------------------------------
ENGINE_NEEDS = {"torch", "SimpleITK", "numpy"}
# Rooms of the command line, the training and the benchmark, which Slicer's worker does not enter.
MORE_ALLOWED = {
    "batch/running.py": {"dask"},
    "cli.py": {"tqdm"},
    "evaluation/benchmark.py": {"dask"},
    "evaluation/measure.py": {"psutil"},
    "evaluation/peers.py": {"ants", "convexAdam", "itk", "psutil"},
    "evaluation/analysis.py": {"matplotlib"},
    "evaluation/tables.py": {"matplotlib"},
    "training/loop.py": {"lightning_fabric"},
    "training/registration.py": {"matplotlib"},
    "training/segmentation.py": {"matplotlib"},
    "training/weak_pictures.py": {"matplotlib"},
}


def imported_by(path: Path) -> set[str]:
    """Top names of everything that a file imports, at its top or inside functions, but for its own package."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names - {"weaktumour"} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", [name for name in check.files_of(MODULE / "weaktumour") if name.endswith(".py")])
def test_the_engine_needs_only_torch_simpleitk_and_numpy(name: str):
    assert imported_by(MODULE / "weaktumour" / name) <= ENGINE_NEEDS | MORE_ALLOWED.get(name, set())


# -- set-up and documents ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"TORCH": "rocm"}, "TORCH=rocm is not known; use TORCH=cpu or TORCH=cuda."),
        ({"PYTHON": "no-such-python"}, "PYTHON=no-such-python is not a program here"),
    ],
)
def test_set_up_says_what_is_wrong(settings: dict[str, str], sentence: str, tmp_path: Path):
    for name in ("set_up.sh", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((REPOSITORY / name).read_bytes())
    told = run("sh", "set_up.sh", cwd=tmp_path, **{"TORCH": "cpu", "PYTHON": "", **settings})
    assert told.returncode == 1
    assert told.stderr.startswith(f"set-up: {sentence}")
    assert told.stderr.count("\n") == 1
    assert not (tmp_path / ".venv").exists()


def test_readme_names_the_options_there_are(capsys):
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    usage = re.search(r"```text\n(.*?)```", text, re.DOTALL).group(1)
    commands = re.split(r"^weaktumour ", usage, flags=re.MULTILINE)[1:]
    assert [command.split()[0] for command in commands] == [
        "demo",
        "simulate",
        "register",
        "segment",
        "batch",
        "models",
        "dataset",
        "train",
        "evaluate",
        "benchmark",
        "analyse",
    ]
    for command in commands:
        name = command.split()[0]
        if name in ("models", "dataset"):  # their actions have options of their own
            continue
        usages = re.split(r"^ {11}train ", command.removeprefix("train "), flags=re.M) if name == "train" else [command]
        for usage in usages:
            for task in usage.split(" ")[0].split("|") if name == "train" else [""]:
                with pytest.raises(SystemExit) as end:
                    cli.main([name, *filter(None, [task]), "--help"])
                assert end.value.code == 0
                told = capsys.readouterr().out
                assert set(re.findall(r"--[a-z-]+", usage)) == set(re.findall(r"--[a-z-]+", told)) - {"--help"}


def test_readme_python_example_leaves_the_files_that_it_promises(registered_result: Path):
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    promised = dict(re.findall(r"^\| `([\w.]+)` \| (.*)", text, re.MULTILINE))
    always = {name for name, what in promised.items() if not what.startswith("only where")}
    assert always == {path.name for path in registered_result.iterdir()}
    # The example gives labels (Testing/module runs without) and is of the preset fast.
    assert promised.keys() - always == {"mr_labels.nii.gz", "tumour_probability.nii.gz"}


def test_the_icon_is_what_its_script_draws():
    shipped = sitk.GetArrayFromImage(sitk.ReadImage(str(REPOSITORY / "WeakTumourSeg.png"))).astype(int)
    drawn = script("Resources/make_icon.py").draw().astype(int)
    assert shipped.shape == drawn.shape == (256, 256, 4)
    assert np.abs(shipped - drawn).max() <= 2  # rounding may differ between processors
