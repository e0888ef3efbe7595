"""Which device computes."""

from __future__ import annotations

import torch

from .errors import DeviceError, InputError

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
