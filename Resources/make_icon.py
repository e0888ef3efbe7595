"""Draws WeakTumourSeg.png, the extension's icon.

A liver, half as a CT shows it (grey, nothing to see) and half as an MRI does (colour, the tumour bright), with a target
ring round the tumour's place in both.

    python Resources/make_icon.py [OUT.png]

Everything is a signed distance in the unit square, painted four times too large and averaged down; numpy and SimpleITK
only, no font, no random numbers: the same picture each time.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SIZE = 256
OVERSAMPLING = 4

CT_BACK, CT_LIVER, CT_VESSEL = (38, 42, 48), (138, 143, 150), (158, 163, 170)
MR_BACK, MR_LIVER, MR_VESSEL = (16, 46, 66), (186, 84, 66), (120, 44, 44)
TUMOUR, TARGET, SEAM = (255, 214, 120), (86, 222, 196), (240, 244, 248)

# The liver's outline, x to the right and y down, as seen on an axial or coronal slice: the broad right lobe on the left
# of the picture, the left lobe tapering to a tip on the right, the hilum below.
LIVER_OUTLINE = [
    (0.12, 0.44), (0.15, 0.29), (0.25, 0.20), (0.40, 0.18), (0.55, 0.22), (0.70, 0.25), (0.84, 0.28), (0.91, 0.34),
    (0.86, 0.42), (0.75, 0.47), (0.64, 0.52), (0.57, 0.58), (0.52, 0.66), (0.44, 0.76), (0.33, 0.83), (0.22, 0.80),
    (0.15, 0.69), (0.12, 0.56),
]  # fmt: skip
# Stem and branches as (x, y, radius), from the hilum upwards.
VESSELS = [
    [(0.60, 0.60, 0.020), (0.50, 0.53, 0.018), (0.40, 0.55, 0.014), (0.28, 0.63, 0.010), (0.22, 0.72, 0.006)],
    [(0.50, 0.53, 0.016), (0.44, 0.42, 0.013), (0.33, 0.33, 0.009), (0.23, 0.33, 0.005)],
    [(0.50, 0.53, 0.015), (0.60, 0.41, 0.012), (0.72, 0.36, 0.009), (0.83, 0.35, 0.005)],
    [(0.40, 0.55, 0.010), (0.27, 0.51, 0.008), (0.19, 0.46, 0.004)],
]
TUMOUR_CENTRE, TUMOUR_RADIUS, RING_RADIUS, RING_WIDTH = (0.455, 0.44), 0.085, 0.165, 0.022


def smooth_closed(points: list[tuple[float, float]], steps: int = 6) -> np.ndarray:
    """(n, 2) points on a closed Catmull-Rom curve through the given ones."""
    p = np.asarray(points)
    before, after, beyond = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (v[:, None] for v in (before, p, after, beyond))
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    return curve.reshape(-1, 2)


def distance_to_polygon(x: np.ndarray, y: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Signed distance to a closed polygon, negative inside."""
    nearest, inside = np.full(x.shape, np.inf), np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, 0), strict=True):
        along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)))
        if ay != by:
            inside ^= ((y < ay) != (y < by)) & (x < ax + (y - ay) * (bx - ax) / (by - ay))
    return np.where(inside, -nearest, nearest)


def distance_to_vessels(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to the vessel tree, tapering pieces with round ends."""
    nearest = np.full(x.shape, np.inf)
    for branch in VESSELS:
        for (ax, ay, ar), (bx, by, br) in pairwise(branch):
            along = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2), 0, 1)
            gap = np.hypot(x - ax - along * (bx - ax), y - ay - along * (by - ay)) - (ar + along * (br - ar))
            nearest = np.minimum(nearest, gap)
    return nearest


def draw(size: int = SIZE) -> np.ndarray:
    """(size, size, 4) uint8, red green blue alpha."""
    n = size * OVERSAMPLING
    y, x = (np.mgrid[0:n, 0:n] + 0.5) / n
    picture = np.zeros((n, n, 3))

    def paint(inside: np.ndarray, left: tuple[int, ...], right: tuple[int, ...] | None = None) -> None:
        picture[inside & ct] = left
        picture[inside & ~ct] = right or left

    tumour_x, tumour_y = TUMOUR_CENTRE
    seam = x - tumour_x - 0.42 * (tumour_y - y)  # a slanted cut through the tumour: CT on its left, MRI on its right
    ct = seam < 0
    liver = distance_to_polygon(x, y, smooth_closed(LIVER_OUTLINE))
    from_tumour = np.hypot(x - tumour_x, y - tumour_y)

    paint(np.ones_like(ct), CT_BACK, MR_BACK)
    paint(liver < 0, CT_LIVER, MR_LIVER)
    paint((liver < -0.012) & (distance_to_vessels(x, y) < 0), CT_VESSEL, MR_VESSEL)
    # Rounded: a shade towards the rim, as if lit from the front.
    picture *= np.where(liver < 0, 0.80 + 0.20 * np.clip(-liver / 0.07, 0, 1), 1.0)[..., None]
    picture[(from_tumour < TUMOUR_RADIUS) & ~ct] = TUMOUR
    picture[(np.abs(seam) < 0.005) & (from_tumour > RING_RADIUS)] = SEAM

    # The target: a ring with four ticks, the same in both halves: the place is known though the CT shows nothing.
    ring = np.abs(from_tumour - RING_RADIUS) < RING_WIDTH / 2
    dx, dy = np.abs(x - tumour_x), np.abs(y - tumour_y)
    tick = (np.minimum(dx, dy) < RING_WIDTH / 2) & (np.abs(np.maximum(dx, dy) - RING_RADIUS) < 0.048)
    outline = np.abs(from_tumour - TUMOUR_RADIUS) < 0.006
    dashed = ct & outline & (np.mod(np.arctan2(y - tumour_y, x - tumour_x), 0.5) < 0.28)
    picture[ring | tick | dashed] = TARGET

    corner = 0.16
    qx, qy = np.abs(x - 0.5) - 0.5 + corner, np.abs(y - 0.5) - 0.5 + corner
    opaque = np.hypot(np.maximum(qx, 0), np.maximum(qy, 0)) < corner
    with_alpha = np.dstack([picture * opaque[..., None], 255.0 * opaque])
    small = with_alpha.reshape(size, OVERSAMPLING, size, OVERSAMPLING, 4).mean((1, 3))
    small[..., :3] /= np.maximum(small[..., 3:] / 255, 1e-6)
    return np.round(np.clip(small, 0, 255)).astype(np.uint8)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[1] / "WeakTumourSeg.png"
    sitk.WriteImage(sitk.GetImageFromArray(draw(), isVector=True), str(out), useCompression=True)
    print(out)


if __name__ == "__main__":
    main()
