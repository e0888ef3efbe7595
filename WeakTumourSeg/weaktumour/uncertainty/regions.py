"""From a calibrated radius to what can be drawn: a covariance, and the probability that a voxel is tumour."""

from __future__ import annotations

import numpy as np

from ..volumes import Grid

# The radius in standard deviations that holds 95 % of an isotropic normal distribution in three dimensions.
_P95_OF_NORMAL = 2.7955
_LEAST_SHARE = 0.15  # of the mean variance, in every direction: few members do not know a direction exactly
_REACH = 3.5  # standard deviations


def covariance_mm2(places_mm: np.ndarray, p95_mm: float) -> np.ndarray:
    """(3, 3) of the centroid's place: the ensemble's shape at the calibrated size.

    places_mm: (members, 3). The trace is that of the isotropic normal distribution with this 95 % radius.
    """
    off = places_mm - np.median(places_mm, axis=0)
    shape = off.T @ off / max(len(off), 1)
    size = float(np.trace(shape)) / 3
    shape = shape / size if size > 1e-9 else np.eye(3)
    shape = (1 - _LEAST_SHARE) * shape + _LEAST_SHARE * np.eye(3)
    return shape * (p95_mm / _P95_OF_NORMAL) ** 2


def probability(total: np.ndarray, tumour: np.ndarray, grid: Grid, covariance: np.ndarray) -> None:
    """Add a tumour to the probability that a voxel is tumour: 1 - (1 - total)(1 - its own), in place.

    Its own is its mask (z, y, x; bool, on `grid`) at every place that the normal distribution with this covariance
    (mm2, LPS) gives it, weighed by the chance of the place.
    """
    index = np.argwhere(tumour)
    if not len(index):
        return
    along_axes = grid.axes.T @ covariance @ grid.axes
    reach = _REACH * np.sqrt(np.diag(along_axes)) / grid.spacing  # voxels, x y z
    low = np.maximum(index.min(0) - np.ceil(reach[::-1]).astype(int), 0)
    high = np.minimum(index.max(0) + 1 + np.ceil(reach[::-1]).astype(int), tumour.shape)
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    # Padded, so that what leaves one face does not come in at the other.
    padded = [int(n + np.ceil(r)) for n, r in zip(high - low, reach[::-1], strict=True)]
    frequency = [np.fft.fftfreq(padded[0], grid.spacing[2]), np.fft.fftfreq(padded[1], grid.spacing[1]),
                 np.fft.rfftfreq(padded[2], grid.spacing[0])]  # fmt: skip
    z, y, x = np.meshgrid(*frequency, indexing="ij", sparse=True)
    (a, b, c), (_, d, e), (_, _, f) = along_axes
    exponent = a * x * x + d * y * y + f * z * z + 2 * (b * x * y + c * x * z + e * y * z)
    spectrum = np.fft.rfftn(tumour[part].astype(np.float64), padded, axes=(0, 1, 2)) * np.exp(-2 * np.pi**2 * exponent)
    own = np.fft.irfftn(spectrum, padded, axes=(0, 1, 2))[
        tuple(slice(0, b - a) for a, b in zip(low, high, strict=True))
    ]
    total[part] = 1 - (1 - total[part]) * (1 - np.clip(own, 0, 1).astype(np.float32))
