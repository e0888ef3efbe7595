"""Which device computes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch

from .errors import DeviceError, InputError
from .progress import Monitor

CHOICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str) -> torch.device:
    """'auto' takes a CUDA GPU where there is one, else the CPU. Raises InputError or DeviceError with the remedy."""
    if name not in CHOICES:
        raise InputError(f'Device: "{name}" is not known; choose one of {", ".join(CHOICES)}.')
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "Device: this PyTorch sees no CUDA GPU; choose --device cpu, or install PyTorch with CUDA and a driver."
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("Device: this machine has no Apple GPU that PyTorch can use; choose --device cpu.")
    return torch.device(name)


T = TypeVar("T")


def mixed_precision(device: torch.device) -> AbstractContextManager:
    """Half precision where the hardware computes in it: float16 on a CUDA GPU, bfloat16 on CPUs made for it."""
    if device.type == "cuda":
        return torch.autocast("cuda", dtype=torch.float16)
    if device.type == "cpu" and cpu_computes_in_bfloat16():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return nullcontext()


def cpu_computes_in_bfloat16() -> bool:
    """Whether this CPU is made for it; another one imitates it, many times more slowly."""
    # Not in torch's documentation; a version without it computes in full precision.
    made_for_it = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(torch.backends.mkldnn.is_available() and made_for_it and made_for_it())


def on_device(work: Callable[[torch.device], T], device: torch.device, monitor: Monitor) -> T:
    """work(device); where the GPU's memory does not suffice, on the CPU instead, and the log says so."""
    try:
        return work(device)
    except torch.OutOfMemoryError:
        if device.type == "cpu":
            raise
    # Outside the handler, whose traceback would keep the tensors alive.
    if device.type == "cuda":
        torch.cuda.empty_cache()
    monitor.log(f"The GPU ({device}) has too little free memory: this stage runs on the CPU and takes longer.")
    return work(torch.device("cpu"))
