"""What weak supervision is worth: labels on MRIs alone, CTs of the same simulated patients, cross-validated.

    python Testing/benchmark/weak_supervision.py --keep DIR [--fold K] [--methods LIST] [--scale X] [--page FILE.md]

The patients are `weak_supervision` of splits.json: 24 in 4 folds. Each method learns from three folds' MRIs with their
labels and the same patients' CTs without, and is measured on the CTs of the fourth. sequential, unified and corrected
begin with the UNet of `start` and with the *shipped* MSCGUNet, which `start` also borrows for propagation: that network
has seen more than this cohort. Our UNets' answers are cleaned by `weaktumour.segmentation` as in the product; the
published one's is taken as it is, each structure from a probability of 0.5, as published.

Of each: the liver and the tumours that its UNet finds in the CT, what that UNet claims where the CT shows nothing, and
the MRI's labels as propagated with its networks. To use two cores, start it for two folds that follow each other, then
once without --fold for the table. With --keep, a training that was stopped goes on. Finished figures go to
`Testing/benchmark/weak_supervision` (--rows) and are not made again, so that the experiment can take several sessions.
Where a fold's `start` had to be trained again for a further method, the table says so. --scale multiplies all numbers
of steps; --settings names a JSON file of settings. Figures that were made with other settings are refused; --smoke
keeps to DIR/smoke.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from common import (
    Bar,
    Volume,
    check_page_options,
    markdown_table,
    page_options,
    parser,
    report,
    run_script,
    use_cores,
    work_folder,
    write_page,
)
from weaktumour import models, pipeline
from weaktumour.cases import Case, read_case, write_case
from weaktumour.deformation import Affine
from weaktumour.devices import cpu_computes_in_bfloat16
from weaktumour.errors import InputError
from weaktumour.evaluation.measure import json_ready
from weaktumour.evaluation.methods import engine
from weaktumour.evaluation.metrics import centroid_error_mm, dice, equivalent_diameter_mm, surface_metrics
from weaktumour.labels import components
from weaktumour.models import ModelEntry
from weaktumour.progress import Monitor
from weaktumour.propagation import propagate_labels
from weaktumour.segmentation import NoLiver, segment
from weaktumour.simulation import VERSION, simulate_patient
from weaktumour.training import published
from weaktumour.training.cohort import labels_of, read_cohort
from weaktumour.training.config import Optimisation, parse_config, read_config
from weaktumour.training.weak import run_weak
from weaktumour.training.weak_config import WeakConfig
from weaktumour.volumes import Grid

METHODS = {
    "shipped": "the shipped UNet, no adaptation",
    "start": "a UNet from the cohort's MRIs alone (mode pretrain), no adaptation",
    "published": "the published recipe (mode published), from random weights, smaller than it was: widths 16 to 128 "
    "instead of 32 to 512, 24 x 96 x 96 voxels instead of 32 x 128 x 128; its weights are averaged over the steps",
    "sequential": "ours, in rounds",
    "unified": "ours, both networks in one training",
    "corrected": "ours, in rounds, where a person corrected the CT labels of 4 training patients (here: the truth)",
}
FROM_START = ("start", "sequential", "unified", "corrected")
ROWS = Path(__file__).with_name("weak_supervision")
STAGES = ("pretrain", "adapt", "learn", "unified", "published_unet", "published_joint")
CORRECTED = 4  # patients
# Sized for two cores: hours, not days. At 5 mm a patch is the whole volume: in one try of each, patches of a quarter of
# it at 3 mm taught the UNet no more in about twice the time. The published UNet has our widths and a smaller volume,
# since with its own (32 to 512 channels on 32 x 128 x 128 voxels) a step takes a minute here.
SETTINGS = {
    "computing": {"accelerator": "cpu", "precision": "bf16-mixed" if cpu_computes_in_bfloat16() else "32-true"},
    "reporting": {"validate_every": 1000, "validation_cases": 2},
    "spacing_mm": 5.0,
    "pretrain": {"steps": 1500, "learning_rate": 2e-3},
    "adapt": {"steps": 60},
    "learn": {"steps": 600, "learning_rate": 1e-3},
    "unified": {"steps": 250, "learning_rate": 5e-4},
    "segmenting": {"voxels": 300_000},
    "labelling": {"members": 3},
    "published_unet": {"steps": 1000},
    "published_joint": {"steps": 300},
    "published": {"shape": [24, 96, 96], "network": {"widths": [16, 16, 32, 64, 128], "norm": "batch"}},
}
SMOKE = {
    "reporting": {"validate_every": 1000, "validation_cases": 1},
    "network": {"widths": [4, 8, 8]},
    "spacing_mm": 8.0,
    "registration_network": {"extra_channels": 1, "widths": [4, 8, 8], "nodes": [2, 2, 2], "norm": "instance"},
    "registration_spacing_mm": 10.0,
    "registration_shape": [16, 16, 16],
    "start_registration": None,
    "rounds": 1,
    **{stage: {"steps": 2, "warm_up": 0} for stage in STAGES},
    "segmenting": {"voxels": 8000},
    "labelling": {"stages": "mscgunet", "members": 1},
    "published": {"shape": [16, 32, 32], "network": {"widths": [4, 8], "norm": "batch"}},
}
_FOUND = 0.2  # share of a tumour that has to be covered
_ROUNDING = 0.01  # of how far a training moves a network's weights


def main() -> int:
    arguments = _arguments()
    use_cores(arguments.cores, arguments.fold or 0)
    torch.set_num_threads(arguments.cores)
    methods = _methods(arguments)
    splits = json.loads(Path(__file__).with_name("splits.json").read_text(encoding="utf-8"))["weak_supervision"]
    # The smallest cohort on which every method can be told from a crash: two patients to learn from, one held out.
    seeds = splits["phantoms"][:3] if arguments.smoke else splits["phantoms"]
    count = 3 if arguments.smoke else splits["folds"]
    folds = [0] if arguments.smoke else list(range(count)) if arguments.fold is None else [arguments.fold]
    with work_folder(arguments) as kept:
        work = kept / "smoke" if arguments.smoke else kept  # coarse patients and few steps, under the same names
        work.mkdir(exist_ok=True)
        names = [_name(seed) for seed in seeds]
        parts = [{"train": [n for i, n in enumerate(names) if i % count != k], "test": names[k::count]}
                 for k in range(count)]  # fmt: skip
        _write_whole(work / "folds.json", {"folds": parts})
        parted = [Fold(arguments, work, k, parts[k]) for k in folds]
        if not all(fold.has(method) for fold in parted for method in methods):
            first = folds[0] * len(seeds) // count  # processes for different folds begin with different patients
            for seed in (*seeds[first:], *seeds[:first]):
                _patient(work / "cohort", seed, arguments.smoke)
        rows = [row for fold in parted for method in methods for row in fold.measured(method)]
        return _reported(arguments, work, rows, methods, len(seeds))


def _arguments() -> argparse.Namespace:
    command = parser(__doc__ + "\n" + "\n".join(f"    {name:<12} {what}" for name, what in METHODS.items()))
    command.formatter_class = argparse.RawDescriptionHelpFormatter
    command.add_argument("--methods", default=",".join(METHODS), help="some of the methods, by comma")
    command.add_argument("--fold", type=int, metavar="K", help="this fold alone, from 0 (default: all)")
    command.add_argument("--scale", type=float, default=1.0, help="times the number of steps (default: 1)")
    command.add_argument("--settings", type=Path, help="JSON file with settings of `train weak` to change")
    command.add_argument("--rows", type=Path, default=ROWS, metavar="DIR", help="finished figures (default: beside us)")
    page_options(command)
    arguments = command.parse_args()
    check_page_options(arguments)
    return arguments


def _methods(arguments: argparse.Namespace) -> list[str]:
    methods = [name.strip() for name in arguments.methods.split(",") if name.strip()]
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise models.ModelError(f"--methods: {unknown or 'none'}; choose some of {', '.join(METHODS)}.")
    return methods


def _name(seed: int) -> str:
    return f"v{VERSION}-{seed}"


def _patient(cohort: Path, seed: int, smoke: bool) -> None:
    """A patient's case folder, which is made once."""
    name = _name(seed)
    if not (cohort / name / "case.json").exists():
        coarse = {"ct_spacing_mm": 5.0, "mr_spacing_mm": 5.0, "anatomy_spacing_mm": 2.5} if smoke else {}
        partial = cohort.with_name(f"{name}.{os.getpid()}.partial")
        write_case(partial, simulate_patient(seed, **coarse))
        cohort.mkdir(exist_ok=True)
        try:
            partial.rename(cohort / name)
        except OSError:  # another process, for another fold, was faster
            shutil.rmtree(partial)


def _write_whole(path: Path, content: object) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def settings(arguments: argparse.Namespace) -> WeakConfig:
    """Of every method, before its mode's own."""
    config = parse_config(SETTINGS, WeakConfig)
    if arguments.smoke:
        config = parse_config(SMOKE, WeakConfig, default=config)
    if arguments.settings:
        read_config(arguments.settings, WeakConfig)  # for its refusals
        config = parse_config(json.loads(arguments.settings.read_text(encoding="utf-8")), WeakConfig, default=config)

    def scaled(optimisation: Optimisation) -> Optimisation:
        return replace(optimisation, steps=max(1, round(arguments.scale * optimisation.steps)))

    return replace(config, **{stage: scaled(getattr(config, stage)) for stage in STAGES})


def what_counts(config: WeakConfig) -> dict:
    """What decides the figures; how they are computed, and where files lie, does not."""
    return {name: value for name, value in asdict(config).items() if name not in ("computing", "reporting", "cohort")}


def _code() -> str:
    return engine("training/*.py", "uncertainty/ensemble.py")["code"]


class Fold:
    """One fold: its trainings in FOLD/METHOD, their figures in FOLD/METHOD.json, finished ones in ROWS/FOLD."""

    def __init__(self, arguments: argparse.Namespace, work: Path, number: int, parts: dict[str, list[str]]) -> None:
        self.arguments, self.work, self.number, self.parts = arguments, work, number, parts
        self.folder = work / f"fold-{number}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.rows = (work / "rows" if arguments.smoke else arguments.rows) / self.folder.name
        self.config = settings(arguments)

    def measured(self, method: str) -> list[dict]:
        """One row for each patient held out. Made once. Raises InputError: it was made with other settings."""
        kept = self._kept(method)
        if not kept.exists():
            _write_whole(kept, {"made_with": self._made_with(), "rows": json_ready(self._rows(method))})
        content = json.loads(kept.read_text(encoding="utf-8"))
        former = content.get("made_with") if isinstance(content, dict) else None
        if former != json.loads(json.dumps(self._made_with())):
            which, remedy = "other", "give --scale and --settings as then, or another folder"
            if former is None:
                which, remedy = "unknown", "delete it, and the training that is kept is measured anew"
            raise InputError(f"{kept} was made with {which} settings; {remedy}.")
        if kept.parent != self.rows:
            self.rows.mkdir(parents=True, exist_ok=True)
            _write_whole(self.rows / kept.name, content)
        return content["rows"]

    def has(self, method: str) -> bool:
        """Whether its figures are there already."""
        return self._kept(method).exists()

    def _made_with(self) -> dict:
        return json_ready({"simulator": VERSION, "patients": self.parts["test"], "settings": what_counts(self.config)})

    def _kept(self, method: str) -> Path:
        finished = self.rows / f"{method}.json"
        return finished if finished.exists() else self.folder / f"{method}.json"

    def _rows(self, method: str) -> list[dict]:
        begun = time.monotonic()
        trained = self.train(method)
        seconds = time.monotonic() - begun
        made = {"fold": self.number, "method": method, "training_s": seconds, "code": _code(),
                "precision": self.config.computing.precision, "start": self._start_checksum(method)}  # fmt: skip
        rows = []
        for name in self.parts["test"]:
            row = self.measure(method, trained, read_case(self.work / "cohort" / name))
            rows.append({**made, "patient": name, **row})
            print(f"fold {self.number} {method} {name}: liver Dice {row['liver']:.3f}", flush=True)
        return rows

    # -- training -----------------------------------------------------------------------------------------------
    def train(self, method: str) -> dict[str, ModelEntry]:
        """task -> model."""
        if method == "shipped":
            return {task: models.find(None, task) for task in models.TASKS}
        out, cohort = self.folder / method, self.work / "cohort"
        if method in ("start", "published"):
            mode = "pretrain" if method == "start" else "published"
            config = replace(self.config, start_segmentation=None, start_registration=None)
        else:
            mode = "unified" if method == "unified" else "sequential"
            start = self.start()
            # The start's own network and grid, whatever the settings say of a fresh one.
            config = replace(self.config, start_segmentation=str(start.path), network=None, spacing_mm=None)
            self._share(out / "round-1" / "pairs", self.folder / "pairs")
        if method != "published":
            self._share(out / "cases", self.work / "cases")
        if method == "corrected":
            cohort = self._corrected_cohort()
            self._share_labels(out)
        members = read_cohort(cohort, self.work / "folds.json", self.number)
        print(f"fold {self.number} {method}: training", flush=True)
        made = {path.stem: models.entry_of(path) for path in run_weak(mode, config, out, members)}
        if method == "corrected":
            self._check_shared(out)
        if "registration" not in made and self.config.start_registration is not None:
            made["registration"] = models.find(self.config.start_registration, "registration")
        return made

    def start(self) -> ModelEntry:
        path = self.folder / "start" / "segmentation.pt"
        return models.entry_of(path) if path.exists() else self.train("start")["segmentation"]

    def _start_checksum(self, method: str) -> str | None:
        """Trained again, it need not be the same."""
        path = self.folder / "start" / "segmentation.pt"
        return hashlib.sha256(path.read_bytes()).hexdigest() if method in FROM_START and path.exists() else None

    def _share(self, link: Path, folder: Path) -> None:
        """What comes out the same in several runs is made once: the cases, and pairs found with the same UNet."""
        folder.mkdir(parents=True, exist_ok=True)
        self._link(link, folder)

    def _share_labels(self, out: Path) -> None:
        """The first pseudo-labels of the patients whom nobody corrected are those of `sequential`: the same UNet, the
        same pairs, and MSCGUNet learns nothing from labels.
        """
        made = self.folder / "sequential" / "round-1" / "pseudo_labels"
        for name in set(self.parts["train"]) - set(self._corrected()):
            for part in (".nii.gz", "_confidence.nii.gz", ".json"):  # the last one says that all are there
                if (made / f"{name}.json").exists():
                    self._link(out / "round-1" / "pseudo_labels" / f"{name}{part}", made / f"{name}{part}")

    def _check_shared(self, out: Path) -> None:
        """Raise RuntimeError where MSCGUNet became another one than that of `sequential`, whose labels were shared; on
        another machine it differs by rounding.
        """
        paths = [out / "round-0", out / "round-1", self.folder / "sequential" / "round-1"]
        paths = [path / "registration.pt" for path in paths]
        if all(path.exists() for path in paths):
            begun, one, other = (models.load(models.entry_of(path)).state_dict() for path in paths)
            if _apart(one, other) > _ROUNDING * _apart(one, begun):
                raise RuntimeError(f"{out} has the pseudo-labels of another MSCGUNet; delete {self.folder}.")

    def _link(self, link: Path, target: Path) -> None:
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=target.is_dir())

    def _corrected(self) -> list[str]:
        return self.parts["train"][: 1 if self.arguments.smoke else CORRECTED]

    def _corrected_cohort(self) -> Path:
        """The cohort, some of whose training patients have CT labels that count as corrected."""
        folder = self.folder / "cohort-corrected"
        corrected = self._corrected()
        for source in sorted((self.work / "cohort").iterdir()):
            target = folder / source.name
            target.mkdir(parents=True, exist_ok=True)
            for file in source.iterdir():
                if file.name != "case.json" and not (target / file.name).exists():
                    (target / file.name).symlink_to(os.path.relpath(file, target))
            content = json.loads((source / "case.json").read_text(encoding="utf-8"))
            if source.name in corrected:
                content |= {"ct_labels": "corrected"}
            (target / "case.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
        return folder

    # -- figures ------------------------------------------------------------------------------------------------
    def measure(self, method: str, trained: dict[str, ModelEntry], case: Case) -> dict:
        if method == "published":
            unet, mscgunet = (models.load(trained[task]) for task in ("segmentation", "registration"))
            shape = tuple(self.config.published.shape)
            found = published.segment_ct(unet, case.ct, shape)
            carried = published.propagate(mscgunet, case, shape)
        else:
            found = segmented(case.ct, trained["segmentation"])
            carried = propagated(case, trained, self.config)
        return {**unet_figures(found, case), "propagated": propagated_figures(carried, case)}


def _apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Euclidean distance of two networks' weights."""
    return sum(float((one[name] - other[name]).float().square().sum()) for name in one) ** 0.5


def segmented(ct: Volume, entry: ModelEntry) -> Volume:
    """uint8 classes on the CT's grid, as `weaktumour segment` finds them."""
    try:
        labels = segment(ct, "ct", entry, torch.device("cpu"), Monitor()).labels_on(ct.grid)
    except NoLiver:
        return Volume(np.zeros(ct.grid.shape, dtype=np.uint8), ct.grid)
    return Volume(np.minimum(labels.volume.array, 2).astype(np.uint8), ct.grid)


def propagated(case: Case, trained: dict[str, ModelEntry], config: WeakConfig) -> Volume:
    """The MRI's labels on the CT, as `weaktumour register` carries them with these networks; none where it refuses."""
    device, monitor = torch.device("cpu"), Monitor()
    inputs = pipeline.Inputs(case.mr, case.ct, labels_of(case), None, Affine.identity())
    inputs = pipeline.find_livers(inputs, trained["segmentation"], device, monitor)
    networks = pipeline.Networks(trained.get("registration"), trained["segmentation"])
    stages = tuple(config.labelling.stages.split(","))
    preset = pipeline.PRESETS[config.labelling.preset]
    try:
        found = pipeline.register(inputs, networks, stages, preset, device=device, monitor=monitor)
    except InputError as refusal:
        print(f"not registered: {refusal}", flush=True)
        return Volume(np.zeros(case.ct.grid.shape, dtype=np.uint8), case.ct.grid)
    return propagate_labels(
        inputs.labels, pipeline.in_world(found.transform, inputs), case.ct.grid, monitor
    ).labels.volume


def unet_figures(found: Volume, case: Case) -> dict:
    """liver: Dice. tumours: of each true one its look in the CT and the share that the UNet calls tumour.

    false: volumes (ml) of the claimed tumours that lie on none that the CT shows at all (visible or faint).
    """
    truth, looks = case.ct_labels.array, looks_of(case)
    whole = found.array > 0, truth > 0
    claimed = found.array == 2
    tumours = [
        {
            "look": look,
            "diameter_mm": equivalent_diameter_mm(truth == value, case.ct.grid),
            "covered": float(claimed[truth == value].mean()),
        }
        for value, look in looks.items()
        if (truth == value).any()
    ]
    shown = np.isin(truth, [value for value, look in looks.items() if look != "invisible"])
    false = [part["volume_mm3"] / 1e3 for part in false_parts(claimed, shown, case.ct.grid)]
    distances = surface_metrics(*whole, case.ct.grid.spacing)
    return {"liver": dice(*whole), "liver_hd95_mm": distances["hd95_mm"], "tumours": tumours, "false": false}


def false_parts(claimed: np.ndarray, shown: np.ndarray, grid: Grid) -> list[dict]:
    """Connected parts of a claim that touch nothing that is shown."""
    import SimpleITK as sitk

    parts = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(claimed.astype(np.uint8)), True))
    true = np.unique(parts[shown])
    return components(claimed & ~np.isin(parts, true[true > 0]), grid)


def looks_of(case: Case) -> dict[int, str]:
    """value -> visible, faint or invisible in the CT, as the simulator drew it."""
    return {2 + i: str(look) for i, look in enumerate(case.info["simulation"]["tumours_in_ct"])}


def propagated_figures(carried: Volume, case: Case) -> dict:
    truth, grid = case.ct_labels.array, case.ct.grid
    tumours = []
    for value, look in looks_of(case).items():
        if (truth == value).any():
            masks = carried.array == value, truth == value
            error = centroid_error_mm(*masks, grid)
            tumours.append({"look": look, "dice": dice(*masks), "centroid_error_mm": error})
    return {"liver": dice(carried.array > 0, truth > 0), "tumours": tumours}


OF_UNET = {
    "patients": "patients",
    "liver Dice, mean": "liver mean",
    "median": "liver median",
    "worst": "liver worst",
    "HD95, median mm": "liver HD95",
    "tumours found, visible": "found visible",
    "faint": "found faint",
    "invisible": "found invisible",
    "false claims a patient": "false a patient",
    "ml a patient": "false ml a patient",
}
OF_PROPAGATION = {
    "liver Dice, mean": "propagated liver",
    "invisible tumours": "invisible",
    "centroid error, median mm": "centroid median",
    "p90 mm": "centroid p90",
    "Dice, mean": "tumour Dice",
}


# -- the tables ------------------------------------------------------------------------------------------------------
def _reported(arguments: argparse.Namespace, work: Path, rows: list[dict], methods: list[str], patients: int) -> int:
    by_method = {method: [row for row in rows if row["method"] == method] for method in methods}
    figures = {method: summary(found) for method, found in by_method.items()}
    tables = [
        markdown_table([head, *columns], [[m, *(s[key] for key in columns.values())] for m, s in figures.items()])
        for head, columns in (("CT UNet", OF_UNET), ("propagated from the MRI", OF_PROPAGATION))
    ]
    bars = []
    if {"published", "sequential", "unified"} <= set(methods):
        for method in ("sequential", "unified"):
            gain = figures[method]["liver mean"] - figures["published"]["liver mean"]
            bars.append(Bar(f"CT liver Dice, {method} above the published recipe", gain, 0.1))
            claims = figures[method]["false a patient"]
            bars.append(Bar(f"false tumour claims a patient, {method}", claims, 0.5, at_least=False))
    folds = sorted({row["fold"] for row in rows})
    data = (
        f"{patients} simulated patients (weak_supervision of splits.json, simulator {VERSION}), folds {folds} held "
        f"out, steps times {arguments.scale:g}; code {made_by(rows)}"
    )
    if apart := started_apart(rows):
        data += f"; in folds {apart} not all methods began with the same training of `start`"
    if arguments.page:
        introduction = [
            f"`python Testing/benchmark/weak_supervision.py`: {data}.",
            "Simulated MR and CT: what holds for them need not hold for patients.",
            "\n".join(f"- {name}: {METHODS[name]}" for name in methods),
        ]
        write_page(arguments, "What weak supervision is worth", introduction, bars, tables)
    return report(arguments, "Weak supervision", data, tables, {"methods": figures, "cases": rows}, bars)


def started_apart(rows: list[dict]) -> list[int]:
    """Folds in which not all methods began with the same training of `start`."""
    starts = {(row["fold"], row["start"]) for row in rows if row.get("start")}
    return sorted(fold for fold, count in Counter(fold for fold, _start in starts).items() if count > 1)


def made_by(rows: list[dict]) -> str:
    """The checksums of the code that made them; with several, of which methods and folds."""
    codes = sorted({row["code"] for row in rows})
    if len(codes) == 1:
        return codes[0]
    parts = []
    for code in codes:
        made = {method: sorted({r["fold"] for r in rows if (r["code"], r["method"]) == (code, method)})
                for method in METHODS}  # fmt: skip
        told = ", ".join(f"{method} {' '.join(map(str, folds))}" for method, folds in made.items() if folds)
        parts.append(f"{code} ({told})")
    return "; ".join(parts)


def summary(rows: list[dict]) -> dict:
    livers = np.array([row["liver"] for row in rows])
    surfaces = [np.inf if row["liver_hd95_mm"] is None else row["liver_hd95_mm"] for row in rows]
    tumours = [tumour for row in rows for tumour in row["tumours"]]
    carried = [tumour for row in rows for tumour in row["propagated"]["tumours"] if tumour["look"] == "invisible"]
    # A tumour that was not carried at all has no centroid: it counts as far away.
    errors = np.array([np.inf if t["centroid_error_mm"] is None else t["centroid_error_mm"] for t in carried])

    def found(look: str) -> str:
        hits = [tumour["covered"] >= _FOUND for tumour in tumours if tumour["look"] == look]
        return f"{sum(hits)} of {len(hits)}"

    return {
        "patients": len(rows),
        "liver mean": livers.mean(),
        "liver median": np.median(livers),
        "liver worst": livers.min(),
        "liver HD95": float(np.median(surfaces)),
        **{f"found {look}": found(look) for look in ("visible", "faint", "invisible")},
        "false a patient": float(np.mean([len(row["false"]) for row in rows])),
        "false ml a patient": float(np.mean([sum(row["false"]) for row in rows])),
        "propagated liver": float(np.mean([row["propagated"]["liver"] for row in rows])),
        "invisible": len(carried),
        "centroid median": float(np.median(errors)) if carried else None,
        "centroid p90": float(np.percentile(errors, 90, method="higher")) if carried else None,
        "tumour Dice": float(np.mean([t["dice"] for t in carried])) if carried else None,
    }


if __name__ == "__main__":
    run_script(main)
