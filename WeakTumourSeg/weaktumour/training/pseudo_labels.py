"""Pseudo-labels: the MRI's labels carried to the CT by registration, and how sure each voxel's label is.

One registration gives the labels. Others, each of an MRI that was moved by a known rigid motion beforehand (undone
afterwards) and every second one without MSCGUNet, give votes; a voxel on whose class all agree has confidence 1, one on
which half of them disagree has 0. Nothing here has a gradient: labels are plain arrays.

A tumour that the CT does not show (`registration.lesions`) counts as liver: nobody should learn to see what is not
there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from .. import pipeline
from ..cases import Case
from ..deformation import Affine, DisplacementField
from ..labels import LIVER, TUMOUR, LabelMap
from ..progress import Monitor
from ..propagation import propagate_labels
from ..registration.lesions import find_in_ct
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

    def registered(inputs: pipeline.Inputs, stages: tuple[str, ...]) -> tuple[pipeline.Registered, DisplacementField]:
        found = pipeline.register(inputs, networks, stages, preset, seed=seed, device=device, monitor=monitor)
        return found, pipeline.in_world(found.transform, inputs)

    main, field = registered(inputs, stages)
    carried = propagate_labels(labels, field, grid, monitor).labels
    shown = tuple(labels.tumours[seen.number].value for seen in main.seen)
    # The members begin where the first one's alignment ended, and have a known error to undo.
    frame = inputs.ct_frame
    aligned = Affine(frame @ main.alignment.transform.matrix @ np.linalg.inv(frame))
    votes = [classes_of(carried, shown)]
    random = np.random.default_rng(seed)
    centre = labels.volume.grid.index_to_world(np.argwhere(labels.mask(LIVER, TUMOUR)).mean(0)[::-1])
    for number in range(settings.members):
        motion = random_motion(centre, settings.jitter_mm, settings.jitter_degrees, random)
        own = tuple(s for s in stages if s != "alignment" and not (number % 2 and s == "mscgunet"))
        _, found = registered(moved(replace(inputs, initial=aligned), motion), own or ("refinement",))
        back = propagate_labels(labels, undone(found, motion), grid, monitor).labels
        votes.append(classes_of(back, shown))
    probability = np.stack([np.mean([vote == value for vote in votes], axis=0) for value in range(3)])
    probability = probability.astype(np.float32)
    confidence = confidence_of(votes[0], probability)
    # Where the MRI has not looked, that nothing was carried there means nothing.
    confidence[~case.mr.grid.contains(field.transform_points(grid.points()))] = 0
    return PseudoLabels(carried, shown, probability, confidence)


def confidence_of(classes: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """(z, y, x) in [0, 1]: 0 where at most half of the ensemble agrees with a voxel's class, 1 where all of it does.

    classes: (z, y, x) 0 to 2; probability: (3, z, y, x), the ensemble's. The one place to change for another ensemble.
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


def random_motion(centre_mm: np.ndarray, shift_mm: float, degrees: float, random: np.random.Generator) -> np.ndarray:
    """(4, 4) rigid: a turn about a point by up to so many degrees about each axis, and a shift by up to so much."""
    motion = np.eye(4)
    for axis, angle in enumerate(np.radians(random.uniform(-degrees, degrees, 3))):
        a, b = [i for i in range(3) if i != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        motion[:3, :3] = motion[:3, :3] @ turn
    motion[:3, 3] = centre_mm - motion[:3, :3] @ centre_mm + random.uniform(-shift_mm, shift_mm, 3)
    return motion


def moved(inputs: pipeline.Inputs, motion: np.ndarray) -> pipeline.Inputs:
    """The same CT and an MRI, with its labels, that lies elsewhere. motion: (4, 4), rigid, of the world."""
    mr = Volume(inputs.mr.array, inputs.mr.grid.moved(motion))
    volume = inputs.labels.volume
    labels = LabelMap(Volume(volume.array, volume.grid.moved(motion)), inputs.labels.labels)
    return replace(inputs, mr=mr, labels=labels)


def undone(field: DisplacementField, motion: np.ndarray) -> DisplacementField:
    """CT -> moved MRI becomes CT -> MRI, on the same grid."""
    points = field.grid.points()
    back = Affine(np.linalg.inv(motion)).transform_points(points + field.displacement_mm)
    return DisplacementField(field.grid, back - points)
