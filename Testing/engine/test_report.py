"""report.html: right side up on any grid, self-contained, and silent about who the patient is."""

from __future__ import annotations

import base64
import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from weaktumour.errors import Cancelled
from weaktumour.report import panels, write_report
from weaktumour.report.panels import deformation_of
from weaktumour.report.pictures import View, contours, extent_of, slice_mask, slice_volume, svg_path
from weaktumour.report.wording import Wording, figure, number
from weaktumour.volumes import Grid, Volume

sys.path.insert(0, str(Path(__file__).parent))
from report_case import CENTRE, TUMOURS, grid_around, make_data, turned

COARSE = (5.0, 5.0, 6.0)
GRIDS = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "flipped": np.diag([1.0, -1.0, -1.0]),
    "sagittal slices": np.eye(3)[:, [1, 2, 0]],
    "coronal slices, flipped": np.eye(3)[:, [0, 2, 1]] * np.array([-1.0, -1.0, 1.0]),
    "oblique": turned(30) @ turned(20, 0),
}


@pytest.fixture(scope="module", autouse=True)
def _small_pictures():
    """A third of the pixels: the arithmetic is the same, the tests are quicker."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panels, "PICTURE_PIXELS", 120)
        patch.setattr(panels, "OVERVIEW_PIXELS", 140)
        yield


@pytest.fixture(scope="module")
def data():
    return make_data(grid_around(spacing=COARSE))


@pytest.fixture(scope="module")
def html(data, _small_pictures, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, data)
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]  # no picture file is left behind
    return path.read_text(encoding="utf-8")


class _Page(HTMLParser):
    """Tags with their attributes; raises on a tag that is closed in the wrong place."""

    VOID = frozenset({"meta", "input", "br", "img", "hr", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert tag == self._open.pop(), f"</{tag}> closes another tag"

    def handle_data(self, text):
        if not self._open or self._open[-1] not in ("style", "script"):
            self.words.append(text)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def picture(self, name: str) -> np.ndarray:
        """The grey or colour values of an embedded picture."""
        (uri,) = (attributes["href"] for tag, attributes in self.tags if tag == "image" and attributes["id"] == name)
        return uri


def _decode(uri: str, folder: Path) -> np.ndarray:
    head, content = uri.split(",", 1)
    assert head == "data:image/jpeg;base64"
    path = folder / "picture.jpg"
    path.write_bytes(base64.b64decode(content, validate=True))
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


# -- the page -------------------------------------------------------------------------------------------------------
def test_page_is_well_formed_and_self_contained(html):
    page = _Page(html)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            value = attributes.get(name, "#")
            assert value.startswith(("#", "data:image/jpeg;base64,")), f"<{tag} {name}={value[:60]}>"
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
    without_pictures = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)|<script[^>]+src", without_pictures)


def test_identifiers_are_unique_and_references_resolve(html):
    page = _Page(html)
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    used = {attributes["href"] for tag, attributes in page.tags if tag == "use"}
    used |= {match for match in re.findall(r"url\((#[^)]+)\)", html)}
    assert used
    assert used <= {f"#{name}" for name in names}


def test_page_says_what_matters(html):
    text = _Page(html).text
    assert text.count("Research use only. Not a medical device.") >= 2
    assert "No sign of misalignment found" in text
    assert "Position uncertainty not assessed" in text
    assert "not_assessed" not in text
    for words in (
        "Tumour 1",
        "Tumour 2",
        "body centroids",
        "0.410 \u2192 0.740",
        "46.2 s",
        "Against the simulated truth",
    ):
        assert words in text, words
    assert "Tumour 2: the volume changed by 31 %, the deformation explains 1 %." in text
    assert "The MR does not cover the lowest 12 mm of the liver." in text
    assert "Refinement: Bending 0.3" in text
    assert "Refinement: Levels control mm 32.0, steps 40; control mm 16.0, steps 50" in text


def test_every_tumour_has_before_and_after_in_three_planes(html):
    labels = [
        attributes["aria-label"]
        for tag, attributes in _Page(html).tags
        if attributes.get("class", "").startswith("picture")
    ]
    for plane in ("axial", "coronal", "sagittal"):
        for row in ("before", "after", "deformation"):
            assert labels.count(f"{plane} plane, {row}") == len(TUMOURS) + 1, (plane, row)
        for row in ("CT", "MRI, registered"):
            assert labels.count(f"{plane} plane, {row}") == len(TUMOURS)
        assert labels.count(f"{plane} plane, CT / MRI") == 1


def test_a_doubtful_run_shows_its_reasons(data, tmp_path):
    result = {
        **data.result,
        "run": {"verdict": "check_alignment", "reasons": ["The liver surfaces lie 18 mm apart."]},
        "truth": None,
    }
    write_report(tmp_path / "report.html", dataclasses.replace(data, result=result, truth_labels=None))
    text = _Page((tmp_path / "report.html").read_text(encoding="utf-8")).text
    assert "Check the alignment The liver surfaces lie 18 mm apart." in text
    assert "truth" not in text.replace("need no truth", "")


def test_a_tumour_outside_the_ct_gets_a_card_without_pictures(data, tmp_path):
    labels = Volume(np.where(data.labels.array == 3, 1, data.labels.array), data.labels.grid)
    tumour = {
        **data.result["tumours"][1],
        "volume_mm3": 0.0,
        "centroid_lps_mm": None,
        "diameter_mm": None,
        "verdict": "outside_ct",
    }
    result = {**data.result, "tumours": [data.result["tumours"][0], tumour]}
    write_report(tmp_path / "report.html", dataclasses.replace(data, labels=labels, result=result))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Outside the CT" in html
    assert "nothing to show" in html
    assert 'id="t3-axial-ct"' not in html


def test_cancelling_leaves_no_page(data, tmp_path):
    def stop(fraction: float) -> None:
        if fraction > 0:
            raise Cancelled("Cancelled.")

    with pytest.raises(Cancelled):
        write_report(tmp_path / "report.html", data, stop)
    assert not list(tmp_path.iterdir())


def test_the_same_data_give_the_same_page(data, html, tmp_path):
    write_report(tmp_path / "again.html", data)
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_volumes_on_other_grids_are_shown_in_world_space(data, html, tmp_path):
    """The MR and its labels need not be resampled for the page: flipping their storage changes nothing."""

    def flipped(volume: Volume) -> Volume:
        grid = volume.grid
        axes = grid.axes * np.array([-1.0, 1.0, -1.0])
        origin = grid.index_to_world((grid.size[0] - 1, 0, grid.size[2] - 1))
        return Volume(
            np.ascontiguousarray(volume.array[::-1, :, ::-1]),
            Grid(grid.size, grid.spacing, tuple(origin), tuple(axes.ravel())),
        )

    changed = dataclasses.replace(
        data,
        mr_before=flipped(data.mr_before),
        mr_after=flipped(data.mr_after),
        labels_before=flipped(data.labels_before),
    )
    write_report(tmp_path / "report.html", changed)
    other = (tmp_path / "report.html").read_text(encoding="utf-8")
    for name in ("t2-axial-mr-before-grey", "t2-sagittal-mr-after-grey", "liver-coronal-mr-before-grey"):
        first, second = (_decode(_Page(text).picture(name), tmp_path).astype(float) for text in (html, other))
        assert np.abs(first - second).mean() < 2.5  # of 255


def test_report_needs_neither_torch_nor_matplotlib():
    unwanted = "{'torch', 'matplotlib', 'scipy', 'PIL'}"
    code = f"import sys, weaktumour.report, weaktumour.result; print(sorted({unwanted} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=_environment())
    assert found.stdout.strip() == "[]"


def _environment() -> dict[str, str]:
    import os

    import weaktumour

    return {**os.environ, "PYTHONPATH": str(Path(weaktumour.__file__).parents[1])}


# -- privacy --------------------------------------------------------------------------------------------------------
def test_no_name_or_path_reaches_the_page(tmp_path):
    names = {1: "Liver", 2: "DOE^JOHN lesion", 3: "/data/patients/DOE^JOHN/seg.nrrd"}
    data = make_data(
        grid_around(spacing=(9.0, 9.0, 9.0)), names=names, files=("DOE^JOHN_19610203.nii.gz", "DOE_JOHN_CT.nii.gz")
    )
    data.result["inputs"]["mr_labels"]["file"] = "segmentation of Doe.nrrd"
    data.result["warnings"] = [
        "CT: C:\\Patients\\DOE JOHN\\ct.nii.gz has a gap.",
        "MRI: /home/clinic/DOE^JOHN_19610203.nii.gz is short; DOE_JOHN_CT too.",
    ]
    data.result["run"] = {
        "verdict": "check_alignment",
        "reasons": ["In segmentation of Doe.nrrd nothing fits.", "file://srv/doe/x is bad"],
    }
    data.result["settings"]["initial_transform"] = "/home/clinic/DOE^JOHN/start.h5"
    write_report(tmp_path / "report.html", data)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    plain = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", text)
    for secret in ("doe", "john", "19610203", "clinic", "patients", "seg.nrrd", str(tmp_path).lower(), ".nii", ".h5"):
        assert secret not in plain.lower(), secret
    assert "label 2" in plain
    assert "has a gap." in plain


def test_pictures_carry_no_metadata(html, tmp_path):
    for uri in re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html)[:4]:
        content = base64.b64decode(uri)
        assert content[:3] == b"\xff\xd8\xff"
        assert b"\xff\xe1" not in content[:64]  # no EXIF
        assert b"\xff\xfe" not in content[:64]  # no comment


def test_label_names_are_escaped(tmp_path):
    data = make_data(
        grid_around(spacing=(9.0, 9.0, 9.0)), names={1: "Liver", 2: "<img src=x onerror=alert(1)>", 3: 'a & "b" </h2>'}
    )
    write_report(tmp_path / "report.html", data)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    _Page(html)
    assert "<img" not in html
    assert 'a & "b"' not in html
    assert "a &amp; &quot;b&quot;" in html


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Volume 3/4 of 1/2 mL, MR/CT 1.2", "Volume 3/4 of 1/2 mL, MR/CT 1.2"),
        ("see /home/a/b c", "see [file] c"),
        ("D:\\x\\y.nrrd is bad", "[file] is bad"),
        ("\\\\server\\share\\doe is bad", "[file] is bad"),
        ("ROE^JANE: bad", "[name]: bad"),
        ("a < b & c", "a &lt; b &amp; c"),
    ],
)
def test_wording_hides_paths_and_names_only(data, text, shown):
    assert Wording(data.result, data.label_names).text(text) == shown


def test_figures_get_words_and_units():
    assert figure("hd95_mm", 3.14159) == ("HD95", "3.14\u00a0mm")
    assert figure("inside_ct_fraction", 0.5) == ("Inside CT", "50\u00a0%")
    assert figure("folds", 0) == ("Folds", "0")
    assert figure("jacobian_folds_in_body", 3) == ("Folds in the body (voxels)", "3")
    assert figure("dice", None) == ("Dice", "\u2013")
    assert number(-1234.5, 1) == "\u22121\u2009234.5"


# -- slices ---------------------------------------------------------------------------------------------------------
# Markers off the picture's centre (LPS mm), and the edge of the picture towards which each belongs.
_OFFSETS = {
    "axial": {(-40, 0, 0): "left", (40, 0, 0): "right", (0, -40, 0): "top", (0, 40, 0): "bottom"},
    "coronal": {(-40, 0, 0): "left", (40, 0, 0): "right", (0, 0, 40): "top", (0, 0, -40): "bottom"},
    "sagittal": {(0, -40, 0): "left", (0, 40, 0): "right", (0, 0, 40): "top", (0, 0, -40): "bottom"},
}
_LETTER_OF = {(-40, 0, 0): "R", (40, 0, 0): "L", (0, -40, 0): "A", (0, 40, 0): "P", (0, 0, 40): "H", (0, 0, -40): "F"}


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
@pytest.mark.parametrize("axes", GRIDS.values(), ids=GRIDS.keys())
def test_a_marker_appears_at_the_edge_that_its_letter_names(axes, plane):
    grid = grid_around(extent_mm=(140.0, 140.0, 140.0), spacing=(2.0, 2.5, 4.0), axes=axes)
    points = grid.points()
    view = View(plane, tuple(CENTRE), (120.0, 120.0), 1.0)
    for offset, edge in _OFFSETS[plane].items():
        ball = ((points - CENTRE - offset) ** 2).sum(-1) < 8.0**2
        picture = slice_volume(Volume(ball.astype(np.float32), grid), view, 0.0)
        y, x = (
            axis @ picture.sum(1 - i) / picture.sum() + 0.5 - 60
            for i, axis in enumerate((np.arange(120), np.arange(120)))
        )
        expected = {"left": (-40, 0), "right": (40, 0), "top": (0, -40), "bottom": (0, 40)}[edge]
        assert (x, y) == pytest.approx(expected, abs=0.7), (offset, edge)
        assert view.letters[("left", "right", "top", "bottom").index(edge)] == _LETTER_OF[offset]
        assert view.to_pixels(CENTRE + offset) - 60 == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("axes", GRIDS.values(), ids=GRIDS.keys())
def test_the_page_shows_the_patient_right_side_up(axes, tmp_path):
    """Whole path: the bright spine is behind (bottom) and, seen from the liver, on the patient's left (right)."""
    data = make_data(grid_around(spacing=COARSE, axes=axes), truth=False)
    write_report(tmp_path / "report.html", data)
    page = _Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    picture = _decode(page.picture("liver-axial-ct"), tmp_path).astype(float) / 255
    y, x = np.nonzero(picture > 0.95)  # bone
    assert y.mean() > 0.6 * picture.shape[0]
    assert x.mean() > 0.6 * picture.shape[1]
    mr = _decode(page.picture("t2-axial-mr-after-grey"), tmp_path).astype(float) / 255
    middle, px_per_mm = mr.shape[0] // 2, mr.shape[0] / 160
    near = slice(round(middle - 7 * px_per_mm), round(middle + 7 * px_per_mm))
    beside = slice(round(middle + 25 * px_per_mm), round(middle + 35 * px_per_mm))
    # The tumour is dark in the MR and lies in the middle of its picture.
    assert mr[near, near].mean() < 0.7 * mr[near, beside].mean()


@pytest.mark.parametrize("axes", GRIDS.values(), ids=GRIDS.keys())
def test_a_ball_is_round_and_of_the_right_size_on_anisotropic_grids(axes):
    grid = grid_around(extent_mm=(80.0, 80.0, 80.0), spacing=(0.8, 1.3, 3.0), axes=axes)
    ball = Volume((((grid.points() - CENTRE) ** 2).sum(-1) < 20.0**2).astype(np.uint8), grid)
    for plane in ("axial", "coronal", "sagittal"):
        lines = contours(slice_mask(ball, (1,), View(plane, tuple(CENTRE), (60.0, 60.0), 0.5)))
        assert len(lines) == 1
        radius = np.hypot(*(lines[0] - 60).T) * 0.5
        assert radius.mean() == pytest.approx(20.0, abs=0.6)
        assert np.abs(radius - radius.mean()).max() < 2.0  # within the lattice's own steps


def test_slices_beyond_the_volume_are_empty():
    grid = grid_around(extent_mm=(40.0, 40.0, 40.0), spacing=(4.0, 4.0, 4.0))
    volume = Volume(np.ones(grid.shape, dtype=np.float32), grid)
    far = View("axial", tuple(CENTRE + 500), (20.0, 20.0), 1.0)
    assert (slice_volume(volume, far, -7.0) == -7.0).all()
    assert not slice_mask(volume, (1,), far).any()
    half = slice_volume(volume, View("axial", (CENTRE[0] + 20, CENTRE[1], CENTRE[2]), (20.0, 20.0), 1.0), -7.0)
    assert (half[:, :9] == 1).all()
    assert (half[:, 11:] == -7).all()


def test_extent_of_labels():
    grid = Grid((10, 11, 12), (1.0, 2.0, 3.0), (5.0, 6.0, 7.0))
    array = np.zeros(grid.shape, dtype=np.uint8)
    array[3, 4, 5] = array[3, 4, 8] = 9
    extent = extent_of(Volume(array, grid), (9,))
    assert extent.voxels == 2
    assert extent.centroid_mm == pytest.approx([5 + 6.5, 6 + 8, 7 + 9])
    assert array[tuple(np.rint(grid.world_to_index(extent.anchor_mm)).astype(int)[::-1])] == 9
    assert np.ptp(extent.box_mm, axis=0) == pytest.approx([4, 2, 3])
    assert extent_of(Volume(array, grid), (8,)) is None


# -- contours -------------------------------------------------------------------------------------------------------
def _distance_to_circle(radius: float, centre: tuple[float, float], shape=(100, 120)) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    return radius - np.hypot(x - centre[0], y - centre[1])


def test_contour_of_a_circle_is_closed_and_sub_pixel():
    (line,) = contours(_distance_to_circle(30.0, (50.3, 60.2)), 0.0)
    assert (line[0] == line[-1]).all()
    assert np.hypot(*(line - (50.3, 60.2)).T) == pytest.approx(np.full(len(line), 30.0), abs=0.01)


def test_contours_that_leave_the_picture_stay_open():
    (line,) = contours(_distance_to_circle(30.0, (0.0, 50.0)), 0.0)
    assert not (line[0] == line[-1]).all()
    assert sorted(line[[0, -1], 0]) == [0.5, 0.5]


def test_rings_and_separate_pieces_and_saddles():
    ring = np.minimum(_distance_to_circle(30.0, (60, 50)), -_distance_to_circle(12.0, (60, 50)))
    assert len(contours(ring, 0.0)) == 2
    board = ((np.indices((40, 40)) // 10).sum(0) % 2).astype(float)
    lines = contours(board)
    crossings = np.count_nonzero(board[:, 1:] != board[:, :-1]) + np.count_nonzero(board[1:] != board[:-1])
    assert sum(len(line) - (line[0] == line[-1]).all() for line in lines) == crossings  # each crossing lies on one line
    assert contours(np.zeros((5, 5))) == []
    assert contours(np.ones((5, 5))) == []


def test_svg_path_keeps_the_line_within_a_twentieth_of_a_pixel():
    (line,) = contours(_distance_to_circle(30.0, (50.3, 60.2)), 0.0)
    path = svg_path([line])
    start, moves = re.fullmatch(r"M(\d+ \d+)l([-\d ]+)", path).groups()
    steps = np.array(re.findall(r"-?\d+", moves), dtype=int).reshape(-1, 2)
    points = (np.array(start.split(), dtype=int) + np.vstack(([0, 0], np.cumsum(steps, axis=0)))) / 10
    assert np.hypot(*(points - (50.3, 60.2)).T) == pytest.approx(np.full(len(points), 30.0), abs=0.08)
    assert (points[0] == points[-1]).all()


# -- deformation ----------------------------------------------------------------------------------------------------
def test_an_affine_field_shows_no_local_deformation():
    grid = Grid.around(np.array([[0, 0, 0], [100, 120, 80]]), 5.0)
    points = grid.points()
    shear = np.array([[0.02, 0.1, 0], [-0.1, 0.03, 0], [0, 0.05, -0.04]])
    local = deformation_of(points @ shear + np.array((30, -20, 10)), grid, points.reshape(-1, 3), points.reshape(-1, 3))
    assert local.max_mm < 1e-9
    assert local.scale_mm == 1.0
    assert local.magnitude(View("axial", (50, 60, 40), (60, 60), 2.0)).max() < 1e-4


def test_a_local_push_is_shown_where_and_as_large_as_it_is():
    grid = Grid.around(np.array([[0, 0, 0], [200, 200, 200]]), 5.0)
    points = grid.points()
    push = np.exp(-((points - (120, 80, 100)) ** 2).sum(-1, keepdims=True) / (2 * 12.0**2)) * (0, 0, 9.0)
    local = deformation_of(push + np.array((40.0, 0, 0)), grid, points.reshape(-1, 3), points.reshape(-1, 3))
    view = View("coronal", (120, 80, 100), (80, 80), 1.0)
    magnitude = local.magnitude(view)
    assert magnitude.max() == pytest.approx(9.0, abs=0.4)
    peak = np.unravel_index(magnitude.argmax(), magnitude.shape)[::-1]
    assert np.array(peak) + 0.5 == pytest.approx(view.to_pixels(np.array([120, 80, 100])), abs=1.5)
    assert local.scale_mm == 10.0
