"""Branching vessel trees that fill an organ.

A tree serves a cloud of target points: the cloud is split in two along its longest axis, a branch runs part of the way
to each half, and so on down to single targets. Radii follow Murray's law (the cubes of the daughters add up to the
cube of the parent), with the number of targets served in place of the flow.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Segment = tuple[np.ndarray, np.ndarray, float, float]


def vessel_tree(
    root: np.ndarray,
    targets: np.ndarray,
    *,
    root_radius: float,
    tip_radius: float,
    rng: np.random.Generator,
    wobble: float = 0.12,
) -> Iterator[Segment]:
    """Segments (start, end, radius at start, radius at end), trunk first, in mm.

    targets: (n, 3). wobble: how far a branch bends sideways, as a share of its length.
    """
    total = max(len(targets), 1)

    def radius(count: int) -> float:
        return max(tip_radius, root_radius * (count / total) ** (1 / 3))

    pending = [(np.asarray(root, dtype=float), np.asarray(targets, dtype=float), radius(total))]
    while pending:
        start, cloud, r0 = pending.pop(0)
        if len(cloud) == 0:
            continue
        centre = cloud.mean(0)
        end = start + (1.0 if len(cloud) == 1 else 0.5) * (centre - start)
        length = float(np.linalg.norm(end - start))
        r1 = radius(len(cloud))
        if length > 1.0:
            bend = start + 0.5 * (end - start) + wobble * length * rng.normal(0, 1, 3) * (length > 8)
            middle = 0.5 * (r0 + r1)
            yield start, bend, r0, middle
            yield bend, end, middle, r1
        if len(cloud) > 1:
            axis = np.linalg.svd(cloud - centre, full_matrices=False)[2][0]
            # Unequal halves, as in life; by rank, so that both hold something even where targets coincide.
            order = np.argsort((cloud - centre) @ axis, kind="stable")
            cut = int(np.clip(round(len(cloud) * rng.uniform(0.35, 0.65)), 1, len(cloud) - 1))
            for part in (cloud[order[:cut]], cloud[order[cut:]]):
                pending.append((end, part, min(r1, radius(len(part)) * 1.05)))
