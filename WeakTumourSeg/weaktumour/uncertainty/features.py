"""From an ensemble and the images' evidence to the numbers that the calibration weighs, for each tumour.

Lengths enter as logarithms, so that a model of the logarithm of the error is a product of powers of them.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from ..deformation import Affine
from .evidence import Evidence, Whole

NAMES = (
    "spread", "wander", "mind_cost", "mind_contrast", "mind_offset", "vessel_correlation", "vessel_contrast",
    "vessel_offset", "vessels_ct", "surface_gap", "liver_mind_cost", "liver_vessel_correlation", "liver_surface_gap",
    "similarity", "seen", "depth", "stretch", "volume_scale", "outside", "volumes", "gap_p90", "strain", "bending",
    "moved", "vessels", "liver_vessel_contrast",
)  # fmt: skip
_LOGARITHMS = {"mind_offset_mm": 0.3, "vessel_offset_mm": 0.3, "vessels_ct": 0.005, "surface_gap_mm": 0.5}


def tumour_features(
    places_mm: np.ndarray,
    place_mm: np.ndarray,
    near: Evidence,
    liver: Evidence,
    all_of_it: Whole,
    *,
    alignment: Affine,
    similarity: float,
    overlap: float,
    depth_mm: float,
    seen: bool,
    aligned_mm: np.ndarray,
    vessels: float | None,
) -> dict[str, float]:
    """places_mm: (members, 3) of the ensemble; place_mm: (3,) of the result; aligned_mm: (3,) of the alignment alone.

    near, liver: evidence round the tumour and in the whole liver; all_of_it: what the registration made of that.
    similarity: the score's first term. overlap: share of the liver inside the CT. depth_mm: of the tumour's centroid
    below the liver's surface. seen: whether the CT shows the tumour. vessels: their correlation in MRI and CT, None
    where the two do not show the same.
    """
    middle = np.median(places_mm, axis=0)
    spread = float(np.sqrt(np.mean(np.sum((places_mm - middle) ** 2, axis=1))))
    local, whole = (_logarithms(asdict(evidence)) for evidence in (near, liver))
    stretches = np.linalg.svd(alignment.matrix[:3, :3], compute_uv=False)
    return {
        "spread": float(np.log(0.3 + spread)),
        "wander": float(np.log(0.3 + np.linalg.norm(middle - place_mm))),
        **{name: local[name] for name in ("mind_cost", "mind_contrast", "mind_offset", "vessel_correlation",
                                          "vessel_contrast", "vessel_offset", "vessels_ct", "surface_gap")},
        **{f"liver_{name}": whole[name]
           for name in ("mind_cost", "vessel_correlation", "vessel_contrast", "surface_gap")},
        "similarity": float(similarity),
        "seen": float(seen),
        "depth": float(np.log(max(depth_mm, 3.0))),
        "moved": float(np.log(1.0 + np.linalg.norm(place_mm - aligned_mm))),
        "vessels": np.nan if vessels is None else float(vessels),
        "stretch": float(np.log(stretches[0] / stretches[-1])),
        "volume_scale": float(abs(np.log(np.prod(stretches)))),
        "outside": 1.0 - float(overlap),
        "volumes": all_of_it.volumes,
        "gap_p90": float(np.log(all_of_it.gap_p90_mm + 0.5)),
        "strain": float(np.log(all_of_it.strain + 0.01)),
        "bending": float(np.log(all_of_it.bending_mm + 0.3)),
    }  # fmt: skip


def _logarithms(evidence: dict[str, float]) -> dict[str, float]:
    return {
        name.removesuffix("_mm"): float(np.log(value + _LOGARITHMS[name])) if name in _LOGARITHMS else float(value)
        for name, value in evidence.items()
    }
