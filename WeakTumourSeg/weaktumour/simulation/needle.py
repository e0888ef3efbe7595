"""An ablation needle in the CT, and the streaks that its metal casts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..volumes import Grid
from .shapes import capsule, random_stream

_RADIUS_MM = 0.8
_METAL_HU = 3000.0


@dataclass(frozen=True)
class Needle:
    """entry, tip: (3,) LPS mm in the CT. streaks_hu: near the tip. rays: of the star, and its turn in radians."""

    entry: np.ndarray
    tip: np.ndarray
    streaks_hu: float
    rays: int
    turn: float

    @staticmethod
    def drawn(seed: int, target: np.ndarray) -> Needle:
        """From the right or the front towards a target, which it may miss by some mm."""
        rng = random_stream(seed, "needle")
        angle, rise = np.radians(rng.uniform(-170, -80)), rng.uniform(-0.35, 0.2)
        way = np.array([np.cos(angle), np.sin(angle), rise])
        tip = np.asarray(target, dtype=float) + rng.normal(0, 3, 3)
        return Needle(
            tip + 190 * way / np.linalg.norm(way), tip, float(rng.uniform(30, 120)), int(rng.integers(5, 12)),
            float(rng.uniform(0, 2 * np.pi)),
        )  # fmt: skip

    def in_ct(self, values: np.ndarray, grid: Grid) -> np.ndarray:
        """values: (z, y, x) HU on the grid, with the needle and its streaks."""
        x, y, z = np.moveaxis(grid.points(), -1, 0)
        share = np.clip(0.5 - capsule(x, y, z, self.tip, self.entry, _RADIUS_MM, _RADIUS_MM) / min(grid.spacing), 0, 1)
        dx, dy, dz = x - self.tip[0], y - self.tip[1], z - self.tip[2]
        near = np.exp(-((dz / 5.0) ** 2) - np.hypot(dx, dy) / 45.0)
        streaks = self.streaks_hu * near * np.cos(self.rays * np.arctan2(dy, dx) + self.turn)
        streaks[values < -700] = 0.0
        return (values + streaks + share * (_METAL_HU - values)).astype(np.float32)
