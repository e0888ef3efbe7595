"""How far the stated uncertainty can be trusted: calibration on some simulated patients, coverage on others.

Rows (a registration with its uncertainty against the truth, `weaktumour.evaluation.trust`) take a minute each on a
core. They are kept, one line each, in `Testing/benchmark/trust/PART.jsonl`, so that figures can be made again from them
in seconds; rows of other networks, another simulator or another state of the code are made anew. The parts `trust` of
splits.json name the patients, whose anatomies and seeds are disjoint, but for the whole real CT, of which there is one.

    python Testing/benchmark/trust.py --split calibration --fit      writes Resources/Models/uncertainty.json
    python Testing/benchmark/trust.py --split test [--page FILE]     coverage, sharpness, spoiled pairs
"""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from common import (
    REPOSITORY,
    Bar,
    InputError,
    check_page_options,
    markdown_table,
    page_options,
    parser,
    report,
    run_script,
    shared_data,
    write_page,
)
from weaktumour.evaluation.measure import json_ready
from weaktumour.evaluation.methods import engine
from weaktumour.evaluation.trust import SPOILINGS, Pair, measure
from weaktumour.models import find
from weaktumour.quality import VISIBLE_CNR, Thresholds, judge_place, shows_same_vessels
from weaktumour.result import TUMOUR_VERDICTS, RunVerdict
from weaktumour.simulation import VERSION
from weaktumour.simulation.tissue_maps import read_label_map
from weaktumour.uncertainty.calibration import (
    DERIVED,
    FILE,
    LEVELS,
    Calibration,
    conformal_quantile,
    cross_fitted,
    fit,
)
from weaktumour.uncertainty.features import NAMES
from weaktumour.volumes import Volume, read_volume

_MAKES = ("ensemble", "evidence", "features")
# How the pairs' names begin.
MADE_OF = {
    "phantom-": "phantoms",
    "map-": "livers of label maps",
    "ct-chaos_ct-": "real CT (CHAOS)",
    "ct-totalsegmentator_examples-": "real CT, a slab (TotalSegmentator)",
}
# Image and labels of each in the shared data, and the label's value that is liver.
REAL_CT = {
    "chaos_ct": ("ct.nii.gz", "liver.nii.gz", 1),
    "totalsegmentator_examples": ("example_ct_sm.nii.gz", "example_seg.nii.gz", 5),
}
ROWS = Path(__file__).with_name("trust")
CALIBRATION = REPOSITORY / "WeakTumourSeg" / "Resources" / "Models" / FILE
# About thirds of the calibration part.
DIAMETERS_MM, DEPTHS_MM, MOTIONS_MM = (16.0, 25.0), (20.0, 26.0), (2.5, 4.5)


def main() -> int:
    arguments = _arguments()
    if arguments.smoke:
        row = _row(Pair("smoke", 0), arguments.device, True)
        print(json.dumps(row["tumours"][0], indent=1))
        return 0
    rows = _measured(arguments.split, arguments)
    if arguments.fit:
        arguments.calibration.write_text(_fitted(rows).to_json(), encoding="utf-8")
        print(f"Written: {arguments.calibration}.\nWhere nothing that p95 rests on is of the patient's own anatomy:\n")
        print(_cross_fitted(_sound(rows)))
        print("\nWhat follows is of the tumours that it was fitted to.")
    return _evaluated(rows, arguments)


def _arguments():
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--split", choices=("calibration", "test"), default="test", help="default: test")
    options.add_argument("--fit", action="store_true", help="fit the calibration to these rows and write it")
    options.add_argument("--calibration", type=Path, default=CALIBRATION, metavar="FILE.json", help="what to fit or to "
                         "judge (default: the shipped one)")  # fmt: skip
    page_options(options)
    options.add_argument("--processes", type=int, default=2, help="pairs at a time, one thread each (default: 2)")
    options.add_argument("--device", default="cpu", help="cpu, cuda or auto (default: cpu)")
    options.add_argument("--any-code", action="store_true", help="take rows of another state of the code as they are")
    arguments = options.parse_args()
    check_page_options(arguments)
    if arguments.fit and arguments.split != "calibration":
        options.error("--fit goes with --split calibration: a part that was fitted to can judge nothing")
    return arguments


# -- rows -----------------------------------------------------------------------------------------------------------
def _pairs(split: str) -> list[Pair]:
    """Sound and spoiled ones in turn, so that a run that is cut short has both."""
    named, data = _named(split), shared_data()
    sound = [Pair(f"phantom-{seed}", seed) for seed in named["phantoms"]]
    for entry in named["label_maps"]:
        path = data / "label_maps" / f"{entry['map']}.nii.gz"
        sound.append(Pair(f"map-{entry['map']}-{entry['seed']}", entry["seed"], read_label_map(path), entry["map"]))
    images = {name: _real_ct(data / name) for name in sorted({entry["image"] for entry in named["real_ct"]})}
    for entry in named["real_ct"]:
        name = entry["image"]
        sound.append(Pair(f"ct-{name}-{entry['seed']}", entry["seed"], ct=images[name], label_map_name=name))
    sound = [sound[i] for i in np.random.default_rng(0).permutation(len(sound))]
    spoiled = [
        Pair(f"{kind}-{seed}", seed, spoiling=kind, other_seed=seed + 1)
        for drawn in named["spoiled"]
        for seed in range(drawn["first"], drawn["first"] + 2 * drawn["of_each"], 2)
        for kind in SPOILINGS
    ]
    longer, shorter = (sound, spoiled) if len(sound) >= len(spoiled) else (spoiled, sound)
    step = len(longer) / max(len(shorter), 1)
    keyed = [(i, pair) for i, pair in enumerate(longer)] + [(i * step + 0.5, pair) for i, pair in enumerate(shorter)]
    return [pair for _, pair in sorted(keyed, key=lambda entry: entry[0])]


def _named(split: str) -> dict:
    return json.loads(Path(__file__).with_name("splits.json").read_text(encoding="utf-8"))["trust"][split]


def _calibrated() -> set[str]:
    """Anatomies that the calibration knows; see `_anatomy`."""
    named = _named("calibration")
    return {
        *(f"phantom-{seed}" for seed in named["phantoms"]),
        *(f"map-{entry['map']}" for entry in named["label_maps"]),
        *(f"ct-{entry['image']}" for entry in named["real_ct"]),
    }


def _real_ct(folder: Path) -> tuple[Volume, Volume]:
    image, labels, liver = REAL_CT[folder.name]
    labels = read_volume(folder / labels, "CT labels")
    return read_volume(folder / image, "CT"), Volume((labels.array == liver).astype(np.uint8), labels.grid)


def _anatomy(pair: str) -> str:
    """Whose liver a pair shows: a phantom's seed draws it, other pairs of one image or map have it in common."""
    return pair if pair.startswith("phantom-") else pair.rsplit("-", 1)[0]


class _Kept:
    """Rows in a file of lines. any_code: those that other code has made count too."""

    def __init__(self, path: Path, any_code: bool) -> None:
        self.path, self.rows, self.codes = path, {}, set()
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if text and not text.endswith("\n"):
            with path.open("a", encoding="utf-8") as file:
                file.write("\n")
        for line in text.splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # cut short when a run was killed
            if row["key"] == _key() and (any_code or row["code"] == _code()):
                self.rows[row["patient"]] = row
                self.codes.add(row["code"])

    def add(self, row: dict) -> None:
        self.rows[row["patient"]] = row
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def tidy(self) -> None:
        """One line for each pair, in order, nothing else."""
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(self.rows[name]) + "\n" for name in sorted(self.rows)), encoding="utf-8")
        partial.replace(self.path)


def _measured(part: str, arguments) -> list[dict]:
    pairs, kept = _pairs(part), _Kept((arguments.keep or ROWS) / f"{part}.jsonl", arguments.any_code)
    if kept.codes - {_code()}:
        print(f"Some rows are of other code than this: {', '.join(sorted(kept.codes))}; this is {_code()}.")
    dropout = part == "test"  # a comparison, for the table
    missing = [pair for pair in pairs if pair.name not in kept.rows]
    failed: list[str] = []
    fresh = get_context("spawn")  # a forked process cannot use the GPU
    with ProcessPoolExecutor(arguments.processes, mp_context=fresh, initializer=_single_thread) as pool:
        futures = [pool.submit(_row, pair, arguments.device, dropout) for pair in missing]
        for done, future in enumerate(as_completed(futures), start=1):
            try:
                row = future.result()
            except Exception as error:  # the others' rows are worth hours
                failed.append(f"{type(error).__name__}: {error}")
                continue
            kept.add(row)
            errors = [round(t["error_mm"], 1) for t in row["tumours"] if "error_mm" in t]
            said = row.get("refused") or errors or f"{row['spoiling']}: {row['run']}"
            print(f"{done} of {len(missing)}: {row['patient']}: {said}", flush=True)
    if missing:
        kept.tidy()
    if failed:
        raise RuntimeError(f"{len(failed)} pairs failed: {'; '.join(failed)}")
    return [kept.rows[pair.name] for pair in pairs]


def _single_thread() -> None:
    import SimpleITK as sitk
    import torch

    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _row(pair: Pair, device: str, dropout: bool) -> dict:
    row = json_ready({"key": _key(), "code": _code(), **measure(pair, device=device, dropout=dropout)})
    return _shortened(row)


def _shortened(value):
    """Five digits: a file of rows is read by people and kept by git."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {name: _shortened(part) for name, part in value.items()}
    return [_shortened(part) for part in value] if isinstance(value, list) else value


def _key() -> list:
    return [VERSION, *_models().values(), *NAMES]


def _code() -> str:
    """Of what makes rows; `quality` gives each its run's verdict."""
    return engine("quality.py", "evaluation/trust.py", *(f"uncertainty/{n}.py" for n in _MAKES))["code"]


def _models() -> dict[str, str]:
    return {task: find(None, task).sha256 for task in ("registration", "segmentation")}


# -- calibration ----------------------------------------------------------------------------------------------------
def _features(tumour: dict) -> dict[str, float]:
    return {name: np.nan if value is None else value for name, value in tumour["features"].items()}


def _sound(rows: list[dict]) -> list[tuple[dict, dict]]:
    return [(row, t) for row in rows if row["spoiling"] is None for t in row["tumours"] if t["inside_ct"]]


def _spoiled(rows: list[dict]) -> list[tuple[dict, dict]]:
    return [(row, t) for row in rows if row["spoiling"] for t in row["tumours"] if t["inside_ct"]]


def _fitted(rows: list[dict]) -> Calibration:
    sound, spoiled = _sound(rows), _spoiled(rows)
    return fit(
        [(_anatomy(row["patient"]), _features(t), t["error_mm"]) for row, t in sound],
        [(row["patient"], _features(t)) for row, t in spoiled],
        NAMES,
        doubt_names=(*NAMES, *DERIVED),
        models=_models(),
        simulator=VERSION,
        data=f"part calibration: {len(sound)} tumours of {_counted([row['patient'] for row, _ in sound])}, "
        f"{len(spoiled)} of {len({row['patient'] for row, _ in spoiled})} spoiled pairs; preset balanced; code "
        f"{' and '.join(sorted({row['code'] for row in rows}))}",
    )


def _counted(pairs: list[str]) -> str:
    return (
        f"{len(set(pairs))} simulated patients (simulated MR) with {len({_anatomy(name) for name in pairs})} anatomies"
    )


def _cross_fitted(sound: list[tuple[dict, dict]]) -> str:
    """Coverage and size of p95 as a table, where nothing that a tumour's p95 rests on is of its own anatomy."""
    entries = [(_anatomy(row["patient"]), _features(t), t["error_mm"]) for row, t in sound]
    found = cross_fitted(entries, NAMES, 10, 0)
    error, p95 = np.array([t["error_mm"] for _, t in sound]), np.empty(len(sound))
    for anatomy in np.unique(found.patients):
        own = found.patients == anatomy
        score = conformal_quantile(found.scores[~own], found.patients[~own], 0.95)
        p95[own] = np.exp(found.middle[own] + score * found.width[own])
    patients = np.array([row["patient"] for row, _ in sound])
    motion = np.array([t["motion_mm"] for _, t in sound])
    shown = [("all", np.ones(len(sound), dtype=bool)), *_by_image(patients),
             (f"motion {MOTIONS_MM[1]:g} mm and above", motion >= MOTIONS_MM[1])]  # fmt: skip
    cells = [[name, *_coverage((error <= p95)[which]), float(np.median(p95[which]) / np.median(error[which]))]
             for name, which in shown]  # fmt: skip
    head = ["cross-fitted", "number", "within p95 %", "95 % interval", "median p95 over median error"]
    return markdown_table(head, cells)


# -- evaluation -----------------------------------------------------------------------------------------------------
def _evaluated(rows: list[dict], arguments) -> int:
    file = arguments.calibration
    calibration = Calibration.read(file)
    if calibration.models != _models() or calibration.simulator != VERSION:
        raise InputError(f"{file.name} belongs to other networks or another simulator; run with --fit first.")
    everyone = [_judged(row, t, calibration) for row, t in _sound(rows)]
    known = _calibrated() if arguments.split == "test" else set()
    judged = [j for j in everyone if _anatomy(j["patient"]) not in known]
    spoiled = [_judged(row, t, calibration) for row, t in _spoiled(rows)]
    error, p95 = (np.array([j[name] for j in judged]) for name in ("error", "p95"))
    localised = np.array([j["verdict"] == "localised" for j in judged])
    held = error <= p95
    strata = _strata(judged)
    looks = np.array([j["in_ct"] for j in judged])
    shown = [("all", looks != ""), *strata]
    shown += [
        (f"{look} in the CT", looks == look) for look in ("invisible", "faint", "visible") if (looks == look).any()
    ]
    names = np.array([j["patient"] for j in judged])
    shown += _by_image(names)
    simulated = ~np.char.startswith(names, "ct-")
    shown += [(f"{name}, but for the real CTs", which & simulated) for name, which in (shown[0], strata[-1])]
    cells = [
        [name, *_coverage(held[which]), float(np.median(error[which])), float(np.median(p95[which]))]
        for name, which in shown
    ]
    apart = [j for j in everyone if _anatomy(j["patient"]) in known]
    for name, which in _by_image(np.array([j["patient"] for j in apart], dtype=str)):
        errors, radii = (np.array([j[key] for j in apart])[which] for key in ("error", "p95"))
        cells.append([f"not counted: {name}, an anatomy that calibration knows", *_coverage(errors <= radii),
                      float(np.median(errors)), float(np.median(radii))])  # fmt: skip
    head = ["tumours", "number", "within p95 %", "95 % interval (Wilson)", "median error mm", "median p95 mm"]
    tables = [markdown_table(head, cells)]
    tables.append(
        markdown_table(
            ["verdict", "number", "median error mm", "p90 mm", "more than 5 mm off", "%", "95 % interval (Wilson)"],
            _verdicts(judged),
        )
    )
    reliability = _reliability(judged)
    levels = [[100 * level, 100 * found] for level, found in reliability[1::2]]
    tables.append(markdown_table(["stated share %", "found %"], levels))
    close, far = error < 2.5, error > 5.0
    of_kind = {kind: [s for s in spoiled if s["spoiling"] == kind] for kind in SPOILINGS}
    pairs = {kind: [row for row in rows if row["spoiling"] == kind] for kind in SPOILINGS}
    tables.append(
        markdown_table(
            ["spoiled pairs", "pairs", "refused", "check alignment", "tumours in the CT", "localised", "approximate"],
            [[kind, len(pairs[kind]), sum("refused" in row for row in pairs[kind]),
              sum(row.get("run") == "check_alignment" for row in pairs[kind]), len(of_kind[kind]),
              sum(s["verdict"] == "localised" for s in of_kind[kind]),
              sum(s["verdict"] == "approximate" for s in of_kind[kind])] for kind in SPOILINGS],
        )
    )  # fmt: skip
    seeing = _visibility(judged)
    tables.append(markdown_table(["seen in the CT, diameter >= 12 mm", "number", "share"], seeing))
    rank = _spearman(p95, error)
    members = _spearman(np.array([j["spread"] for j in judged]), error)
    compared = np.array([j["dropout"] is not None for j in judged])
    dropout = np.nan
    if compared.any():
        dropout = _spearman(np.array([j["dropout"] for j in judged if j["dropout"] is not None]), error[compared])
    seconds = np.array([[row["registration_s"], row["uncertainty_s"]] for row in rows if "registration_s" in row])
    ratio = float(np.median(seconds[:, 1] / seconds[:, 0]))
    sharp = float(np.median(p95) / np.median(error))
    tables.append(
        markdown_table(
            ["figure", "value"],
            [["median error mm", float(np.median(error))], ["median p95 mm", float(np.median(p95))],
             ["rank correlation of p95 and error", rank], ["of the ensemble's spread alone", members],
             ["of the spread under Monte Carlo dropout of MSCGUNet", dropout],
             ["localised %", 100 * float(localised.mean())],
             [f"seconds of the registration ({_devices(rows)}, one thread)", float(np.median(seconds[:, 0]))],
             ["seconds of the ensemble", float(np.median(seconds[:, 1]))], ["ratio", ratio]],
        )
    )  # fmt: skip
    bars = [
        Bar("tumours", len(judged), 400),
        Bar("patients", len(set(names)), 80),
        Bar("tumours in the smallest stratum", min(int(which.sum()) for _, which in strata), 100),
        Bar("spoiled pairs of each kind", min(len(found) for found in pairs.values()), 20),
        Bar("coverage of p95, least, %", 100 * held.mean(), 92.0),
        Bar("coverage of p95, most, %", 100 * held.mean(), 98.0, at_least=False),
        Bar("coverage in the worst stratum, %", min(100 * held[which].mean() for _, which in strata), 88.0),
        Bar("median p95 over median error", sharp, 2.5, at_least=False),
        Bar("rank correlation", rank, 0.5),
        Bar(
            "of the localised, more than 5 mm off, %", 100 * far[localised].mean() if localised.any() else 0, 5.0, False
        ),
        Bar("of those less than 2.5 mm off, localised, %", 100 * localised[close].mean(), 50.0),
        Bar("spoiled tumours called localised", sum(s["verdict"] == "localised" for s in spoiled), 0, at_least=False),
        Bar("visibility told right at the true place", seeing[0][2], 0.95),
        Bar("ensemble over registration, s", ratio, 2.0, at_least=False),
    ]
    data = (
        f"{len(judged)} tumours of {_counted(list(names))}, simulator {VERSION}, "
        f"part {arguments.split} of splits.json; {sum(len(found) for found in pairs.values())} spoiled pairs; "
        f"code {' and '.join(sorted({row['code'] for row in rows}))}. Motion is what alignment leaves of it. "
        f"Calibration: {calibration.data}"
    )
    figures = {"judged": judged, "spoiled": spoiled, "reliability": reliability}
    if arguments.page:
        arguments.page.parent.mkdir(parents=True, exist_ok=True)
        picture = _plots(reliability, judged, arguments.page.parent, arguments.page.stem)
        introduction = [
            f"`python Testing/benchmark/trust.py`: {data}.",
            "Simulated MR and CT: what holds for them need not hold for patients.",
        ]
        shown = f"![Reliability diagram; errors against what was stated]({picture})"
        write_page(arguments, "How far the stated uncertainty can be trusted", introduction, bars, tables, shown)
    return report(arguments, "Trust", data, tables, figures, bars)


def _judged(row: dict, tumour: dict, calibration: Calibration) -> dict:
    features = _features(tumour)
    radii = [calibration.radius_at(features, level) for level in LEVELS]
    p95 = radii[LEVELS.index(0.95)]
    run = RunVerdict(row["run"], ("-",))
    verdict, _ = judge_place(
        p95, calibration.is_doubtful(features), shows_same_vessels(row["vessels"]), run, Thresholds()
    )
    shown = ("diameter_mm", "depth_mm", "motion_mm", "in_ct", "true_cnr", "visibility")
    return {"patient": row["patient"], "spoiling": row["spoiling"], "radii": radii, "p95": p95, "verdict": verdict,
            "doubt": calibration.doubt(features), "spread": features["spread"],
            "dropout": dict(enumerate(row["dropout_spread_mm"])).get(tumour["number"]), "error": tumour.get("error_mm"),
            **{name: tumour.get(name) for name in shown}}  # fmt: skip


def _by_image(patients: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Which tumours are of patients that are made of what; patients: (n,) the pairs' names."""
    found = [(name, np.char.startswith(patients, kind)) for kind, name in MADE_OF.items()]
    return [(name, which) for name, which in found if which.any()]


def _strata(judged: list[dict]) -> list[tuple[str, np.ndarray]]:
    found = []
    for name, bounds in (("diameter_mm", DIAMETERS_MM), ("depth_mm", DEPTHS_MM), ("motion_mm", MOTIONS_MM)):
        values = np.array([j[name] for j in judged])
        edges = (-np.inf, *bounds, np.inf)
        for low, high in pairwise(edges):
            what = f"{name.removesuffix('_mm')} {max(low, 0):g} to {high:g} mm".replace(" to inf mm", " mm and above")
            found.append((what, (values >= low) & (values < high)))
    return [(name, which) for name, which in found if which.any()]


def _coverage(held: np.ndarray) -> list[object]:
    low, high = wilson(int(held.sum()), len(held))
    return [len(held), 100 * float(held.mean()), f"{100 * low:.1f} to {100 * high:.1f}"]


def _verdicts(judged: list[dict]) -> list[list[object]]:
    """What became of the tumours of each verdict."""
    lines = []
    for verdict in TUMOUR_VERDICTS:
        errors = np.array([j["error"] for j in judged if j["verdict"] == verdict])
        if len(errors):
            far = errors > 5.0
            lines.append([verdict.replace("_", " "), len(errors), float(np.median(errors)),
                          float(np.percentile(errors, 90)), int(far.sum()), *_coverage(far)[1:]])  # fmt: skip
    return lines


def wilson(successes: int, number: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share (Wilson 1927)."""
    share = successes / number
    middle = (share + z * z / (2 * number)) / (1 + z * z / number)
    half = z / (1 + z * z / number) * np.sqrt(share * (1 - share) / number + z * z / (4 * number**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def _reliability(judged: list[dict]) -> list[tuple[float, float]]:
    """(stated, found): the share of tumours within the radius that is to hold so many, at every level."""
    held = np.array([j["error"] <= np.asarray(j["radii"]) for j in judged])
    return [(level, float(share)) for level, share in zip(LEVELS, held.mean(axis=0), strict=True)]


def _plots(reliability: list[tuple[float, float]], judged: list[dict], folder: Path, stem: str) -> str:
    """The reliability diagram, and errors against what was stated; the file's name."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2))
    axes[0].plot([0, 1], [0, 1], color="0.7", lw=1)
    axes[0].plot(*zip(*reliability, strict=True), "o-", ms=4)
    axes[0].set(xlabel="stated share within the radius", ylabel="share found", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    for look in ("invisible", "faint", "visible"):
        shown = [j for j in judged if j["in_ct"] == look]
        axes[1].plot([j["p95"] for j in shown], [j["error"] for j in shown], ".", ms=5, label=f"{look} in the CT")
    ends = [min(j["p95"] for j in judged), max(j["p95"] for j in judged)]
    axes[1].plot(ends, ends, color="0.7", lw=1)
    axes[1].set(xscale="log", yscale="log", xlabel="stated p95, mm", ylabel="error of the centroid, mm")
    axes[1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(folder / f"{stem}.png", dpi=80)
    plt.close(figure)
    return f"{stem}.png"


def _visibility(judged: list[dict]) -> list[list[object]]:
    """Share of the visible (contrast-to-noise at least 2) and invisible (0) tumours told right, at the true place and
    where the registration puts them; of the faint ones, the share called visible.
    """
    lines = []
    for place in ("true", "stated"):
        right, faint = [], []
        for j in judged:
            seen = (j["visibility"] or {}).get(place)
            if j["diameter_mm"] < 12 or seen is None:
                continue
            called = abs(seen["cnr"]) >= VISIBLE_CNR
            if 0 < j["true_cnr"] < 2:
                faint.append(called)
            else:
                right.append(called == (j["true_cnr"] >= 2))
        for what, found in (("told right", right), ("faint, called visible", faint)):
            lines.append([f"at the {place} place: {what}", len(found), float(np.mean(found)) if found else np.nan])
    return lines


def _devices(rows: list[dict]) -> str:
    return ", ".join(sorted({row["device"] for row in rows}))


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    run_script(main)
