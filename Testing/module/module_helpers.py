"""What several module tests do."""

from __future__ import annotations

from pathlib import Path

MODULE = Path(__file__).resolve().parents[2] / "WeakTumourSeg"
SCENE_TESTS = Path(__file__).resolve().parents[1] / "scene"


def run(panel, slicer_host) -> None:
    """Click, wait for the end."""
    from slicerhost import gestures

    gestures.click(panel.ui.applyButton)
    assert panel.isRunning
    slicer_host.wait_until(lambda: not panel.isRunning, 240, "the run's end")
    assert panel.logic.run.state == "done", panel.logic.run.message
