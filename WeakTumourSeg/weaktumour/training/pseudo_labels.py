"""Pseudo-labels: the MRI's labels carried to the CT by registration, and how sure each voxel's label is.

One registration gives the labels. The members of the ensemble that also tells a tumour's uncertainty
(`uncertainty.ensemble`) give votes; a voxel on whose class all agree has confidence 1, one on which half of them
disagree has 0. Nothing here has a gradient: labels are plain arrays.

A tumour that the CT does not show (`registration.lesions`) counts as liver: nobody should learn to see what is not
there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from .. import pipeline
from ..cases import Case
from ..deformation import Affine, DisplacementField
from ..labels import LIVER, TUMOUR, LabelMap
from ..progress import Monitor
from ..propagation import propagate_labels
from ..registration.lesions import carried_roughly, corrected, find_in_ct
from ..registration.refinement import Composed, combine
from ..uncertainty.ensemble import VARIANTS, run_ensemble
from ..volumes import Grid, Volume
from .cohort import labels_of
from .weak_config import Labelling

BACKGROUND, LIVER_CLASS, TUMOUR_CLASS = 0, 1, 2  # the UNet's classes


@dataclass(frozen=True)
class PseudoLabels:
    """labels: on the grid asked for, values as in the MRI. shown: the values of the tumours that the CT shows.

    probability: (3, z, y, x) float32, share of the ensemble for background, liver, tumour that the CT shows.
    confidence: (z, y, x) float32 in [0, 1].
    """

    labels: LabelMap
    shown: tuple[int, ...]
    probability: np.ndarray
    confidence: np.ndarray

    @property
    def classes(self) -> np.ndarray:
        return classes_of(self.labels, self.shown)


def make_pseudo_labels(
    case: Case,
    networks: pipeline.Networks,
    settings: Labelling,
    *,
    grid: Grid | None = None,
    initial: Affine | None = None,
    ct_liver: Volume | None = None,
    seed: int = 0,
    device: torch.device | None = None,
    monitor: Monitor | None = None,
) -> PseudoLabels:
    """Labels and confidence on a CT.

    grid: in the CT's world, by default the CT's own. initial: CT point -> MRI point, LPS mm: the alignment, where it is
    known; then the settings' stages need not name it. ct_liver: mask or probability on the CT, from the newest UNet.
    seed: of the perturbations; the same one gives the same labels.
    """
    device, monitor = device or torch.device("cpu"), monitor or Monitor()
    grid = grid or case.ct.grid
    labels = labels_of(case)
    inputs = pipeline.Inputs(case.mr, case.ct, labels, ct_liver, initial or Affine.identity())
    stages = tuple(stage.strip() for stage in settings.stages.split(",") if stage.strip())
    preset = pipeline.PRESETS[settings.preset]

    main = pipeline.register(inputs, networks, stages, preset, seed=seed, device=device, monitor=monitor)
    field = pipeline.in_world(main.transform, inputs)
    carried = propagate_labels(labels, field, grid, monitor).labels
    shown = tuple(labels.tumours[seen.number].value for seen in main.seen)
    votes = [classes_of(carried, shown)]
    ensemble = run_ensemble(
        main.fixed, main.moving, main.alignment.transform, main.predicted, inputs.in_ct_frame().labels,
        variants=VARIANTS[: settings.members], seed=seed, device=device, monitor=monitor,
    )  # fmt: skip
    for member in ensemble.transforms:
        own = pipeline.in_world(_following(member, main, inputs), inputs)
        votes.append(classes_of(propagate_labels(labels, own, grid, monitor).labels, shown))
    probability = np.stack([np.mean([vote == value for vote in votes], axis=0) for value in range(3)])
    probability = probability.astype(np.float32)
    confidence = confidence_of(votes[0], probability)
    # Where the MRI has not looked, that nothing was carried there means nothing.
    confidence[~case.mr.grid.contains(field.transform_points(grid.points()))] = 0
    return PseudoLabels(carried, shown, probability, confidence)


def _following(member: Composed, main: pipeline.Registered, inputs: pipeline.Inputs) -> DisplacementField:
    """A member's transform in the CT's frame, its visible tumours moved to where the CT shows them, as in a run."""
    transform = combine(member.alignment, member.deformation, main.grid)
    if not main.seen:
        return transform
    straight, deformation = inputs.in_ct_frame(), member.deformation
    codes, grid = carried_roughly(straight.labels, transform)
    for tumour in find_in_ct(straight.ct, codes, grid, len(straight.labels.tumours)):
        deformation = corrected(deformation, tumour)
    return combine(member.alignment, deformation, main.grid)


def confidence_of(classes: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """(z, y, x) in [0, 1]: 0 where at most half of the ensemble agrees with a voxel's class, 1 where all of it does.

    classes: (z, y, x) 0 to 2; probability: (3, z, y, x), the ensemble's.
    """
    agreement = np.take_along_axis(probability, classes[None].astype(np.intp), axis=0)[0]
    return np.clip(2 * agreement - 1, 0, 1).astype(np.float32)


def classes_of(labels: LabelMap, shown: tuple[int, ...]) -> np.ndarray:
    """(z, y, x) uint8: 0 background, 1 liver and the tumours that are not shown, 2 those that are."""
    result = labels.mask(LIVER, TUMOUR).astype(np.uint8)
    result[np.isin(labels.volume.array, shown)] = TUMOUR_CLASS
    return result


def shown_in_ct(ct: Volume, labels: LabelMap, grid: Grid) -> tuple[int, ...]:
    """Values of the tumours of a CT's own labels that its image shows. grid: isotropic, in the CT's world."""
    codes = np.zeros(grid.shape, dtype=np.uint8)
    codes[labels.whole_liver().resample_to(grid).array > 0.5] = 1
    for number, tumour in enumerate(labels.tumours):
        mask = Volume(labels.volume.array == tumour.value, labels.volume.grid)
        codes[mask.resample_to(grid).array > 0.5] = number + 2
    return tuple(labels.tumours[seen.number].value for seen in find_in_ct(ct, codes, grid, len(labels.tumours)))
