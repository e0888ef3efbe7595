"""Pairs with known truth through the registration and its uncertainty, one row of figures each.

Sound pairs tell how far off the tumours are, beside what the uncertainty is told from; pairs that were spoiled on
purpose have no true place, and none must be stated for them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..cases import Case
from ..deformation import Affine
from ..devices import choose_device
from ..errors import InputError
from ..labels import LIVER, TUMOUR, Label, LabelMap
from ..models import ModelEntry, find
from ..pipeline import (
    PRESETS,
    STAGES,
    Inputs,
    Measured,
    Networks,
    Registered,
    find_livers,
    measure_uncertainty,
    register,
)
from ..progress import Monitor
from ..quality import Visibility, judge_run, visibility
from ..registration.prediction import predict
from ..registration.refinement import Composed
from ..simulation import simulate_from_ct, simulate_patient
from ..simulation.contrast import MR_PROTOCOLS
from ..simulation.tumours import Look, choose_looks
from ..uncertainty.ensemble import place_of, tumour_points
from ..volumes import Volume

_DROPOUT_SAMPLES = 8
TUMOURS = 5  # of each patient: many, so that few registrations say much
SPOILINGS = ("other patient's CT", "mirrored MRI", "half a liver", "lost alignment")
Row = dict[str, object]


@dataclass(frozen=True)
class Pair:
    """seed: of the patient; label_map: a real liver's, with its name; ct: a real CT with its liver. spoiling: one of
    SPOILINGS or None. other_seed: of the patient whose CT is taken.
    """

    name: str
    seed: int
    label_map: Volume | None = None
    label_map_name: str = ""
    ct: tuple[Volume, Volume] | None = None
    spoiling: str | None = None
    other_seed: int | None = None


def simulate(pair: Pair) -> Case:
    """The pair's images and truth; spoiled ones without a truth that means anything."""
    motion = {}
    if pair.spoiling == "lost alignment":
        rng = np.random.default_rng(pair.seed)
        offset = rng.normal(size=3)
        motion = {
            "world_offset_mm": 300.0 * offset / np.linalg.norm(offset),
            "tilt_degrees": float(rng.uniform(60, 100)),
            "breathing_mm": float(rng.choice([-1, 1]) * rng.uniform(50, 70)),
        }
    case = _simulated(pair, pair.seed, **motion)
    if pair.spoiling == "other patient's CT":
        other = _simulated(replace(pair, label_map=None), pair.other_seed)
        return replace(case, ct=other.ct, ct_labels=other.ct_labels)
    if pair.spoiling == "mirrored MRI":
        left_right = int(np.abs(case.mr.grid.axes[0]).argmax())
        mr, labels = (Volume(np.ascontiguousarray(np.flip(v.array, 2 - left_right)), v.grid)
                      for v in (case.mr, case.mr_labels))  # fmt: skip
        return replace(case, mr=mr, mr_labels=labels)
    if pair.spoiling == "half a liver":
        return _halved(case, pair.seed)
    return case


def _simulated(pair: Pair, seed: int, **options: object) -> Case:
    if pair.ct is not None:
        return simulate_from_ct(*pair.ct, seed, name=pair.label_map_name, tumour_count=TUMOURS, **options)
    if pair.label_map is not None:
        options |= {"label_map": pair.label_map, "label_map_name": pair.label_map_name}
    return simulate_patient(seed, tumour_count=TUMOURS, **options)


def _halved(case: Case, seed: int) -> Case:
    """One image ends in the middle of its liver, above or below, or the CT of its left or right half is lost."""
    rng = np.random.default_rng(seed)
    which, upper = rng.choice(["ct", "mr"]), bool(rng.random() < 0.5)
    image, labels = (case.ct, case.ct_labels) if which == "ct" else (case.mr, case.mr_labels)
    index = np.argwhere(labels.array > 0)
    axis = int(rng.integers(0, 3))
    middle = int(np.median(index[:, axis]))
    cut = slice(middle, None) if upper else slice(None, middle)
    span = tuple(cut if a == axis else slice(None) for a in range(3))
    first = [0, 0, 0]
    first[2 - axis] = middle if upper else 0
    size = image.array[span].shape[::-1]
    grid = image.grid.crop(tuple(first), tuple(size))
    image, labels = (Volume(np.ascontiguousarray(v.array[span]), grid) for v in (image, labels))
    return replace(
        case, **({"ct": image, "ct_labels": labels} if which == "ct" else {"mr": image, "mr_labels": labels})
    )


def measure(pair: Pair, preset: str = "balanced", seed: int = 0, device: str = "cpu", *, dropout: bool = True) -> Row:
    """Register a pair and measure its uncertainty. A pair that is refused (InputError) says so.

    dropout: compare with the spread under dropout, of sound pairs.
    """
    case = simulate(pair)
    device = choose_device(device)
    row: Row = {
        "patient": pair.name,
        "seed": pair.seed,
        "spoiling": pair.spoiling,
        "device": str(device),
        "simulation": case.info.get("simulation"),
        "tumours": [],
    }
    values = [int(v) for v in np.unique(case.mr_labels.array) if v]
    labels = LabelMap(case.mr_labels, [Label(v, str(v), LIVER if v == 1 else TUMOUR) for v in values])
    networks = Networks(find(None, "registration"), find(None, "segmentation"))
    monitor = Monitor()
    begun = time.monotonic()
    try:
        inputs = Inputs(case.mr, case.ct, labels, None, Affine.identity())
        inputs = find_livers(inputs, networks.segmentation, device, monitor)
        registration = register(inputs, networks, STAGES, PRESETS[preset], seed=seed, device=device, monitor=monitor)
    except InputError as error:
        return row | {"refused": str(error)}
    registered = time.monotonic()
    measured = measure_uncertainty(inputs, registration, device, seed, monitor)
    assessed = time.monotonic()
    spreads: list[float] = []
    if dropout and pair.spoiling is None:
        spreads = dropout_spreads(inputs, registration, networks.registration, device, seed)
    run = judge_run(registration.alignment, registration.score)
    return row | {
        "registration_s": registered - begun,
        "uncertainty_s": assessed - registered,
        "dropout_spread_mm": spreads,
        "run": run.verdict,
        "score": registration.score,
        "vessels": registration.vessels,
        "tumours": _tumours(case, inputs, registration, measured, spoiled=pair.spoiling is not None),
    }


def dropout_spreads(
    inputs: Inputs, registration: Registered, network: ModelEntry, device: torch.device, seed: int
) -> list[float]:
    """Of each tumour the spread (mm, root mean square) of where MSCGUNet puts it with its dropout left on.

    Monte Carlo dropout (Gal and Ghahramani, ICML 2016), to compare with.
    """

    def with_dropout(network: torch.nn.Module) -> None:
        for module in network.modules():
            module.train(isinstance(module, torch.nn.Dropout))

    labels, alignment = inputs.in_ct_frame().labels, registration.alignment.transform
    points = [tumour_points(labels, label.value) for label in labels.tumours]
    places = []
    for sample in range(_DROPOUT_SAMPLES):
        torch.manual_seed(seed * _DROPOUT_SAMPLES + sample)
        found = predict(
            registration.fixed, registration.moving, alignment, network, device, Monitor(), prepare=with_dropout
        )
        places.append([place_of(Composed(alignment, found.transform), p) for p in points])
    off = np.asarray(places, dtype=float).reshape(_DROPOUT_SAMPLES, len(points), 3)
    return np.sqrt(np.square(off - off.mean(0)).sum(-1).mean(0)).tolist()


def _tumours(case: Case, inputs: Inputs, registration: Registered, measured: Measured, spoiled: bool) -> list[dict]:
    frame = np.linalg.inv(inputs.ct_frame)
    labels = inputs.in_ct_frame().labels
    looks = _looks(case)
    found = []
    for number, label in enumerate(labels.tumours):
        points = tumour_points(labels, label.value)
        place = place_of(registration.total, points)
        entry: dict[str, object] = {
            "label": label.value,
            "number": number,
            "features": measured.features[number],
            "members_mm": (measured.ensemble.places_mm[:, number] - place).tolist(),
            "inside_ct": bool(inputs.ct.grid.moved(frame).contains(place[None])[0]),
        }
        if not spoiled:
            mask = case.mr_labels.array == label.value
            original = tumour_points(inputs.labels, label.value)
            truth = case.truth.inverse_points(original, tolerance_mm=0.02).mean(0)
            truth = frame[:3, :3] @ truth + frame[:3, 3]
            volume = float(mask.sum()) * case.mr_labels.grid.voxel_volume_mm3
            entry |= {
                "error_mm": float(np.linalg.norm(place - truth)),
                "diameter_mm": (6 * volume / np.pi) ** (1 / 3),
                "depth_mm": float(np.exp(measured.features[number]["depth"])),
                "motion_mm": float(np.linalg.norm(truth - registration.alignment.transform.inverse()
                                                  .transform_points(points).mean(0))),
                "in_ct": looks[label.value - 2].visibility,
                "true_cnr": _true_cnr(case, looks[label.value - 2]),
                "visibility": _visibility_at(case, label.value, place - truth, inputs.ct_frame),
            }  # fmt: skip
        found.append(entry)
    return found


def _looks(case: Case) -> list[Look]:
    """As the simulator drew them."""
    simulation = case.info["simulation"]
    visibility = None if "ct_phase" in simulation else "invisible"  # a real CT stays as it is
    count = len(simulation["tumour_diameters_mm"])
    return choose_looks(simulation["seed"], count, MR_PROTOCOLS[simulation["mr_protocol"]].tumour, visibility)


def _true_cnr(case: Case, look: Look) -> float:
    noise = case.info["simulation"].get("ct_noise_hu")
    return abs(look.hu) / noise if noise else 0.0


def _visibility_at(case: Case, value: int, off_mm: np.ndarray, frame: np.ndarray) -> dict[str, dict | None]:
    """In the CT, at the true place and where the registration puts the tumour (its true shape moved there)."""
    off = np.rint((frame[:3, :3] @ off_mm) @ case.ct_labels.grid.axes / case.ct_labels.grid.spacing).astype(int)
    result = {}
    for name, shift in (("true", np.zeros(3, dtype=int)), ("stated", off)):
        moved = np.roll(case.ct_labels.array, shift[::-1], axis=(0, 1, 2))
        mask = moved == value
        seen = visibility(case.ct, mask, (case.ct_labels.array == 1) & ~mask) if mask.any() else None
        result[name] = _plain(seen)
    return result


def _plain(seen: Visibility | None) -> dict | None:
    return None if seen is None else {"cnr": seen.cnr, "auc": seen.auc}
