"""The module in the test host, a small simulated patient, and what users do with both."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from module_helpers import MODULE, SCENE_TESTS, run
from slicerhost import missing_packages

REASON = missing_packages()

sys.path.insert(0, str(MODULE))
sys.path.append(str(SCENE_TESTS))  # its made-up results and volumes


class SkippedModule(pytest.Module):
    """A test file that cannot even be imported here."""

    def collect(self):
        pytest.skip(REASON, allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return SkippedModule.from_parent(parent, path=module_path) if REASON else None


@pytest.fixture(scope="module", autouse=True)
def torch_is_not_there_yet():
    """Other tests of the same session have imported torch: hidden here, so that an import by the module would show."""
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] == "torch"}
    yield
    sys.modules.update(hidden)


@pytest.fixture
def panel(slicer_host, tmp_path):
    """The module's widget object, shown."""
    temporary = tmp_path / "slicer-temporary"
    temporary.mkdir()
    before = slicer_host.app.temporaryPath
    slicer_host.app.temporaryPath = str(temporary)
    slicer_host.load_module(MODULE)
    yield slicer_host.show_module("WeakTumourSeg")
    slicer_host.app.temporaryPath = before


@pytest.fixture(scope="session")
def small_case(tmp_path_factory) -> Path:
    """A patient whose registration takes seconds; made in a child, since this process is the application's."""
    import subprocess

    folder = tmp_path_factory.mktemp("small") / "case"
    code = (
        "from weaktumour.cases import write_case; from weaktumour.simulation import simulate_patient;"
        "case = simulate_patient(1, ct_spacing_mm=4, mr_spacing_mm=4, anatomy_spacing_mm=2.5, needle=False);"
        f"write_case({str(folder)!r}, case)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=MODULE, capture_output=True, text=True)
    if "No module named 'torch'" in done.stderr:
        pytest.skip("the real worker needs torch")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def patient(panel, small_case):
    """MRI, CT and MRI segmentation in the scene, not chosen yet."""
    from WeakTumourSegLib.logic import loadCase

    return loadCase(small_case)


@pytest.fixture
def ready(panel, patient):
    """The panel with the patient chosen and the quickest settings."""
    panel.ui.mrSelector.setCurrentNode(patient.mr)
    panel.ui.ctSelector.setCurrentNode(patient.ct)
    panel.ui.mrSegmentationSelector.setCurrentNode(patient.segmentation)
    panel.ui.presetComboBox.setCurrentText("fast")
    panel.ui.deviceComboBox.setCurrentText("cpu")
    return panel


@pytest.fixture
def done(ready, slicer_host):
    """The panel after a run by a click."""
    run(ready, slicer_host)
    return ready


SHIM = """
import json, shutil, sys
from pathlib import Path
request = json.loads(Path(sys.argv[2]).read_text())
shutil.copytree(sys.argv[1], request["out"])
print(json.dumps({"event": "result", "folder": request["out"]}), flush=True)
"""


@pytest.fixture(scope="session")
def small_result(small_case, tmp_path_factory) -> Path:
    """The result folder of that patient, made once by the real command line."""
    import subprocess

    folder = tmp_path_factory.mktemp("result") / "result"
    command = [sys.executable, "-m", "weaktumour", "register", "--preset", "fast", "--device", "cpu"]
    command += ["--mr", str(small_case / "mr.nii.gz"), "--mr-labels", str(small_case / "mr_labels.nii.gz")]
    command += ["--ct", str(small_case / "ct.nii.gz"), "--out", str(folder)]
    done = subprocess.run(command, cwd=MODULE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def quick(ready, small_result, tmp_path):
    """The panel with the patient chosen and a worker that brings the ready-made result at once."""
    shim = tmp_path / "shim.py"
    shim.write_text(SHIM)
    ready.logic.workerCommand = [sys.executable, str(shim), str(small_result)]
    return ready


@pytest.fixture
def reviewed(quick, slicer_host):
    """The panel with that result."""
    run(quick, slicer_host)
    return quick
