"""What tissues look like: mean signals and textures for CT and MR, the coil's bias field, and noise.

CT in Hounsfield units, MR relative to the liver = 1. One table of tissues, CT in the portal-venous phase and MR
T1-weighted in the hepatobiliary phase, and what other phases and protocols change in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..volumes import Grid
from .shapes import random_stream, smooth_noise


@dataclass(frozen=True)
class Tissue:
    """Means and standard deviations of the texture, in HU and in units of the liver's MR signal."""

    hu: float
    hu_texture: float
    mr: float
    mr_texture: float


# Attenuation after Brant and Helms, Fundamentals of Diagnostic Radiology, rounded; MR by eye against the T1 images
# of the public CHAOS collection. The CT texture of the liver is weak, so that a tumour really is invisible there.
_TISSUES = {
    "air": Tissue(-1000, 0, 0.0, 0.0),
    "skin": Tissue(20, 0, 0.45, 0.0),
    "fat": Tissue(-103, 6, 1.15, 0.05),
    "visceral fat": Tissue(-100, 9, 1.1, 0.07),
    "muscle": Tissue(58, 7, 0.5, 0.04),
    "lung": Tissue(-850, 25, 0.05, 0.015),
    "lung vessel": Tissue(40, 0, 0.12, 0.0),
    "heart": Tissue(130, 8, 0.42, 0.05),
    "myocardium": Tissue(95, 5, 0.52, 0.04),
    "cortical bone": Tissue(700, 40, 0.12, 0.02),
    "marrow": Tissue(210, 35, 0.75, 0.08),
    "cartilage": Tissue(110, 12, 0.4, 0.03),
    "disc": Tissue(85, 8, 0.34, 0.04),
    "spinal fluid": Tissue(12, 2, 0.22, 0.02),
    "cord": Tissue(38, 3, 0.5, 0.03),
    "blood": Tissue(156, 4, 0.4, 0.03),
    "liver": Tissue(108, 1.6, 1.0, 0.035),
    "liver vessel": Tissue(160, 2, 0.45, 0.02),
    "tumour": Tissue(108, 1.6, 0.46, 0.05),
    "gallbladder wall": Tissue(60, 3, 0.6, 0.02),
    "bile": Tissue(10, 2, 0.3, 0.02),
    "spleen": Tissue(122, 3, 0.44, 0.03),
    "kidney": Tissue(172, 9, 0.68, 0.06),
    "renal pelvis": Tissue(20, 5, 0.3, 0.04),
    "pancreas": Tissue(92, 12, 0.7, 0.07),
    "bowel wall": Tissue(72, 6, 0.5, 0.04),
    "fluid": Tissue(14, 6, 0.22, 0.05),
    "ascites": Tissue(10, 2, 0.25, 0.02),
    "gas": Tissue(-960, 15, 0.02, 0.0),
    "stool": Tissue(-40, 160, 0.4, 0.16),
}

TISSUE_NAMES = tuple(_TISSUES)

# What differs from the table above, by phase; HU.
CT_PHASES: dict[str, dict[str, float]] = {
    "portal venous": {},
    "native": {"liver": 58, "liver vessel": 42, "blood": 42, "heart": 42, "myocardium": 45, "kidney": 32, "spleen": 48,
               "pancreas": 42, "muscle": 52, "bowel wall": 38},
    "late arterial": {"liver": 78, "liver vessel": 112, "blood": 230, "heart": 220, "myocardium": 110, "kidney": 165,
                      "spleen": 130, "pancreas": 108, "bowel wall": 85},
}  # fmt: skip


@dataclass(frozen=True)
class Protocol:
    """An MR sequence. signals: what differs from the table above, liver = 1; a negative one is out of phase with water.

    tumour: range of a tumour's signal. suppressed: how often the fat is.
    """

    signals: dict[str, float]
    tumour: tuple[float, float]
    suppressed: float


# By eye, after public images. Out of phase, fat and water cancel where they share a voxel: the dark line round organs.
MR_PROTOCOLS: dict[str, Protocol] = {
    "T1 hepatobiliary": Protocol({"fat": 1.9, "visceral fat": 1.8, "marrow": 1.2}, (0.35, 0.6), 0.75),
    "T1 portal venous": Protocol(
        {"liver vessel": 1.35, "blood": 1.4, "heart": 1.3, "kidney": 1.4, "spleen": 1.1, "bile": 0.3, "fat": 1.7,
         "visceral fat": 1.6, "marrow": 1.2}, (0.55, 0.8), 0.75),
    "opposed phase": Protocol(
        {"liver vessel": 0.7, "blood": 0.6, "spleen": 0.75, "muscle": 0.8, "fat": -1.0, "visceral fat": -0.9,
         "kidney": 0.8, "fluid": 0.35, "ascites": 0.35}, (0.6, 0.82), 0.0),
    "T2 fat-suppressed": Protocol(
        {"liver vessel": 0.5, "blood": 0.4, "bile": 3.5, "fluid": 3.2, "ascites": 3.4, "spinal fluid": 3.5,
         "kidney": 2.6, "renal pelvis": 3.5, "spleen": 2.0, "muscle": 0.6, "fat": 0.6, "visceral fat": 0.6,
         "pancreas": 1.5, "bowel wall": 1.6, "marrow": 0.7, "stool": 1.2, "heart": 0.6}, (1.4, 2.1), 0.0),
}  # fmt: skip
SUPPRESSED = 0.27  # of the signal is left
FATTY = ("fat", "visceral fat", "marrow")


def tissue_means() -> tuple[dict[str, float], dict[str, float]]:
    """Mean HU and mean MR signal (liver = 1) of each tissue."""
    return {n: float(t.hu) for n, t in _TISSUES.items()}, {n: float(t.mr) for n, t in _TISSUES.items()}


def tissue_table(seed: int, protocol: str, phase: str) -> dict[str, Tissue]:
    """The tissues of one patient: some per cent of variation, fat suppressed or not, bile excreted or not.

    protocol: of MR_PROTOCOLS. phase: of CT_PHASES. The tumours' look is each tumour's own.
    """
    rng = random_stream(seed, "contrast")
    sequence, hu_of = MR_PROTOCOLS[protocol], CT_PHASES[phase]
    suppressed, bile_bright = rng.random() < sequence.suppressed, rng.random() < 0.5
    table = {}
    for name, tissue in _TISSUES.items():
        hu = float(hu_of.get(name, tissue.hu))
        hu += 0.03 * abs(hu) * float(rng.uniform(-1, 1)) * (-900 < hu < 400)
        mr = sequence.signals.get(name, tissue.mr) * float(rng.uniform(0.92, 1.08))
        if suppressed and name in FATTY:
            mr *= SUPPRESSED
        if bile_bright and name == "bile" and protocol == "T1 hepatobiliary":
            mr = 1.35
        table[name] = Tissue(hu, tissue.hu_texture, mr, tissue.mr_texture)
    table["liver"] = Tissue(table["liver"].hu, _TISSUES["liver"].hu_texture, 1.0, _TISSUES["liver"].mr_texture)
    return table


def textures(grid: Grid, seed: int) -> dict[str, np.ndarray]:
    """{"ct", "mr"}: (z, y, x) float32 of standard deviation about 1, independent of each other.

    MR and CT do not share their texture: what matches between the two is anatomy alone.
    """
    result = {}
    for modality, scales in (("ct", (5.0, 16.0)), ("mr", (6.0, 22.0))):
        rng = random_stream(seed, f"texture {modality}")
        field = np.float32(0.75) * smooth_noise(grid, scales[0], rng)
        field += np.float32(0.66) * smooth_noise(grid, scales[1], rng)
        result[modality] = field
    return result


class BiasField:
    """The receive coils' smooth sensitivity: a multiplicative field of about +-25 %, fixed in the MR frame."""

    def __init__(self, seed: int) -> None:
        rng = random_stream(seed, "bias")
        self._slope = rng.normal(0, 1, 3) / 900.0
        self._bend = rng.normal(0, 1, (3, 3)) / 250.0**2

    def __call__(self, points_mm: np.ndarray) -> np.ndarray:
        """(..., 3) LPS mm -> (...) factor."""
        bend = np.einsum("...i,ij,...j->...", points_mm, self._bend, points_mm)
        return np.exp(np.clip(points_mm @ self._slope + bend, -0.35, 0.35)).astype(np.float32)


def ct_noise(grid: Grid, first_slice: int, slices: int, sigma_hu: float, seed: int) -> np.ndarray:
    """(slices, y, x) float32: noise of the given standard deviation with the short correlation of reconstruction.

    Each slice draws from its own stream, so that a slab at a time gives what the whole volume would.
    """
    white = np.stack(
        [
            np.random.default_rng([seed, 0xC7, k]).standard_normal(grid.shape[1:], dtype=np.float32)
            for k in range(first_slice, first_slice + slices + 1)
        ]
    )
    noise = 0.9 * white[:-1] + 0.45 * white[1:]
    for axis in (1, 2):
        noise = noise + 0.6 * (np.roll(noise, 1, axis) + np.roll(noise, -1, axis))
    return noise * np.float32(sigma_hu / (np.hypot(0.9, 0.45) * (1 + 2 * 0.6**2)))


def rician(signal: np.ndarray, sigma: float, first_slice: int, seed: int) -> np.ndarray:
    """Magnitude of a complex signal with Gaussian noise in both channels (Gudbjartsson and Patz 1995).

    signal: (slices, y, x), which start at `first_slice` of the volume; each slice draws from its own stream.
    """
    if sigma <= 0:
        return signal
    result = np.empty_like(signal)
    for k, plane in enumerate(signal):
        noise = np.random.default_rng([seed, 0x3A, first_slice + k]).standard_normal(
            (2, *plane.shape), dtype=np.float32
        )
        result[k] = np.hypot(plane + sigma * noise[0], sigma * noise[1])
    return result
