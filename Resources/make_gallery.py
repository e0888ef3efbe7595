"""Draw Resources/patients.png: twelve simulated patients, MRI above CT, with their labels.

    python Resources/make_gallery.py [--out Resources/patients.png]

Phantoms of the development part of Testing/benchmark/splits.json; needs matplotlib (the extra `training`).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "WeakTumourSeg"))

from weaktumour.cases import Case  # noqa: E402
from weaktumour.simulation import VERSION, simulate_patient  # noqa: E402
from weaktumour.volumes import Volume  # noqa: E402

SEEDS = range(12)
COLUMNS = 6
OUTLINES = ((0, "#48c774"), (1, "#ff5555"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "Resources" / "patients.png")
    options = parser.parse_args()
    rows = -(-len(SEEDS) // COLUMNS)
    figure, axes = plt.subplots(4 * rows, COLUMNS, figsize=(2.1 * COLUMNS, 5.9 * rows), facecolor="black")
    for number, seed in enumerate(SEEDS):
        case = simulate_patient(seed)
        draw(case, seed, axes[4 * (number // COLUMNS) : 4 * (number // COLUMNS) + 4, number % COLUMNS])
        print(f"patient {seed}: {case.info['simulation']}", flush=True)
    for axis in axes.ravel():
        axis.axis("off")
    figure.suptitle(f"Simulated patients 0 to 11 (simulator version {VERSION}): MRI above CT", color="white", y=0.997)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.965, wspace=0.03, hspace=0.06)
    figure.savefig(options.out, dpi=75, facecolor="black", pil_kwargs={"optimize": True})


def draw(case: Case, seed: int, axes: np.ndarray) -> None:
    settings = case.info["simulation"]
    for first, image, labels, title in (
        (0, case.mr, case.mr_labels, f"{seed}: {settings['mr_protocol']}"),
        (2, case.ct, case.ct_labels, f"{settings['ct_phase']}, {settings['breathing_mm']:+.0f} mm"),
    ):
        window = (-110, 230) if first else (0, np.percentile(image.array, 99.3))
        tumours = np.argwhere(labels.array > 1)
        z, y, _ = np.median(tumours if len(tumours) else np.argwhere(labels.array == 1), axis=0).astype(int)
        show(axes[first], image, labels, np.s_[z, :, :], window)
        show(axes[first + 1], image, labels, np.s_[::-1, y, :], window)
        axes[first].set_title(title, color="white", fontsize=7, pad=2)


def show(axis: plt.Axes, image: Volume, labels: Volume, where: tuple, window: tuple[float, float]) -> None:
    x, y, z = image.grid.spacing
    aspect = (y if isinstance(where[0], np.integer) else z) / x
    axis.imshow(
        image.array[where], cmap="gray", vmin=window[0], vmax=window[1], aspect=aspect, interpolation="bilinear"
    )
    for above, colour in OUTLINES:
        mask = labels.array[where] > above
        if mask.any():
            axis.contour(mask, [0.5], colors=colour, linewidths=0.6)


if __name__ == "__main__":
    main()
