"""A run whose uncertainty comes after its result: the result is there early, and stays whatever happens then."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import slicer

from result_folder import assessedAs, writeAssessed, writeResult
from scene_data import box, ctVoxels, pattern
from weaktumour.errors import InputError
from WeakTumourSegLib import geometry, logic, roles, scene_export, scene_import, tumour_table
from WeakTumourSegLib.worker_process import DONE, FAILED

SHAPE = (20, 22, 24)
WORKER = Path(__file__).with_name("two_stage_worker.py")
REASON = "Localised: in 95 of 100 cases within 4.0 mm."
STOPPED = "The assessment was stopped: how far the tumours can be trusted is not known."


def labelsOnCT() -> np.ndarray:
    labels = box(SHAPE, (4, 16), (4, 18), (4, 20)).astype(np.uint8)
    labels[8:12, 8:12, 8:13] = 2
    labels[13:15, 14:17, 15:19] = 3
    return labels


@pytest.fixture
def nodes(addVolume, addSegmentation):
    mr, ct = addVolume(pattern(SHAPE, 0, 800), name="MR"), addVolume(ctVoxels(SHAPE), name="CT")
    masks = {"Liver": labelsOnCT() > 0, "HCC": labelsOnCT() == 2, "lesion": labelsOnCT() == 3}
    return mr, ct, addSegmentation(mr, masks)


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(logic, "temporaryFolder", lambda: folder)
    return folder


@pytest.fixture
def prepared(nodes, tmp_path) -> Path:
    folder = tmp_path / "prepared"
    folder.mkdir()
    scene_export.exportVolume(nodes[1], folder / "ct.nrrd")
    writeResult(folder / "result", folder / "ct.nrrd", labelsOnCT())
    figures = {2: assessedAs("localised", 4.0, REASON), 3: assessedAs("approximate", 9.0)}
    writeAssessed(folder / "result", folder / "assessed", figures)
    return folder


@pytest.fixture
def worker(prepared, temporary) -> logic.RegistrationLogic:
    made = logic.RegistrationLogic()
    made.workerCommand = [sys.executable, str(WORKER), str(prepared)]
    made.ticker = lambda milliseconds, function: lambda: None
    return made


@pytest.fixture
def started(worker, nodes):
    """A run whose result is there and whose uncertainty is not."""

    def start(**keywords) -> logic.Run:
        run = worker.registerAndPropagate(*nodes, wait=False, **keywords)
        pollUntil(run, lambda: run.isAssessing)
        return run

    return start


def pollUntil(run: logic.Run, condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert run.isRunning, run.message
        assert time.monotonic() < end, "it did not come in time"
        run._worker.poll()
        time.sleep(0.01)


def go(prepared: Path, what: str) -> None:
    (prepared / "told").write_text(what)
    (prepared / "told").rename(prepared / "go")


def verdicts(run: logic.Run) -> list[str]:
    return [tumour_table.cells(row)[-1] for row in tumour_table.rows(run.nodes.segmentation)]


def draw(run: logic.Run, ct, segmentId: str, mask: np.ndarray) -> None:
    image = geometry.orientedImage(mask.astype(np.uint8), geometry.ijkToNode(ct))
    slicer.vtkSlicerSegmentationsModuleLogic.SetBinaryLabelmapToSegment(image, run.nodes.segmentation, segmentId)


def test_the_result_can_be_used_before_it_is_assessed(worker, started, nodes, prepared, temporary):
    said, events = [], []
    run = started(
        onResult=lambda run: said.append(("result", run.isAssessing)),
        onFinished=lambda run: said.append(("finished", run.complete)),
        onEvent=events.append,
    )
    assert said == [("result", True)]
    segmentation = run.nodes.segmentation
    assert verdicts(run) == ["not assessed"] * 2
    assert scene_import.reportOf(segmentation) == "<html></html>"
    assert run.nodes.regions is run.nodes.probability is None
    with pytest.raises(InputError, match="under way"):
        worker.registerAndPropagate(*nodes)
    go(prepared, "complete")
    assert run.wait() is run
    assert said == [("result", True), ("finished", True)]
    assert (run.state, run.message, run.complete) == (DONE, "", True)
    assert [event["stage"] for event in events if event["event"] == "progress"][-1] == "uncertainty"
    assert run.nodes.segmentation is segmentation
    assert scene_import.resultSegmentations() == [segmentation]
    assert scene_import.resultOf(segmentation) == run.nodes
    cells = [tumour_table.cells(row) for row in tumour_table.rows(segmentation)]
    assert cells[0] == ["HCC", "1.2", "13.3", "2.0 / 4.0", "0.25", "localised"]
    assert cells[1] == ["lesion", "1.2", "13.3", "4.5 / 9.0", "0.25", "approximate"]
    assert scene_import.reportOf(segmentation) == "<html>assessed</html>"
    assert [segment.GetName() for _id, segment in roles.segmentsOf(run.nodes.regions)] == [
        "HCC: 95 % position region",
        "lesion: 95 % position region",
    ]
    assert list(temporary.iterdir()) == []


def test_the_probability_lies_on_the_ct(started, nodes, prepared):
    run = started()
    go(prepared, "complete")
    node = run.wait().nodes.probability
    voxels = slicer.util.arrayFromVolume(node)
    assert voxels.size < labelsOnCT().size / 2  # no larger than where there is any
    places = geometry.transformPoints(geometry.ijkToWorld(node), np.argwhere(voxels == 0.75)[:, ::-1])
    expected = geometry.transformPoints(geometry.ijkToWorld(nodes[1]), np.argwhere(labelsOnCT() > 1)[:, ::-1])
    assert np.allclose(places[np.lexsort(places.round(2).T)], expected[np.lexsort(expected.round(2).T)], atol=1e-3)


def test_an_edit_made_meanwhile_stays(started, nodes, prepared):
    run = started()
    edited = np.roll(labelsOnCT() == 2, 2, axis=1)
    draw(run, nodes[1], "tumour_2", edited)
    go(prepared, "complete")
    run.wait()
    drawn = scene_export.segmentsOnGrid(run.nodes.segmentation, ["tumour_2"], nodes[1])
    assert np.array_equal(drawn, edited)
    assert verdicts(run) == ["edited by hand", "approximate"]
    first = tumour_table.rows(run.nodes.segmentation)[0]
    assert tumour_table.cells(first)[3] == "-"
    assert "belongs to the computed place" in " ".join(tumour_table.verdictToolTip(first).split())
    display = run.nodes.regions.GetDisplayNode()
    assert not display.GetSegmentVisibility("region_2")
    assert display.GetSegmentVisibility("region_3")
    # The region stands at the computed place all the same.
    region = scene_export.segmentsOnGrid(run.nodes.regions, ["region_2"], nodes[1])
    assert region[labelsOnCT() == 2].all()


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("stopped", STOPPED),
        ("killed", "most likely because memory ran out"),
        ("error", "could not be assessed. The GPU is gone; choose the CPU."),
        ("silent", "ended unexpectedly (exit code 0)"),
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_an_assessment_that_comes_to_no_end_leaves_the_result(
    how, sentence, kept, started, prepared, temporary, tmp_path
):
    work = tmp_path / "work"
    work.mkdir()
    run = started(workingFolder=work if kept else None)
    if how == "stopped":
        run.cancel()
    else:
        go(prepared, how)
    run.wait()  # raises nothing: the run is done
    assert (run.state, run.complete, run.isRunning) == (DONE, False, False)
    assert sentence in run.message
    assert verdicts(run) == ["not assessed"] * 2
    assert run.nodes.regions is run.nodes.probability is None
    assert tumour_table.resultContent(run.nodes.segmentation)["assessment"] == run.message
    assert list(temporary.iterdir()) == []
    assert list(work.iterdir()) == ([run.keptFolder] if kept else [])
    if kept:
        assert json.loads((run.keptFolder / "result.json").read_text())["tumours"][0]["verdict"] == "not_assessed"


def test_the_assessed_folder_is_kept_in_the_end(worker, nodes, prepared, temporary, tmp_path):
    go(prepared, "complete")
    run = worker.registerAndPropagate(*nodes, uncertainty="on", workingFolder=tmp_path / "prepared")
    assert run.complete
    assert json.loads((run.keptFolder / "result.json").read_text())["tumours"][0]["verdict"] == "localised"
    assert json.loads((prepared / "request.json").read_text())["arguments"]["uncertainty"] == "on"


def test_a_folder_that_cannot_be_kept_is_said(started, prepared, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    run = started(workingFolder=tmp_path / "prepared")
    monkeypatch.setattr(logic.shutil, "move", full)
    go(prepared, "complete")
    run.wait()
    assert (run.state, run.keptFolder) == (DONE, None)
    assert "folder was not kept" in run.message
    assert verdicts(run) == ["localised", "approximate"]


def test_a_result_removed_meanwhile_does_no_harm(scene, started, prepared):
    run = started()
    scene.RemoveNode(run.nodes.segmentation)
    go(prepared, "complete")
    run.wait()
    assert run.state == DONE
    assert "removed from the scene" in run.message
    assert scene_import.nodesOfKind(scene_import.REGIONS) == scene_import.nodesOfKind(scene_import.PROBABILITY) == []


def test_a_scene_closed_meanwhile_does_no_harm(scene, started, prepared, temporary):
    run = started()
    run.abort()
    scene.Clear(0)
    assert run.state == DONE
    assert not run.isRunning
    assert list(temporary.iterdir()) == []


def test_a_result_that_does_not_fit_ends_the_run(scene, worker, nodes, prepared, temporary):
    (prepared / "result/mr_on_ct.nii.gz").write_bytes(b"")
    before = scene.GetNumberOfNodes()
    with pytest.raises(logic.RunFailed, match="cannot be read"):
        worker.registerAndPropagate(*nodes)
    assert worker.run.state == FAILED
    assert worker.run.nodes is None
    assert scene.GetNumberOfNodes() == before
    assert list(temporary.iterdir()) == []


def test_figures_that_cannot_be_taken_over_are_said(started, prepared):
    (prepared / "assessed/tumour_probability.nii.gz").write_bytes(b"no image")
    run = started()
    before = slicer.mrmlScene.GetNumberOfNodes()
    go(prepared, "complete")
    run.wait()
    assert (run.state, run.complete) == (DONE, False)
    assert "could not be assessed" in run.message
    assert verdicts(run) == ["not assessed"] * 2
    assert slicer.mrmlScene.GetNumberOfNodes() == before


# -- words and colours ----------------------------------------------------------------------------------------------
def luminance(colour: str) -> float:
    channels = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_each_verdicts_colours_are_readable_by_themselves():
    assert set(tumour_table.VERDICT_COLOURS) == {"localised", "approximate", "cannot_be_localised", "outside_ct"}
    for background, text in tumour_table.VERDICT_COLOURS.values():
        low, high = sorted((luminance(background), luminance(text)))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG AA


def row(edited: bool = False, **figures) -> tumour_table.TumourRow:
    computed = {"verdict": "localised", "volume_mm3": 1000.0, "diameter_mm": 12.4, **figures}
    verdict = tumour_table.EDITED if edited else computed["verdict"]
    return tumour_table.TumourRow("tumour_2", "HCC", 1000.0, 12.4, None, None, None, verdict, edited, computed=computed)


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (row(**assessedAs("localised", 4.0, REASON)), [REASON, "every point within 4.0 mm", "0.25 in the CT"]),
        (row(**assessedAs("approximate", 9.0)), ["mind the margin", "every point within 9.0 mm", "4.5 and 9.0 mm"]),
        (row(**assessedAs("cannot_be_localised", 31.0)), ["may be far off", "No 95 % position region"]),
        (row(**assessedAs("outside_ct", None)), ["outside the CT"]),
        (row(verdict="not_assessed"), ["has not been assessed", "under Advanced"]),
        (row(edited=True, **assessedAs("localised", 4.0, REASON)), ["Edited by hand", "hidden while"]),
    ],
)
def test_a_verdict_is_explained_in_words(shown, words):
    text = tumour_table.verdictToolTip(shown)
    assert max(len(line) for line in text.split("\n")) <= 90
    plain = " ".join(text.split())
    for part in (*words, "For research use only"):
        assert part in plain
