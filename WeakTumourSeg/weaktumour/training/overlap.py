"""Losses of a UNet whose labels are not all equally sure: each voxel counts by the confidence of its label.

Everything is on one grid: probabilities (1, classes, z, y, x), target (1, z, y, x) classes, weight (1, z, y, x) from 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .weak_config import Segmenting

_SMOOTH = 1.0  # voxels; keeps empty classes finite


def soft_dice(
    probability: torch.Tensor, truth: torch.Tensor, weight: torch.Tensor, smooth: float = _SMOOTH
) -> torch.Tensor:
    """2 sum(w p t) / (sum(w p) + sum(w t)), all of one shape; 1 is best (Milletari et al., 3DV 2016)."""
    both = (weight * probability * truth).sum()
    return (2 * both + smooth) / ((weight * probability).sum() + (weight * truth).sum() + smooth)


def focal_tversky(
    probability: torch.Tensor,
    truth: torch.Tensor,
    weight: torch.Tensor,
    alpha: float = 0.7,
    beta: float = 0.3,
    gamma: float = 4 / 3,
    smooth: float = _SMOOTH,
) -> torch.Tensor:
    """(1 - TI)^(1 / gamma) with TI = TP / (TP + alpha FN + beta FP) (Abraham and Khan, ISBI 2019, equations 2 and 4).

    alpha above beta: what is missed costs more than what is claimed. gamma above 1: the nearly right is still pushed.
    """
    hit = (weight * probability * truth).sum()
    missed = (weight * (1 - probability) * truth).sum()
    claimed = (weight * probability * (1 - truth)).sum()
    index = (hit + smooth) / (hit + alpha * missed + beta * claimed + smooth)
    # The root has no slope at 0.
    return (1 - index).clamp(min=1e-6) ** (1 / gamma)


def overlap_loss(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, settings: Segmenting
) -> dict[str, torch.Tensor]:
    """ "loss" and its parts. Where every weight is 0 the loss is next to 0 and has no gradient.

    logits (1, classes, z, y, x); the mean over the foreground classes and, without cross-entropy, the background: else
    nothing would keep it from being called a tumour where there is none to miss (an empty class has next to no slope).
    A class above 1 that is nowhere in the target with any weight is left out: what claims it is missing elsewhere.
    """
    probability = logits.softmax(1)
    parts: dict[str, torch.Tensor] = {}
    terms = []
    for value in range(1 if settings.loss == "dice_ce" else 0, logits.shape[1]):
        truth = (target == value).float()
        if value > 1 and not (weight * truth).any():
            continue
        if settings.loss == "focal_tversky":
            a, b, g = settings.alpha, settings.beta, settings.gamma
            terms.append(focal_tversky(probability[:, value], truth, weight, a, b, g))
        else:
            terms.append(1 - soft_dice(probability[:, value], truth, weight))
    parts["overlap"] = torch.stack(terms).mean()
    loss = parts["overlap"]
    if settings.loss == "dice_ce":
        of_class = torch.ones(logits.shape[1], device=logits.device)
        of_class[2:] = settings.tumour_weight
        each = weight * of_class[target]
        entropy = F.cross_entropy(logits, target, reduction="none")
        parts["entropy"] = (each * entropy).sum() / each.sum().clamp(min=1e-6)
        loss = loss + parts["entropy"]
    return {"loss": loss, **parts}


def deep_loss(
    outputs: torch.Tensor | list[torch.Tensor], target: torch.Tensor, weight: torch.Tensor, settings: Segmenting
) -> dict[str, torch.Tensor]:
    """`overlap_loss` of every level that a deep-supervised UNet gives, half as much for each coarser one."""
    outputs = outputs if isinstance(outputs, list) else [outputs]
    levels = []
    for level, logits in enumerate(outputs):
        # The network pads the image; what it says beyond the target's end counts for nothing.
        every = (slice(None), *(slice(None, None, 2**level),) * 3)
        depth, height, width = target[every].shape[1:]
        levels.append(
            overlap_loss(logits[:, :, :depth, :height, :width].float(), target[every], weight[every], settings)
        )
    total = sum(found["loss"] * 0.5**level for level, found in enumerate(levels))
    return {**levels[0], "loss": total / sum(0.5**level for level in range(len(levels)))}
