"""What a command costs: wall-clock seconds and peak memory of its whole process tree, and how it ended.

Measured from outside, so that our own command line and other people's methods are judged by one ruler.
Needs psutil (in the benchmark extra).
"""

from __future__ import annotations

import contextlib
import math
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..result import high_water_bytes

_POLL_S = 0.05
_MB = 1e6


class Measured(NamedTuple):
    """seconds: wall clock from start to end. peak_mb: 10^6 bytes of resident memory. output: stdout and stderr."""

    seconds: float
    peak_mb: float
    returncode: int
    output: str


def run_measured(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    folder: str | Path | None = None,
    timeout_s: float | None = None,
) -> Measured:
    """Run a command to its end and measure it.

    Peak memory is the larger of two figures: the largest sum of resident memory over the process and its descendants
    at one moment, sampled 20 times a second, and the largest high-water mark that the kernel kept of any one of
    them (Linux; it sees peaks between samples, and unlike wait4's ru_maxrss does not count what the parent held at
    the time of the fork).
    environment: variables added to ours. Raises InputError when the command cannot be started and TimeoutError,
    after ending the whole tree, when it takes longer than timeout_s.
    """
    psutil = _psutil()
    with tempfile.TemporaryFile() as output:
        begun = time.monotonic()
        try:
            process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **(environment or {})},
            )
        except OSError as error:
            raise InputError(
                f"The command {argv[0]} cannot be started ({error.strerror}); check that it is installed."
            ) from error
        root = psutil.Process(process.pid)
        peak = 0
        try:
            while True:
                peak = max(peak, _memory_now(psutil, root))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_S)
                    break
                if timeout_s is not None and time.monotonic() - begun > timeout_s:
                    raise TimeoutError(f"{argv[0]} did not end within {timeout_s:g} s")
            seconds = time.monotonic() - begun
        finally:
            if process.poll() is None:
                _end_tree(psutil, root)
                process.wait()
        output.seek(0)
        return Measured(seconds, peak / _MB, process.returncode, output.read().decode(errors="replace"))


def seconds_to_first_line(argv: Sequence[str], *, environment: Mapping[str, str] | None = None) -> tuple[float, str]:
    """(seconds until a command has printed its first line on stdout, that line); the command is then ended.

    Raises RuntimeError when it ends without a line.
    """
    psutil = _psutil()
    begun = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})},
    )
    try:
        line = process.stdout.readline().decode(errors="replace").strip()
        seconds = time.monotonic() - begun
    finally:
        if process.poll() is None:
            _end_tree(psutil, psutil.Process(process.pid))
        process.stdout.close()
        process.wait()
    if not line:
        raise RuntimeError(f"{argv[0]} ended with {process.returncode} without printing a line")
    return seconds, line


def _psutil():
    try:
        import psutil
    except ImportError as error:
        raise InputError(
            "Measuring needs the package psutil; install it with: pip install -e '.[benchmark]' in the checkout of "
            "WeakTumourSeg."
        ) from error
    return psutil


def _memory_now(psutil, root) -> int:
    """Bytes: resident memory of the tree now, or the largest high-water mark of one of its processes."""
    total = high_water = 0
    try:
        tree = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0
    for process in tree:
        with contextlib.suppress(psutil.Error, OSError):
            total += process.memory_info().rss
            high_water = max(high_water, high_water_bytes(process.pid) or 0)
    return max(total, high_water)


def _end_tree(psutil, root) -> None:
    with contextlib.suppress(psutil.Error):
        for process in [*root.children(recursive=True), root]:
            with contextlib.suppress(psutil.Error):
                process.kill()


# -- writing down ----------------------------------------------------------------------------------------------
def json_ready(value):
    """The same value in JSON's own types; what is unknown or infinite becomes null."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [json_ready(item) for item in value]
    if isinstance(value, (np.generic,)):
        return json_ready(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table to print or to paste; floats with fewer digits the larger they are, "-" for what is unknown."""

    def cell(value: object) -> str:
        if value is None:
            return "-"
        if isinstance(value, (float, np.floating)):
            if not math.isfinite(value):
                return "-"
            return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"
        return str(value)

    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines)


def machine() -> str:
    """One line on where figures were measured."""
    psutil = _psutil()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()} {platform.machine()}"
    return f"{system}, {cores} cores, {memory:.0f} GiB, Python {platform.python_version()}"
