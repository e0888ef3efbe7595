"""What many tests share: real data where there is any, and one simulated patient with its registration."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from slicerhost.fixtures import slicer_host  # noqa: F401

REPOSITORY = Path(__file__).resolve().parents[1]
NO_SKIP = os.environ.get("WEAKTUMOUR_NO_SKIP") == "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # tests beside each other: more threads than cores only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")


def pytest_configure():
    """A shell's background job and nohup ignore these signals, and what they start does too: here they are tested."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    if not hasattr(report, "wasxfail") and item.get_closest_marker("gpu") is None:
        _skip_fails(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    report = yield
    _skip_fails(report)
    return report


def _skip_fails(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Where everything is there (WEAKTUMOUR_NO_SKIP=1, .ci/run), a skipped test is one that did not do its work."""
    if NO_SKIP and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"WEAKTUMOUR_NO_SKIP=1 forbids this skip: {reason}"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (chaos_ct/, totalsegmentator_examples/, ...), which is not part of the repository.

    It is data/ in $WEAKTUMOUR_SHARED, or in shared/ beside the checkout.
    """
    folder = Path(os.environ.get("WEAKTUMOUR_SHARED") or REPOSITORY.parent / "shared") / "data"
    if not folder.is_dir():
        pytest.skip(f"needs the real data in {folder} (set WEAKTUMOUR_SHARED)")
    return folder


@pytest.fixture(scope="session")
def simulated_patient():
    """One patient with two tumours that the CT does not show, coarse enough to be made in seconds; do not change it."""
    from weaktumour.simulation import simulate_patient

    return simulate_patient(
        seed=1,
        tumour_diameters_mm=(30.0, 20.0),
        ct_spacing_mm=(3.0, 3.0, 4.0),
        mr_spacing_mm=(3.0, 3.0, 5.0),
        anatomy_spacing_mm=2.5,
        tumours_in_ct="invisible",
        mr_protocol="T1 hepatobiliary",
        ct_phase="portal venous",
        mr_extent_mm=(320.0, 240.0, 200.0),
        breathing_mm=-15.0,
        ct_noise_hu=12.0,
        mr_noise=0.035,
        needle=False,
    )


@pytest.fixture(scope="session")
def simulated_case(simulated_patient, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That patient as a case folder; do not write into it."""
    from weaktumour.cases import write_case

    folder = tmp_path_factory.mktemp("simulated") / "case"
    write_case(folder, simulated_patient)
    return folder


@pytest.fixture(scope="session")
def registered_result(simulated_case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result folder of that patient's registration, made by the README's Python example (preset fast).

    On the CPU, in a process of its own; do not write into it.
    """
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (example,) = [block for block in blocks if "RegisterArguments" in block]
    folder = tmp_path_factory.mktemp("registered")
    (folder / "case").symlink_to(simulated_case, target_is_directory=True)
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder / "result"
