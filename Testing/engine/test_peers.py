"""Other methods on a phantom with a known displacement, and the ruler that measures what a command costs."""

import sys
import time

import numpy as np
import psutil
import pytest

from weaktumour.errors import InputError, WeakTumourError
from weaktumour.evaluation import peers
from weaktumour.evaluation.measure import json_ready, markdown_table, run_measured, seconds_to_first_line
from weaktumour.volumes import Grid, Volume, read_volume, write_volume

TURN = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])  # axes exchanged and flipped


# -- a small body with organs, the moving image made from the fixed one by a known transform ------------------------
def intensity(points_mm):
    """HU-like values at LPS points: an ellipsoid of soft tissue in air, balls of other tissue in it."""
    rng = np.random.default_rng(3)
    inside = np.sum((points_mm / [70, 60, 60]) ** 2, axis=-1) < 1
    image = np.where(inside, 20.0, -1000.0)
    for centre in rng.uniform(-35, 35, (14, 3)):
        radius, value = rng.uniform(8, 16), rng.choice([-80.0, 90.0, 150.0])
        image = np.where(inside & (np.linalg.norm(points_mm - centre, axis=-1) < radius), value, image)
    return image


def true_displacement(fixed_points):
    """Smooth, up to 11 mm, with a constant part: fixed -> moving, LPS mm."""
    wave = np.exp(-np.sum((fixed_points / 45.0) ** 2, axis=-1))
    return np.array([3.0, -2.0, 4.0]) + wave[..., None] * np.array([4.0, -5.0, 3.0])


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(folder, fixed points in the body): ct.nii.gz and an MR of inverse contrast on turned axes."""
    folder = tmp_path_factory.mktemp("pair")
    fixed_grid = Grid.around(np.array([[-80.0, -70, -70], [80, 70, 70]]), 3.0)
    box = Grid.around(np.array([[-90.0, -80, -80], [90, 80, 80]]), 3.0)
    corner = box.index_to_world((np.asarray(box.size) - 1) / 2) - TURN @ (np.array([56, 60, 56]) * 1.5)
    moving_grid = Grid((57, 61, 57), (3.0, 3.0, 3.0), tuple(corner), tuple(TURN.ravel()))
    fixed = intensity(fixed_grid.points())
    # Moving points back to fixed ones: x = y - u(x), which contracts.
    moving_points = moving_grid.points()
    back = moving_points.copy()
    for _ in range(30):
        back = moving_points - true_displacement(back)
    moving = intensity(back)
    moving = np.where(moving < -500, 0.0, 300.0 - moving)
    rng = np.random.default_rng(0)
    for name, image, grid in (("ct", fixed, fixed_grid), ("mr", moving, moving_grid)):
        noisy = image + rng.normal(0, 3, image.shape)
        write_volume(Volume(noisy.astype(np.float32), grid), folder / f"{name}.nii.gz")
    points = fixed_grid.points().reshape(-1, 3)
    return folder, points[np.sum((points / [55, 45, 45]) ** 2, axis=-1) < 1]


def error_mm(field, points):
    return np.linalg.norm(field.transform_points(points) - points - true_displacement(points), axis=1).mean()


@pytest.mark.parametrize("method", sorted(peers.METHODS))
def test_every_method_recovers_a_known_displacement(pair, method, tmp_path, monkeypatch):
    folder, points = pair
    monkeypatch.chdir(tmp_path)
    before = np.linalg.norm(true_displacement(points), axis=1).mean()
    # Quick settings: these tests are about conventions, not about what a method can do.
    options = {
        "elastix": {"iterations": 200, "resolutions": 3},
        "syn": {"reg_iterations": (200, 150, 60), "grad_step": 0.4},
    }.get(method)
    result = peers.run_peer(method, folder / "ct.nii.gz", folder / "mr.nii.gz", spacing_mm=3.0, options=options)
    assert before > 7.0
    assert error_mm(result.field, points) < 0.35 * before
    assert not list(tmp_path.iterdir())  # nothing is left where it was started
    assert result.version
    assert 0 < result.method_seconds < result.seconds
    assert 150 < result.peak_mb < 4000


def test_an_affine_start_is_applied_and_comes_back_composed(pair):
    folder, points = pair
    # The moving image is read in a world that is turned by 90 degrees and far away; the start undoes that.
    start = np.eye(4)
    start[:3, :3], start[:3, 3] = TURN, [400.0, -250.0, 90.0]
    moving = read_volume(folder / "mr.nii.gz", "MRI")
    away = Grid(
        moving.grid.size,
        moving.grid.spacing,
        tuple(start[:3, :3] @ moving.grid.origin + start[:3, 3]),
        tuple((start[:3, :3] @ moving.grid.axes).ravel()),
    )
    write_volume(Volume(moving.array, away), folder / "away.nii.gz")
    result = peers.run_peer("convexadam", folder / "ct.nii.gz", folder / "away.nii.gz", spacing_mm=3.0, start=start)
    wanted = (points + true_displacement(points)) @ start[:3, :3].T + start[:3, 3]
    error = np.linalg.norm(result.field.transform_points(points) - wanted, axis=1).mean()
    assert error < 0.35 * np.linalg.norm(true_displacement(points), axis=1).mean()


def test_displacements_turn_with_the_grid_and_pass_through_the_start():
    grid = Grid((4, 3, 2), (2.0, 2.0, 2.0), (10.0, 20.0, 30.0), tuple(TURN.ravel()))
    one_voxel_along_x = np.zeros((*grid.shape, 3))
    one_voxel_along_x[..., 0] = 1.0
    # The grid's x axis is the LPS y axis.
    np.testing.assert_allclose(peers.displacement_in_mm(one_voxel_along_x, grid, None)[0, 0, 0], [0.0, 2.0, 0.0])
    start = np.diag([1.5, 1.0, 1.0, 1.0])
    start[:3, 3] = [7.0, 0.0, 0.0]
    moved = peers.displacement_in_mm(one_voxel_along_x, grid, start) + grid.points()
    np.testing.assert_allclose(moved[0, 0, 0], [1.5 * 10.0 + 7.0, 22.0, 30.0])


def test_the_working_grid_holds_every_fixed_voxel_and_suits_the_pooling():
    fixed = Grid((101, 77, 31), (0.9, 1.7, 4.0), (-30.0, 5.0, 9.0), tuple(TURN.ravel()))
    grid = peers.working_grid(fixed, 3.0)
    assert grid.spacing == (3.0, 3.0, 3.0)
    assert all(n % 12 == 0 for n in grid.size)
    assert grid.contains(fixed.corners(), margin_voxels=0.0).all()


def test_what_cannot_be_run_is_said(pair, tmp_path):
    folder, _ = pair
    with pytest.raises(InputError, match="not a method that is known here; choose one of convexadam, elastix, syn"):
        peers.run_peer("astrology", folder / "ct.nii.gz", folder / "mr.nii.gz", spacing_mm=3.0)
    with pytest.raises(InputError, match=r"convexadam: MRI: .* does not exist"):
        peers.run_peer("convexadam", folder / "ct.nii.gz", tmp_path / "absent.nii.gz", spacing_mm=3.0)
    with pytest.raises(WeakTumourError, match=r"convexadam: .*unknown_option"):
        peers.run_peer(
            "convexadam", folder / "ct.nii.gz", folder / "mr.nii.gz", spacing_mm=6.0, options={"unknown_option": 1}
        )


# -- the ruler ----------------------------------------------------------------------------------------------------
def python(code):
    return [sys.executable, "-c", code]


def test_seconds_output_and_exit_code():
    result = run_measured(python("import sys, time; time.sleep(0.5); print('out'); sys.exit('err')"))
    assert result.returncode == 1
    assert "out" in result.output
    assert "err" in result.output
    assert 0.5 <= result.seconds < 5.0


def test_peak_memory_of_a_short_peak_and_without_our_own():
    ballast = np.ones(60_000_000)  # 480 MB here must not be counted there
    small = run_measured(python("pass"))
    # 300 MB for a moment shorter than the sampling: the kernel's high-water mark still knows.
    large = run_measured(python("x = bytearray(b'x') * 300_000_000; del x; import time; time.sleep(0.3)"))
    assert small.peak_mb < 100
    assert 300 < large.peak_mb < 400
    assert ballast[-1] == 1


def test_memory_of_child_processes_is_added():
    child = "x = bytearray(b'x') * 100_000_000; import time; time.sleep(1.0)"
    parent = (
        f"import subprocess, sys; argv = [sys.executable, '-c', {child!r}];"
        "started = [subprocess.Popen(argv) for _ in range(2)]; [process.wait() for process in started]"
    )
    assert 200 < run_measured(python(parent)).peak_mb < 330


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path):
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(note)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    with pytest.raises(TimeoutError):
        run_measured(python(code), timeout_s=2.0)
    pid = int(note.read_text())
    until = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_time_to_the_first_line():
    seconds, line = seconds_to_first_line(
        python("import time; time.sleep(0.4); print('hello', flush=True); time.sleep(60)")
    )
    assert line == "hello"
    assert 0.4 <= seconds < 5.0
    with pytest.raises(RuntimeError, match="without printing"):
        seconds_to_first_line(python("raise SystemExit(3)"))


def test_a_command_that_does_not_exist():
    with pytest.raises(InputError, match="cannot be started"):
        run_measured(["no-such-command-here"])


def test_unknown_figures_become_null():
    value = {"a": np.float32(1.5), "b": [np.inf, np.nan, np.int64(3)], 2: (np.zeros(2), None, "x", True)}
    assert json_ready(value) == {"a": 1.5, "b": [None, None, 3], "2": [[0.0, 0.0], None, "x", True]}
    assert markdown_table(["name", "mm"], [["a", 1.23456], ["b", np.inf], ["c", None]]).splitlines()[2:] == [
        "| a | 1.235 |",
        "| b | - |",
        "| c | - |",
    ]
