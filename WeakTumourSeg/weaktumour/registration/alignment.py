"""Alignment: the rigid, then affine transform that brings the MRI's liver region onto the CT.

World coordinates of MRI and CT need not agree (other scanner, other table, another day), so several starts are tried:
as given, the bodies' centroids, a coarse search over shifts and tilts by mutual information, and the liver masks when
both are known. The best starts are optimised with SimpleITK (Mattes mutual information); the winner is chosen by a
score that needs no labels on the CT: the self-similarity cost in and around the liver.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import SimpleITK as sitk
import torch

from ..deformation import Affine, DisplacementField, identity_coordinates, jacobian_determinant, sample
from ..errors import InputError
from ..progress import Monitor
from ..volumes import Grid
from .preparation import DISTANCE_LIMIT_MM, Scan, tensor, unlike_liver
from .similarity import erode, mind_ssc

LIVER_REGION_MM = 20.0  # the neighbourhood of the liver that alignment looks at
_SEARCH_POINTS = 5000
_SEARCH_BINS = 24
_OPTIMISED_STARTS = 3
_SCORE_RESOLUTION = 0.01
_MAX_SCALING = 1.35
_SCORE_DILATION, _SCORE_RADIUS = 1, 1


@dataclass(frozen=True)
class Candidate:
    """name: which start; stage: start, rigid or affine; score: lower is better (see Scorer)."""

    name: str
    stage: str
    transform: Affine
    score: float


@dataclass(frozen=True)
class Alignment:
    """The winner and everything that was tried. overlap: share of the MRI's liver that falls inside the CT."""

    transform: Affine
    winner: Candidate
    candidates: list[Candidate] = field(default_factory=list)
    overlap: float = 1.0

    @staticmethod
    def as_given(initial: Affine, scorer: Scorer) -> Alignment:
        """No search: the transform that the user gave, or identity."""
        candidate = Candidate("as given", "start", initial, scorer(initial))
        return Alignment(initial, candidate, [candidate], scorer.overlap(initial))


def align(fixed: Scan, moving: Scan, initial: Affine, *, scorer: Scorer, seed: int, monitor: Monitor) -> Alignment:
    """fixed: the CT; moving: the MRI with its liver; initial: CT point -> MRI point as the user gave it, or identity.

    Raises InputError when no start brings the MRI's liver to a place in the CT.
    """
    starts = {"as given": initial, "body centroids": _body_start(fixed, moving)}
    if fixed.liver_distance_mm is not None:
        starts["liver masks"] = _mask_start(fixed, moving)
    monitor.update(0.05)
    for number, transform in enumerate(_search(fixed, moving, list(starts.values()), seed, monitor), start=1):
        starts[f"search {number}"] = transform
    monitor.update(0.4)

    candidates = [Candidate(name, "start", start, scorer(start)) for name, start in starts.items()]
    if (
        scorer.overlap(min(candidates, key=lambda c: c.score).transform) < 0.05
        and max(map(scorer.overlap, starts.values())) < 0.05
    ):
        raise InputError(_NOTHING_SHARED)
    # Two known livers leave less to search for.
    count = _OPTIMISED_STARTS - (fixed.liver_distance_mm is not None)
    promising = _distinct(sorted(candidates, key=lambda c: c.score), moving)[:count]
    optimised = _side_by_side(
        [partial(_optimise, fixed, moving, start.transform, sitk.Euler3DTransform(), seed, monitor)
         for start in promising]
    )  # fmt: skip
    for number, (start, rigid) in enumerate(zip(promising, optimised, strict=True)):
        candidates.append(Candidate(start.name, "rigid", rigid, scorer(rigid)))
        monitor.update(0.4 + 0.4 * (number + 1) / len(promising))
    best = min(candidates, key=lambda c: c.score)
    for kind, transform in _affine_variants(fixed, moving, best.transform, seed, monitor):
        if _plausible(transform):
            candidates.append(Candidate(best.name, kind, transform, scorer(transform)))
    # Scores closer than this are not told apart: then the optimised transform is taken.
    winner = min(candidates, key=lambda c: c.score + (_SCORE_RESOLUTION if c.stage == "start" else 0.0))
    overlap = scorer.overlap(winner.transform)
    # Two livers on each other are no sign that the images show the same: there the images alone are asked.
    unlike = winner.score if fixed.liver_distance_mm is None else scorer.terms(winner.transform)[0]
    if overlap < 0.1 or unlike > _NO_SIMILARITY:
        raise InputError(_NOTHING_SHARED)
    monitor.update(1.0)
    return Alignment(winner.transform, winner, sorted(candidates, key=lambda c: c.score), overlap)


_NOTHING_SHARED = (
    "MRI and CT share no anatomy that alignment could find: check that both show the liver of the same patient, "
    "or give --initial-transform."
)
_NO_SIMILARITY = 0.85
_FARTHEST = DISTANCE_LIMIT_MM / 10.0  # what two livers cost that do not come near each other


def _distinct(candidates: list[Candidate], moving: Scan, tolerance_mm: float = 6.0) -> list[Candidate]:
    """Without those that put the MRI's liver where an earlier one does."""
    liver = moving.grid.index_to_world(np.argwhere(moving.liver_distance_mm < 0)[:, ::-1])
    corners = np.stack((liver.min(0), liver.max(0), liver.mean(0)))
    kept: list[tuple[Candidate, np.ndarray]] = []
    for candidate in candidates:
        placed = candidate.transform.inverse().transform_points(corners)
        if all(np.abs(placed - other).max() > tolerance_mm for _, other in kept):
            kept.append((candidate, placed))
    return [candidate for candidate, _ in kept]


class Scorer:
    """Self-similarity cost of a transform in and around the MRI's liver, relative to unrelated tissue.

    0 would be identical neighbourhoods, 1 is what unrelated ones give. Liver neighbourhood that falls outside the CT
    counts as unrelated, so that an alignment cannot win by looking away. Where both liver masks are known, their mean
    distance (over 10 mm) is added; else half the share of the MRI's liver that does not land on CT tissue like liver.
    For an affine, half the logarithm of the volume change is added. Lesions and a rim are left out.
    """

    def __init__(self, fixed: Scan, moving: Scan) -> None:
        self.fixed, self.moving = fixed, moving
        self._fixed_value = tensor(fixed.value)
        self._fixed_mind = self._mind(self._fixed_value)
        self._fixed_valid = erode(tensor(fixed.inside), 1)[0, 0]
        region = (moving.liver_distance_mm < LIVER_REGION_MM) & (moving.body > 0.5)
        self._moving_region = tensor(region)
        keep = tensor(moving.inside)
        if moving.lesion_distance_mm is not None:
            keep = keep * tensor(moving.lesion_distance_mm > 6.0)
        self._moving_keep = keep
        self._moving_value = tensor(moving.value)
        self._distance = tensor(moving.liver_distance_mm)
        moving_mind = self._mind(self._moving_value)[0][:, region]
        body = self._fixed_mind[0][:, fixed.body > 0.5]
        # Unrelated tissue: MRI neighbourhoods paired with CT neighbourhoods drawn from all over the body.
        generator = torch.Generator().manual_seed(0)
        count = 20_000
        a = moving_mind[:, torch.randint(moving_mind.shape[1], (count,), generator=generator)]
        b = body[:, torch.randint(body.shape[1], (count,), generator=generator)]
        self.unrelated = float(((a - b) ** 2).mean())
        self._region_voxels = float(region.sum())
        self._liver_voxels = float((keep * (self._distance < 0)).sum().clamp(min=1.0))

    def overlap(self, transform: Affine) -> float:
        """Share of the MRI's liver that falls inside the CT volume."""
        points = self.moving.grid.index_to_world(np.argwhere(self.moving.liver_distance_mm < 0)[::7, ::-1])
        return float(self.fixed.grid.contains(transform.inverse().transform_points(points)).mean())

    def __call__(self, transform: Affine | DisplacementField) -> float:
        return sum(self.terms(transform))

    def terms(self, transform: Affine | DisplacementField) -> tuple[float, float, float]:
        """Similarity (1 for unrelated tissue), what is known of the CT's liver, and the volume change."""
        volume = 0.0
        if isinstance(transform, Affine):  # a liver hardly changes its volume; refinement has a term of its own for it
            volume = 0.5 * abs(float(np.log(_volume_scale(transform))))
        known_liver = self.fixed.liver_distance_mm is not None
        inverse = transform.inverse() if isinstance(transform, Affine) else transform.best_affine.inverse()
        region = self.moving.grid.index_to_world(np.argwhere(self._moving_region[0, 0].numpy() > 0)[::5, ::-1])
        try:
            grid, slices = self.fixed.grid.crop_to(inverse.transform_points(region), margin_mm=20.0)
        except InputError:
            return 1.0, _FARTHEST if known_liver else 1.0, volume
        index = _moving_index(transform, grid, self.moving.grid)
        value = sample(self._moving_value, index)
        region, keep = (
            sample(image, index, padding="zeros")[0, 0] for image in (self._moving_region, self._moving_keep)
        )
        difference = (self._mind(value) - self._fixed_mind[(..., *slices)]).square().mean(1)[0]
        # How many moving voxels each fixed one stands for: what is squeezed is still seen.
        share = (
            _volume_scale(transform)
            if isinstance(transform, Affine)
            else jacobian_determinant(index - identity_coordinates(grid.shape))[0].clamp(min=0)
        )
        weight = share * region * (keep > 0.99) * self._fixed_valid[slices]
        excluded = share * region * (keep <= 0.99)
        seen = float(weight.sum())
        missing = max(0.0, self._region_voxels - seen - float(excluded.sum()))
        cost = (float((weight * difference).sum()) + missing * self.unrelated) / max(seen + missing, 1.0)

        distance = sample(self._distance, index)
        if known_liver:
            known = torch.from_numpy(self.fixed.liver_distance_mm[slices])
            band = ((known.abs() < 5) | (distance[0, 0].abs() < 5)) & (keep > 0.5) & (self._fixed_valid[slices] > 0.5)
            # Nothing of either surface in sight: as far apart as distances go.
            anatomy = float((distance[0, 0] - known)[band].abs().mean()) / 10.0 if band.any() else _FARTHEST
        else:
            covered = self._fixed_valid[slices][None, None] * (keep > 0.5) * (distance < 0)
            # Liver-like tissue that is covered counts in favour, so that shrinking into it does not pay.
            against = unlike_liver(self._fixed_value[(..., *slices)], covered * (distance < -8) > 0, pull=1.0)
            anatomy = 0.25 * (1 + float((covered * against).sum()) / self._liver_voxels)
        return cost / self.unrelated, anatomy, volume

    @staticmethod
    def _mind(value: torch.Tensor) -> torch.Tensor:
        return mind_ssc(value, dilation=_SCORE_DILATION, radius=_SCORE_RADIUS)


def _moving_index(transform: Affine | DisplacementField, fixed: Grid, moving: Grid) -> torch.Tensor:
    """(1, 3, z, y, x) float32: where each voxel of `fixed` lies in voxels of `moving`, x, y, z."""
    if not isinstance(transform, Affine):
        index = moving.world_to_index(transform.transform_points(fixed.points()))
        return torch.from_numpy(np.moveaxis(index, -1, 0).astype(np.float32))[None]
    matrix = moving.world_to_index_affine @ transform.matrix @ fixed.index_to_world_affine
    x, y, z = (matrix[:3, axis, None, None, None] * np.arange(n) for axis, n in enumerate(fixed.size))
    index = (z + matrix[:3, 3, None, None, None]).transpose(0, 3, 1, 2) + y.transpose(0, 1, 3, 2) + x
    return torch.from_numpy(index.astype(np.float32))[None]


def _volume_scale(transform: Affine) -> float:
    return float(abs(np.linalg.det(transform.matrix[:3, :3])))


def _body_start(fixed: Scan, moving: Scan) -> Affine:
    """Centroids of the body masks, as far as each volume shows the body."""

    def centroid(scan: Scan) -> np.ndarray:
        return scan.grid.index_to_world(np.argwhere(scan.body > 0.5)[:, ::-1].mean(0))

    return Affine.translation(centroid(moving) - centroid(fixed))


def _mask_start(fixed: Scan, moving: Scan) -> Affine:
    """Liver centroids, then a rigid fit of the liver masks' signed distances."""

    def centroid(scan: Scan) -> np.ndarray:
        return scan.grid.index_to_world(np.argwhere(scan.liver_distance_mm < 0)[:, ::-1].mean(0))

    start = Affine.translation(centroid(moving) - centroid(fixed))
    return _side_by_side([partial(_fit_distances, fixed, moving, start, sitk.Euler3DTransform())])[0]


# -- coarse search ------------------------------------------------------------------------------------------------
def _search(
    fixed: Scan, moving: Scan, starts: list[Affine], seed: int, monitor: Monitor, keep: int = 3
) -> list[Affine]:
    """The best few of many shifts and tilts by mutual information over points in and round the MRI's liver.

    Shifts along z are searched over everything that keeps the liver inside the CT, since the two volumes may show
    quite different lengths of the body; sideways the body centroids bound them.
    """
    rng = np.random.default_rng(seed)
    region = np.argwhere((moving.liver_distance_mm < 1.5 * LIVER_REGION_MM) & (moving.inside > 0.5))
    region = region[rng.choice(len(region), min(_SEARCH_POINTS, len(region)), replace=False)]
    points = moving.grid.index_to_world(region[:, ::-1])
    moving_bin = _bins(torch.from_numpy(moving.value[tuple(region.T)]))
    centre = points.mean(0)
    axes = fixed.grid.axes  # shifts and tilts go along and about the CT's axes
    in_ct = (fixed.grid.corners() - centre) @ axes

    # Smooth the CT to the search's step so that a near miss still scores.
    smooth = sitk.GetArrayFromImage(
        sitk.SmoothingRecursiveGaussian(fixed.grid.apply_to(sitk.GetImageFromArray(fixed.value)), 4.0)
    )
    image = tensor(smooth)

    def score(angles_deg: np.ndarray, shift_mm: np.ndarray) -> np.ndarray:
        """angles (n, 3) about x, y, z through the liver's centre, shift (n, 3) of that centre, MRI -> CT."""
        results = []
        for angle, shift in zip(angles_deg, shift_mm, strict=True):
            placed = (points - centre) @ (axes @ _rotation(angle) @ axes.T).T + centre + axes @ shift
            index = torch.from_numpy(fixed.grid.world_to_index(placed).astype(np.float32))
            unit = index / (torch.tensor(fixed.grid.size, dtype=torch.float32) - 1).clamp(min=1) * 2 - 1
            values = torch.nn.functional.grid_sample(image, unit.reshape(1, 1, 1, -1, 3), align_corners=True).ravel()
            inside = fixed.grid.contains(placed)
            results.append(_mutual_information(_bins(values), moving_bin) * inside.mean() ** 2)
        return np.asarray(results)

    shifts = []
    body = (starts[1].inverse().transform_points(centre) - centre) @ axes  # sideways from the body centroids
    for z in np.arange(in_ct[:, 2].min() - 20, in_ct[:, 2].max() + 20, 15.0):
        for dy in (-30.0, 0.0, 30.0):
            for dx in (-30.0, 0.0, 30.0):
                shifts.append((body[0] + dx, body[1] + dy, z))
    for start in starts:
        given = (start.inverse().transform_points(centre) - centre) @ axes
        shifts += [tuple(given + 15.0 * (np.array(step) - 1)) for step in np.ndindex(3, 3, 3)]
    shifts = np.asarray(shifts)
    quality = score(np.zeros_like(shifts), shifts)
    monitor.update(0.2)

    chosen: list[int] = []
    for index in np.argsort(-quality):
        if all(np.linalg.norm(shifts[index] - shifts[other]) > 25 for other in chosen):
            chosen.append(int(index))
        if len(chosen) == keep + 1:
            break
    found = []
    for number, index in enumerate(chosen):
        angle, shift, best = np.zeros(3), shifts[index], quality[index]
        for step_mm, step_deg in ((15.0, 12.0), (8.0, 6.0), (4.0, 3.0)):
            for _ in range(3):
                moves = np.concatenate((np.eye(6), -np.eye(6))) * ([step_deg] * 3 + [step_mm] * 3)
                values = score(angle + moves[:, :3], shift + moves[:, 3:])
                if values.max() <= best:
                    break
                best = values.max()
                angle, shift = angle + moves[values.argmax(), :3], shift + moves[values.argmax(), 3:]
        monitor.update(0.2 + 0.2 * (number + 1) / len(chosen))
        matrix = np.eye(4)
        matrix[:3, :3] = axes @ _rotation(angle) @ axes.T
        matrix[:3, 3] = centre + axes @ shift - matrix[:3, :3] @ centre
        found.append((best, Affine(matrix).inverse()))
    return [transform for _, transform in sorted(found, key=lambda item: -item[0])[:keep]]


def _rotation(angles_deg: np.ndarray) -> np.ndarray:
    x, y, z = np.deg2rad(angles_deg)
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rz = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return rz @ ry @ rx


def _bins(values: torch.Tensor) -> torch.Tensor:
    return (values.clamp(0, 1) * (_SEARCH_BINS - 1)).round().long()


def _mutual_information(a: torch.Tensor, b: torch.Tensor) -> float:
    joint = torch.bincount(a * _SEARCH_BINS + b, minlength=_SEARCH_BINS**2).double().reshape(_SEARCH_BINS, _SEARCH_BINS)
    joint = joint / joint.sum()
    product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    some = joint > 0
    return float((joint[some] * (joint[some] / product[some]).log()).sum())


# -- optimisation with SimpleITK ----------------------------------------------------------------------------------
def _sitk_image(array: np.ndarray, grid: Grid) -> sitk.Image:
    return grid.apply_to(sitk.GetImageFromArray(np.ascontiguousarray(array, dtype=np.float32)))


def _optimise(
    fixed: Scan, moving: Scan, start: Affine, transform: sitk.Transform, seed: int, monitor: Monitor
) -> Affine:
    """Mattes mutual information in the liver's neighbourhood, two resolutions.

    The MRI plays ITK's fixed image: it is the smaller one, and the metric's mask is the known liver's neighbourhood.
    """
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    mask = (moving.liver_distance_mm < LIVER_REGION_MM) & (moving.inside > 0.5)
    method.SetMetricFixedMask(moving.grid.apply_to(sitk.GetImageFromArray(mask.astype(np.uint8))))
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([0.5, 0.25], seed % 2**31 + 1)
    return _run(
        method,
        _sitk_image(moving.value, moving.grid),
        _sitk_image(fixed.value, fixed.grid),
        start,
        transform,
        moving,
        monitor,
    )


def _fit_distances(fixed: Scan, moving: Scan, start: Affine, transform: sitk.Transform) -> Affine:
    """Least squares between the two livers' signed distance maps in a band round the MRI's."""
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMeanSquares()
    mask = np.abs(moving.liver_distance_mm) < LIVER_REGION_MM
    method.SetMetricFixedMask(moving.grid.apply_to(sitk.GetImageFromArray(mask.astype(np.uint8))))
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentagePerLevel([0.5, 0.25], 1)  # regular samples are jittered; the default is the clock
    return _run(
        method,
        _sitk_image(moving.liver_distance_mm, moving.grid),
        _sitk_image(fixed.liver_distance_mm, fixed.grid),
        start,
        transform,
        moving,
        None,
    )


def _run(
    method: sitk.ImageRegistrationMethod,
    itk_fixed: sitk.Image,
    itk_moving: sitk.Image,
    start: Affine,
    transform: sitk.Transform,
    moving: Scan,
    monitor: Monitor | None,
) -> Affine:
    centre = moving.grid.index_to_world(np.argwhere(moving.liver_distance_mm < 0)[:, ::-1].mean(0))
    transform.SetCenter(centre.tolist())
    base = start.inverse()  # MRI -> CT
    # ITK gives the transform the centre of this one, without a word: left at the world's origin, the result depends on
    # where that is, and the optimiser creeps where it is far away.
    about_liver = base.to_sitk()
    about_liver.SetCenter(centre.tolist())
    about_liver.SetTranslation((base.transform_points(centre) - centre).tolist())
    method.SetMovingInitialTransform(about_liver)
    method.SetInitialTransform(transform, inPlace=True)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=4.0, minStep=0.02, numberOfIterations=80, relaxationFactor=0.6, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([4.0, 1.0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    if monitor is not None:
        method.AddCommand(sitk.sitkIterationEvent, monitor.check)
    try:
        method.Execute(itk_fixed, itk_moving)
    except RuntimeError as error:
        # ITK gives up when too few samples map inside; the start then stands as it is and its score speaks.
        if "samples" in str(error) or "mask" in str(error).lower():
            return start
        raise
    # ITK composes the moving initial transform outermost: MRI -> optimised -> base -> CT.
    return base.after(Affine.from_sitk(transform)).inverse()


def _affine_variants(fixed: Scan, moving: Scan, start: Affine, seed: int, monitor: Monitor) -> list[tuple[str, Affine]]:
    variants = {"affine": partial(_optimise, fixed, moving, start, sitk.AffineTransform(3), seed, monitor)}
    if fixed.liver_distance_mm is not None:
        variants["affine on masks"] = partial(_fit_distances, fixed, moving, start, sitk.AffineTransform(3))
    return list(zip(variants, _side_by_side(variants.values()), strict=True))


def _side_by_side(fits: Iterable[Callable[[], Affine]]) -> list[Affine]:
    """Independent fits, in threads of their own: ITK is made to use one for each, else its sums and results vary."""
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        with ThreadPoolExecutor(min(4, torch.get_num_threads())) as pool:
            return list(pool.map(lambda fit: fit(), fits))
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)


def _plausible(transform: Affine) -> bool:
    scaling = np.linalg.svd(transform.matrix[:3, :3], compute_uv=False)
    return bool(
        scaling.max() < _MAX_SCALING
        and scaling.min() > 1 / _MAX_SCALING
        and np.linalg.det(transform.matrix[:3, :3]) > 0
    )
