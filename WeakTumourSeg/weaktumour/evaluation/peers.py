"""Other people's registration methods on our data, judged by the same ruler.

`run_peer(name, ct, mr, ...)` starts this file as a process of its own, which reads the two images, brings them onto a
common isotropic working grid, runs the method and writes its displacement; the parent returns it as a
`DisplacementField` (CT point -> MR point, LPS mm, a given affine start included) with the seconds and the peak memory
of the whole process. A method is one function, registered by name in `METHODS`:

    fixed (z, y, x), moving (z, y, x), inside (z, y, x), options -> displacement (z, y, x, 3)

where inside tells the voxels for which the moving image has something to show (methods that take masks use it), both
images lie on the working grid, and the displacement is in voxels of that grid with components along its own x, y, z
axes: fixed voxel x corresponds to moving voxel x + u(x).

The packages of the methods belong to the benchmark extra, not to the engine.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK as sitk

from ..errors import InputError, WeakTumourError
from ..volumes import Grid, Volume, read_volume
from .measure import run_measured

if TYPE_CHECKING:
    from ..deformation import DisplacementField

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]  # the folder that holds `weaktumour`
_GRID_MULTIPLE = 12  # ConvexAdam pools by 6 and by 2 and drops what is left over; with this nothing is left over
CT_WINDOW = (-160.0, 240.0)  # HU: soft tissue, as in our own preparation

Method = Callable[[np.ndarray, np.ndarray, np.ndarray, Mapping[str, object]], np.ndarray]


@dataclass(frozen=True)
class PeerResult:
    """field: CT point -> MR point, LPS mm, the affine start included, on the working grid.

    seconds, peak_mb: the whole process, from its start to its end. method_seconds: the registration alone.
    """

    method: str
    version: str
    field: DisplacementField
    seconds: float
    method_seconds: float
    peak_mb: float
    options: dict[str, object]


# -- the methods --------------------------------------------------------------------------------------------------
def convexadam(fixed: np.ndarray, moving: np.ndarray, inside: np.ndarray, options: Mapping[str, object]) -> np.ndarray:
    """ConvexAdam with MIND-SSC (Siebert, Hansen, Heinrich: TMI 2024, arXiv:2103.12127v2), PyPI `convexadam`.

    The package's own defaults unless an option of `convex_adam_pt` says otherwise (mind_r, mind_d, lambda_weight,
    grid_sp, disp_hw, selected_niter, selected_smooth, grid_sp_adam, ic). Its displacement is indexed and ordered like
    the arrays it is given, here z, y, x, in voxels, and pulls: warped(x) = moving(x + u(x)) (apply_convex.py).
    """
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    settings = dict(options)
    device = torch.device(str(settings.pop("device", "cpu")))
    displacement = convex_adam_pt(
        torch.from_numpy(fixed), torch.from_numpy(moving), dtype=torch.float32, device=device, **settings
    )
    return displacement[..., ::-1]


def syn(fixed: np.ndarray, moving: np.ndarray, inside: np.ndarray, options: Mapping[str, object]) -> np.ndarray:
    """Symmetric normalisation with mutual information (Avants et al. 2008), PyPI `antspyx`; no linear stage of its own.

    options: arguments of `ants.registration`, and `spacing_mm`. ANTs tells its transform by where it carries images,
    so images of the coordinates are warped: no convention of its files is relied on.
    """
    import ants

    settings = dict(options)
    spacing = float(settings.pop("spacing_mm"))

    def image(array: np.ndarray, offset: int = 0) -> ants.ANTsImage:
        return ants.from_numpy(
            np.ascontiguousarray(array.T, dtype=np.float32), spacing=(spacing,) * 3, origin=(-offset * spacing,) * 3
        )

    settings = {"type_of_transform": "SyNOnly", "syn_metric": "mattes", "random_seed": 1, **settings}
    target = image(fixed)
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(
            target, image(moving), initial_transform="identity", mask=image(inside), outprefix=f"{folder}/", **settings
        )
        margin = 20  # voxels: points may leave the image
        z, y, x = np.meshgrid(*(np.arange(-margin, n + margin, dtype=np.float32) for n in fixed.shape), indexing="ij")
        warped = [
            ants.apply_transforms(target, image(axis, margin), found["fwdtransforms"], interpolator="linear").numpy().T
            for axis in (x, y, z)
        ]
    here = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in fixed.shape), indexing="ij")[::-1]
    return np.stack([there - axis for there, axis in zip(warped, here, strict=True)], axis=-1)


def elastix(fixed: np.ndarray, moving: np.ndarray, inside: np.ndarray, options: Mapping[str, object]) -> np.ndarray:
    """B-splines with mutual information and bending energy (Klein et al. 2010), PyPI `itk-elastix`.

    options: `spacing_mm`, `grid_mm` (of the finest control points), `bending` (its weight), `iterations`,
    `resolutions`, `samples`. Seeded; on one thread more or less the result is the same.
    """
    import itk

    settings = dict(options)
    spacing = float(settings.pop("spacing_mm"))
    values = {"grid_mm": 20.0, "bending": 20.0, "iterations": 500, "resolutions": 4, "samples": 4096, **settings}
    unknown = set(values) - {"grid_mm", "bending", "iterations", "resolutions", "samples"}
    if unknown:
        raise ValueError(f"elastix has no option {', '.join(sorted(unknown))}")
    resolutions = int(values["resolutions"])
    parameters = itk.ParameterObject.New()
    chosen = parameters.GetDefaultParameterMap("bspline", resolutions, float(values["grid_mm"]))
    wanted = {
        "Registration": ["MultiMetricMultiResolutionRegistration"],
        "Metric": ["AdvancedMattesMutualInformation", "TransformBendingEnergyPenalty"],
        "Metric0Weight": ["1.0"],
        "Metric1Weight": [str(values["bending"])],
        "MaximumNumberOfIterations": [str(int(values["iterations"]))],
        "NumberOfSpatialSamples": [str(int(values["samples"]))],
        "RandomSeed": ["1"],
        "AutomaticTransformInitialization": ["false"],
        "WriteResultImage": ["false"],
    }
    for name, value in wanted.items():
        chosen[name] = value
    parameters.AddParameterMap(chosen)
    images = []
    for array in (fixed, moving):
        image = itk.image_from_array(np.ascontiguousarray(array, dtype=np.float32))
        image.SetSpacing((spacing,) * 3)
        images.append(image)
    mask = itk.image_from_array(np.ascontiguousarray(inside, dtype=np.uint8))
    mask.SetSpacing((spacing,) * 3)
    # Both write files where they are told, or into the current folder.
    with tempfile.TemporaryDirectory() as folder:
        _, transform = itk.elastix_registration_method(
            *images,
            fixed_mask=mask,
            parameter_object=parameters,
            log_to_console=False,
            output_directory=folder,
        )
        field = itk.transformix_deformation_field(images[1], transform, output_directory=folder)
    on_fixed = itk.array_from_image(field).astype(np.float32)
    if on_fixed.shape[:3] != fixed.shape:
        raise ValueError(f"elastix gave a field of shape {on_fixed.shape} for an image of shape {fixed.shape}")
    return on_fixed / spacing


METHODS: dict[str, Method] = {"convexadam": convexadam, "syn": syn, "elastix": elastix}
PACKAGES = {"convexadam": "convexadam", "syn": "antspyx", "elastix": "itk-elastix"}
_IN_MM = ("syn", "elastix")  # methods that want the spacing


# -- the parent ---------------------------------------------------------------------------------------------------
def run_peer(
    method: str,
    fixed_path: str | Path,
    moving_path: str | Path,
    *,
    spacing_mm: float,
    start: np.ndarray | None = None,
    options: Mapping[str, object] | None = None,
    ct_window: tuple[float, float] = CT_WINDOW,
    threads: int | None = None,
    timeout_s: float | None = None,
) -> PeerResult:
    """Register moving (MR) to fixed (CT) with another method, in a process of its own.

    start: (4, 4) fixed -> moving, LPS mm: the moving image is resampled with it first, and it is part of the field
    that comes back; None: the images as they lie in world space.
    options: settings of the method itself. ct_window: HU; the CT is clipped to it. threads: how many its libraries
    may use; None leaves it to them.
    Raises InputError (unknown method, package missing, unreadable image) and WeakTumourError (the method fails).
    """
    from ..deformation import DisplacementField

    if method not in METHODS:
        raise InputError(f'"{method}" is not a method that is known here; choose one of {", ".join(sorted(METHODS))}.')
    with tempfile.TemporaryDirectory(prefix="weaktumour-peer-") as folder:
        request = {
            "method": method,
            "fixed": str(Path(fixed_path).resolve()),
            "moving": str(Path(moving_path).resolve()),
            "spacing_mm": float(spacing_mm),
            "start": None if start is None else np.asarray(start, dtype=float).tolist(),
            "options": dict(options or {}),
            "ct_window": list(ct_window),
        }
        (Path(folder) / "request.json").write_text(json.dumps(request), encoding="utf-8")
        measured = run_measured(
            [sys.executable, "-m", "weaktumour.evaluation.peers", folder],
            environment=child_environment(threads),
            timeout_s=timeout_s,
        )
        if measured.returncode != 0:
            lines = measured.output.strip().splitlines() or ["no message"]
            error = InputError if measured.returncode == InputError.exit_code else WeakTumourError
            raise error(f"{method}: {lines[-1]}")
        result = np.load(Path(folder) / "field.npz")
        details = json.loads((Path(folder) / "details.json").read_text(encoding="utf-8"))
    grid = Grid(result["size"], result["spacing"], result["origin"], result["direction"])
    return PeerResult(
        method=method,
        version=details["version"],
        field=DisplacementField(grid, result["displacement_mm"].astype(np.float64)),
        seconds=measured.seconds,
        method_seconds=details["method_seconds"],
        peak_mb=measured.peak_mb,
        options=dict(options or {}),
    )


def child_environment(threads: int | None) -> dict[str, str]:
    """Variables for a child: where this package is, and how many threads its libraries may start."""
    path = os.pathsep.join(filter(None, [str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH")]))
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    return {"PYTHONPATH": path} | ({} if threads is None else dict.fromkeys(names, str(threads)))


# -- the child ----------------------------------------------------------------------------------------------------
def working_grid(fixed: Grid, spacing_mm: float) -> Grid:
    """The fixed image's box at an isotropic spacing, at least one voxel wider on every side.

    So every fixed voxel centre lies between voxel centres of this grid, and its size suits the methods' pooling.
    """
    grid = fixed.with_spacing(spacing_mm)
    size = np.asarray(grid.size)
    wanted = -(-(size + 2) // _GRID_MULTIPLE) * _GRID_MULTIPLE
    return grid.crop(tuple(-((wanted - size) // 2)), tuple(wanted))


def resample_with_start(moving: Volume, grid: Grid, start: np.ndarray | None) -> Volume:
    """The moving image as the fixed space sees it through an affine start (4, 4), fixed -> moving, LPS mm."""
    outside = float(moving.array.min())
    if start is None:
        return moving.resample_to(grid, outside=outside)
    # Smoothed against aliasing on a grid of its own axes first, then read through the affine.
    spacing = np.maximum(moving.grid.spacing, grid.spacing)
    smooth = moving.resample_to(moving.grid.with_spacing(tuple(spacing)), outside=outside)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(start[:3, :3].ravel().tolist())
    transform.SetTranslation(start[:3, 3].tolist())
    size, geometry = list(grid.size), (grid.origin, grid.spacing, grid.direction)
    image = sitk.Resample(smooth.to_image(), size, transform, sitk.sitkLinear, *geometry, outside)
    return Volume.from_image(image)


def displacement_in_mm(displacement: np.ndarray, grid: Grid, start: np.ndarray | None) -> np.ndarray:
    """Working-grid voxels -> LPS mm, the affine start applied after: y = A (x + u(x)). All arrays (z, y, x, 3)."""
    moved = displacement @ grid.index_to_world_affine[:3, :3].T
    if start is None:
        return moved
    points = grid.points()
    return (points + moved) @ start[:3, :3].T + start[:3, 3] - points


def _run_method(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text(encoding="utf-8"))
    start = None if request["start"] is None else np.asarray(request["start"])
    fixed, moving = read_volume(request["fixed"], "CT"), read_volume(request["moving"], "MRI")
    grid = working_grid(fixed.grid, request["spacing_mm"])
    window = request["ct_window"]
    fixed = Volume(np.clip(fixed.array, *window), fixed.grid)
    on_grid = [
        np.ascontiguousarray(volume.array, dtype=np.float32)
        for volume in (fixed.resample_to(grid, outside=window[0]), resample_with_start(moving, grid, start))
    ]
    everywhere = Volume(np.ones_like(moving.array, dtype=np.float32), moving.grid)
    everywhere.array.flat[0] = 0.0  # whose minimum is taken for what lies beyond
    inside = resample_with_start(everywhere, grid, start).array > 0.5
    del fixed, moving, everywhere
    begun = time.monotonic()
    try:
        options = {**request["options"], **({"spacing_mm": grid.spacing[0]} if request["method"] in _IN_MM else {})}
        displacement = METHODS[request["method"]](*on_grid, inside, options)
    except ModuleNotFoundError as error:
        raise InputError(f"the package {error.name} is not installed; install the benchmark extra.") from error
    seconds = time.monotonic() - begun
    np.savez(
        folder / "field.npz",
        displacement_mm=displacement_in_mm(displacement, grid, start).astype(np.float32),
        size=grid.size,
        spacing=grid.spacing,
        origin=grid.origin,
        direction=grid.direction,
    )
    details = {"method_seconds": seconds, "version": metadata.version(PACKAGES[request["method"]])}
    (folder / "details.json").write_text(json.dumps(details), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run one method on one prepared request; started by run_peer().")
    parser.add_argument("folder", type=Path, help="holds request.json; field.npz and details.json are written there")
    try:
        _run_method(parser.parse_args().folder)
    except InputError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
