"""Is everything there that a run needs? Nothing is installed or downloaded here without a click, and never by pip.

The application's own process does not import torch: whether it is there is looked up, and what it can do (devices,
memory) is asked from a short child process.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from slicer.i18n import tr as _

from .worker_process import (
    POLL_MS,
    PYTHON_VARIABLE,
    LineProcess,
    Ticker,
    childEnvironment,
    parseEvent,
    pythonExecutable,
    startFailure,
)

_OLDEST_TORCH = (2, 4)
TORCH_REQUIREMENT = ">=2.4"
_LITTLE_GPU_MEMORY_MB = 3000

# Runs in the worker's Python. Prints one line: {"event": "machine", ...}.
_PROBE = """
import json, os, platform
import torch
from weaktumour.pipeline import PRESETS
def megabytes(count): return round(count / 2**20)
name = platform.processor() or platform.machine()
try:
    with open("/proc/cpuinfo") as lines:
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
except (OSError, StopIteration):
    pass
devices = [{"id": "cpu", "name": name, "free_mb": None}]
if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
    devices[0]["free_mb"] = megabytes(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
if torch.cuda.is_available():
    devices.insert(0, {"id": "cuda", "name": torch.cuda.get_device_name(0),
                       "free_mb": megabytes(torch.cuda.mem_get_info(0)[0])})
if torch.backends.mps.is_available():
    devices.append({"id": "mps", "name": "Apple GPU", "free_mb": None})
seconds = {name: sum(preset.seconds.values()) for name, preset in PRESETS.items()}
print(json.dumps({"event": "machine", "torch": torch.__version__, "devices": devices, "seconds": seconds}))
"""


@dataclass(frozen=True)
class Machine:
    """What a child process found. devices: {id: {"name", "free_mb": int|None}}, the one that auto takes first.

    seconds: the engine's own estimate for each preset. problem: a sentence where the child could not tell.
    """

    torch: str | None = None
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    problem: str = ""


def hasTorch() -> bool:
    """Whether torch can be found, without importing it. With another Python named, only a run can tell."""
    return bool(os.environ.get(PYTHON_VARIABLE)) or importlib.util.find_spec("torch") is not None


def installTorch() -> bool:
    """Let the PyTorch extension ask and install. Returns whether torch is there. Raises RuntimeError without it."""
    try:
        import PyTorchUtils
    except ImportError as error:
        raise RuntimeError(
            _(
                "The PyTorch extension is not installed. Install it with the Extensions Manager and restart Slicer; "
                "without internet, install its package from a file there."
            )
        ) from error
    PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=TORCH_REQUIREMENT)
    return hasTorch()


class Child:
    """A short child process whose lines are collected; `onDone(exitCode, lines)` on the main thread, once."""

    def __init__(self, arguments: list[str], onDone: Callable[[int, list[str]], None], ticker: Ticker) -> None:
        """arguments: of the worker's Python."""
        self._lines: list[str] = []
        self._onDone: Callable[[int, list[str]], None] | None = onDone
        self._process: LineProcess | None = None
        python = pythonExecutable()
        try:
            self._process = LineProcess([python, *arguments], childEnvironment())
        except OSError as error:
            self._lines.append(startFailure(error, python))
        self._stopTicker = ticker(POLL_MS, self._poll)

    def _poll(self) -> None:
        code = self._process.exitCode() if self._process else -1
        self._lines += self._process.lines() if self._process else []
        if code is not None and self._onDone is not None:
            self._stopTicker()
            onDone, self._onDone = self._onDone, None
            onDone(code, self._lines)

    def abandon(self) -> None:
        """End it; nobody is told."""
        self._stopTicker()
        self._onDone = None
        if self._process is not None:
            self._process.end()


def probeMachine(onDone: Callable[[Machine], None], ticker: Ticker) -> Child:
    """Ask a child process for devices, memory and expected times."""
    return Child(["-c", _PROBE], lambda code, lines: onDone(parseMachine(code, lines)), ticker)


def parseMachine(code: int, lines: list[str]) -> Machine:
    for line in lines:
        event = parseEvent(line)
        if event["event"] == "machine":
            devices = {device.pop("id"): device for device in event["devices"]}
            return Machine(event["torch"], devices, event["seconds"])
    last = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
    return Machine(problem=_("PyTorch does not work here ({reason}).").format(reason=last))


def torchProblem(machine: Machine) -> str:
    """Why no run can work with what the child process found, in one sentence; empty where one can."""
    if machine.problem:
        return machine.problem
    version = re.match(r"(\d+)\.(\d+)", machine.torch or "")
    if version and (int(version[1]), int(version[2])) < _OLDEST_TORCH:
        return _("PyTorch {version} is too old; {oldest} or later is needed.").format(
            version=machine.torch, oldest=".".join(map(str, _OLDEST_TORCH))
        )
    return ""


def describeDevice(machine: Machine, device: str) -> str:
    """One sentence on where a run with this choice computes and what that means."""
    if machine.problem:
        return machine.problem
    if not machine.devices:
        return ""
    chosen = device
    if device == "auto":
        chosen = "cuda" if "cuda" in machine.devices else "cpu"
    found = machine.devices.get(chosen)
    if found is None:
        return _("This PyTorch {version} sees no {device} here; choose another device.").format(
            version=machine.torch, device=chosen
        )
    free = found["free_mb"]
    memory = "" if free is None else _(", {size} GB free").format(size=round(free / 1024, 1))
    text = f"{found['name']}{memory}"
    if chosen == "cpu" and device == "auto":
        return _("{device}. No GPU was found: the CPU computes, which takes longer.").format(device=text)
    if chosen == "cuda" and free is not None and free < _LITTLE_GPU_MEMORY_MB:
        return _("{device}: little for a GPU; what does not fit runs on the CPU and takes longer.").format(device=text)
    return text
