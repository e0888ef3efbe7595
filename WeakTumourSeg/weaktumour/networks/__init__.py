"""The networks: pure torch modules, without weights (`models`) and without geometry."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import ModelError
from .mscgunet import MSCGUNet
from .unet import AttentionUNet, UNet

ARCHITECTURES: dict[str, type[nn.Module]] = {"mscgunet": MSCGUNet, "unet": UNet, "attention_unet": AttentionUNet}


def build(architecture: str, arguments: dict[str, Any]) -> nn.Module:
    """A network with fresh weights. Raises ModelError for an unknown architecture or arguments that do not fit it."""
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f'Model: the architecture "{architecture}" is unknown; this version has {", ".join(ARCHITECTURES)}.'
        )
    try:
        return ARCHITECTURES[architecture](**arguments)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:  # RuntimeError: torch, absurd sizes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"Model: the arguments {arguments} do not fit the architecture {architecture} ({reason}); "
            "correct them in its manifest."
        ) from error
