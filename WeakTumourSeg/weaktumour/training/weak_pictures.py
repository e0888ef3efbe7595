"""Pictures of a weak run: outlines on two cuts through the liver's middle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

Shown = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def draw(shown: Sequence[Shown], path: Path) -> None:
    """One column for each (image in [0, 1], classes found, classes to compare with or None), all (z, y, x)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, max(1, len(shown)), figsize=(3 * max(1, len(shown)), 6), squeeze=False)
    for column, (image, found, known) in enumerate(shown):
        liver = found > 0 if known is None else known > 0
        middle = np.argwhere(liver).mean(0) if liver.any() else np.asarray(image.shape) / 2
        for row, axis in enumerate((0, 1)):
            place = int(middle[axis])
            plot = axes[row][column]
            planes = [v.take(place, axis=axis)[:: -1 if axis else 1] for v in (image, found)]
            plot.imshow(planes[0], cmap="gray", vmin=0, vmax=1)
            outlines = [(planes[1], ("red", "magenta"))]
            if known is not None:
                outlines.append((known.take(place, axis=axis)[:: -1 if axis else 1], ("lime", "yellow")))
            for classes, colours in outlines:
                for value, colour in zip((1, 2), colours, strict=True):
                    if (classes >= value).any() and not (classes >= value).all():
                        plot.contour(classes >= value, [0.5], colors=colour, linewidths=0.7)
            plot.axis("off")
    figure.suptitle("red, magenta: found; green, yellow: what it is compared with")
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    plt.close(figure)
