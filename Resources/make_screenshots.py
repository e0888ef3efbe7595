"""Pictures of the module for the README: the panel in its states and the slice views, in the project's test host.

    python Resources/make_screenshots.py [FOLDER]

They are rendered from the module's own panel and real MRML views on slicer-core and PySide6 (Testing/slicerhost), not
in Slicer, whose looks differ. The patient is the simulated one of Sample Data; the real worker registers it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
MODULE = REPOSITORY / "WeakTumourSeg"
sys.path[:0] = [str(REPOSITORY / "Testing"), str(MODULE)]

PANEL_WIDTH = 460
VIEW_SIZE = (420, 360)


def main() -> int:
    from slicerhost import start

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REPOSITORY / "Resources" / "screenshots"
    folder.mkdir(parents=True, exist_ok=True)
    host = start()
    host.reset()
    with tempfile.TemporaryDirectory() as temporary:
        host.app.temporaryPath = temporary
        take_pictures(host, folder)
    host.reset()
    return 0


def take_pictures(host, folder: Path) -> None:
    import slicer

    from slicerhost import gestures

    host.load_module(MODULE)
    panel = host.show_module("WeakTumourSeg")
    set_view_size()
    host.wait_until(lambda: panel._probe is None, 120, "the machine's description")
    save(panel, folder / "panel-empty.png", host)

    import WeakTumourSeg

    mr, ct, segmentation = WeakTumourSeg.loadSimulatedPatient()
    panel.ui.mrSelector.setCurrentNode(ct)
    panel.ui.ctSelector.setCurrentNode(mr)
    save(panel, folder / "panel-error.png", host)

    panel.ui.mrSelector.setCurrentNode(mr)
    panel.ui.ctSelector.setCurrentNode(ct)
    panel.ui.mrSegmentationSelector.setCurrentNode(segmentation)
    save(panel, folder / "panel-ready.png", host)

    gestures.click(panel.ui.applyButton)
    host.wait_until(lambda: panel.ui.progressBar.value > 450 or not panel.isRunning, 600, "half of the run")
    save(panel, folder / "panel-running.png", host)
    host.wait_until(lambda: panel.logic.run.isAssessing or not panel.isRunning, 900, "the result")
    if panel.isRunning:
        host.process_events(3)
        save(panel, folder / "panel-assessing.png", host)
    host.wait_until(lambda: not panel.isRunning, 1800, "the run's end")
    if panel.logic.run.state != "done":
        raise RuntimeError(panel.logic.run.message)
    save(panel, folder / "panel-result.png", host)

    # Before and after in the slice views, on the first tumour, with its position region where it has one; then the
    # checkerboard.
    for name, change in (
        ("after", lambda: None),
        ("before", lambda: gestures.click(panel.ui.beforeButton)),
        ("checkerboard", lambda: (gestures.click(panel.ui.beforeButton), gestures.click(panel.ui.checkerboardButton))),
    ):
        change()
        host.process_events(0.5)
        save_views(folder / f"views-{name}.png")
    slicer.mrmlScene.Clear(0)


def set_view_size() -> None:
    import slicer

    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        node.SetDimensions(*VIEW_SIZE, 1)


def save(panel, path: Path, host) -> None:
    """The panel as high as what it holds."""
    from slicerhost import views

    widget = panel._uiWidget
    widget.setFixedWidth(PANEL_WIDTH)
    host.process_events(0.3)
    widget.setMinimumHeight(widget.sizeHint.height())
    host.process_events(0.3)
    views.save_picture(views.widget_picture(widget), path)
    print(path, flush=True)


def save_views(path: Path) -> None:
    """Axial, coronal and sagittal beside each other."""
    from slicerhost import views

    gap = np.zeros((VIEW_SIZE[1], 4, 3), np.uint8)
    parts = [views.slice_picture(name) for name in ("Red", "Green", "Yellow")]
    views.save_picture(np.hstack([parts[0], gap, parts[1], gap, parts[2]]), path)
    print(path, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
