"""What the evidence meant before: from features to a distance that holds the true place in 95 of 100 cases.

Two steps, both fitted on simulated patients with known truth (`Testing/benchmark/trust.py --fit`) and kept as plain
numbers beside the networks' weights, for which alone they hold:

1. A linear model gives each tumour the middle of the logarithm of its error, one model for each of the `CASES` and all
   of them fitted together; a second one how wide it scatters about that; a third one, of whether the pair was a sound
   one or spoiled on purpose (another patient's CT, a mirrored MRI, half a liver), its doubt.
2. How many widths the logarithm of the true error lies off the middle, over patients that the models did not learn from
   (cross-fitting), has a median and a 95th percentile, with the finite-sample correction of split conformal prediction
   (Papadopoulos et al. 2002; Lei et al., JASA 2018, with their locally weighted score), for tumours that come several
   to a patient (Dunn et al., JASA 2023; Lee et al., arXiv 2306.06342). p50 and p95 lie so many widths off. What these
   authors prove is for patients of one kind and a model fitted to others than the scores are of; with cross-fitting it
   holds about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import ModelError

SCHEMA = 2
FILE = "uncertainty.json"
# What there is to go by: the CT shows the tumour; else MRI and CT can be compared by the vessels; else neither.
CASES = ("seen", "vessels", "neither")
DERIVED = ("seen_elsewhere",)
LEVELS = tuple(round(0.05 * n, 2) for n in range(1, 20))
Features = Mapping[str, float]


@dataclass(frozen=True)
class Term:
    """One feature of a linear model: (value - mean) / sd, held to low..high, times weight.

    missing: the value that stands for one that cannot be known; it speaks for a large error.
    """

    name: str
    mean: float
    sd: float
    low: float
    high: float
    missing: float
    weight: float

    def of(self, features: Features) -> float:
        value = float(features.get(self.name, np.nan))
        value = self.missing if not np.isfinite(value) else value
        return self.weight * (min(max(value, self.low), self.high) - self.mean) / self.sd


@dataclass(frozen=True)
class Linear:
    constant: float
    terms: tuple[Term, ...]

    def __call__(self, features: Features) -> float:
        features = derived(features)
        return self.constant + sum(term.of(features) for term in self.terms)


def derived(features: Features) -> dict[str, float]:
    """And those that are made of others: a tumour seen far from where the ensemble has it may be something else."""
    return {**features, "seen_elsewhere": features.get("seen", np.nan) * max(features.get("wander", np.nan), 0.0)}


def case_of(features: Features) -> str:
    """One of CASES."""
    if features.get("seen", 0.0) > 0.5:
        return "seen"
    return "vessels" if np.isfinite(features.get("vessels", np.nan)) else "neither"


@dataclass(frozen=True)
class ErrorModel:
    """Of the logarithm of the error in mm. middle: by case. width: logarithm of its scatter, relative."""

    middle: dict[str, Linear]
    width: Linear

    def __call__(self, features: Features) -> tuple[float, float]:
        """Middle and width."""
        return self.middle[case_of(features)](features), float(np.exp(self.width(features)))


@dataclass(frozen=True)
class Calibration:
    """doubt: log odds that the pair is not sound; above `doubtful` no place is stated. scores: how many widths off the
    middle the logarithm of the error lies, quantiles at LEVELS. models: SHA-256 of the networks by task. simulator:
    version of the patients. data: in words.
    """

    error: ErrorModel
    doubt: Linear
    doubtful: float
    scores: tuple[float, ...]
    models: dict[str, str]
    simulator: int
    data: str

    def radius_mm(self, features: Features) -> tuple[float, float]:
        """p50 and p95 of the distance between true and stated centroid, mm."""
        return self.radius_at(features, 0.5), self.radius_at(features, 0.95)

    def radius_at(self, features: Features, level: float) -> float:
        """mm; the radius that is to hold so large a share; level: one of LEVELS."""
        middle, width = self.error(features)
        return float(np.exp(middle + width * self.scores[LEVELS.index(level)]))

    def is_doubtful(self, features: Features) -> bool:
        return self.doubt(features) > self.doubtful

    @property
    def sha256(self) -> str:
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> str:
        """As `read` takes it."""
        return json.dumps({"schema": SCHEMA, "sha256": self.sha256, "calibration": asdict(self)}, indent=1) + "\n"

    @staticmethod
    def read(path: str | Path) -> Calibration:
        """Raises ModelError: missing, damaged, or of another form."""
        path = Path(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            inner = content["calibration"]
            whole = sha256(json.dumps(inner, sort_keys=True).encode()).hexdigest() == content["sha256"]
            if content["schema"] != SCHEMA or not whole:
                raise ValueError("its checksum or schema is not right")
            middle = {case: _linear(inner["error"]["middle"][case]) for case in CASES}
            error = ErrorModel(middle, _linear(inner["error"]["width"]))
            rest = {name: inner[name] for name in inner if name not in ("error", "doubt", "scores")}
            return Calibration(error, _linear(inner["doubt"]), scores=tuple(inner["scores"]), **rest)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"Calibration: {path.name} cannot be used ({error}); restore the file or run with --uncertainty off."
            ) from error


def _linear(content: dict) -> Linear:
    return Linear(content["constant"], tuple(Term(**term) for term in content["terms"]))


# -- fitting --------------------------------------------------------------------------------------------------------
def fit(
    sound: Sequence[tuple[str, Features, float]],
    spoiled: Sequence[tuple[str, Features]],
    names: Sequence[str],
    *,
    doubt_names: Sequence[str] | None = None,
    models: dict[str, str],
    simulator: int,
    data: str,
    folds: int = 10,
    seed: int = 0,
) -> Calibration:
    """sound: (patient, features, error mm) of each tumour; spoiled: (patient, features), pairs that are not sound.

    names: of the features that the error is told from; doubt_names: those for the doubt, the same by default. Patients
    stay together in the folds. Raises ValueError where there is too little to fit.
    """
    if len({patient for patient, _, _ in sound}) < folds or not spoiled:
        raise ValueError(f"a calibration needs tumours of {folds} patients and some spoiled pairs")
    doubt, doubtful = fit_doubt(sound, spoiled, doubt_names or names)
    found = cross_fitted(sound, names, folds, seed)
    scores = tuple(conformal_quantile(found.scores, found.patients, level) for level in LEVELS)
    return Calibration(fit_error(sound, names), doubt, doubtful, scores, dict(models), simulator, data)


class CrossFitted(NamedTuple):
    """(n,) each, in the order of the tumours. middle, width: of a model that has not seen the tumour's patient."""

    log_error: np.ndarray
    middle: np.ndarray
    width: np.ndarray
    patients: np.ndarray

    @property
    def scores(self) -> np.ndarray:
        return (self.log_error - self.middle) / self.width


def cross_fitted(
    sound: Sequence[tuple[str, Features, float]], names: Sequence[str], folds: int, seed: int
) -> CrossFitted:
    """sound: (patient, features, error mm) of each tumour. Patients stay together."""
    fold = _folds([patient for patient, *_ in sound], folds, seed)
    told = np.empty((len(sound), 2))
    for number in range(folds):
        model = fit_error([entry for entry, own in zip(sound, fold, strict=True) if own != number], names)
        for i in np.flatnonzero(fold == number):
            told[i] = model(sound[i][1])
    return CrossFitted(_logarithms(sound), *told.T, np.array([patient for patient, *_ in sound]))


def _folds(patients: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """(n,) number of each tumour's fold."""
    known, index = np.unique(patients, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(known)) % folds)[index]


def _logarithms(sound: Sequence[tuple[str, Features, float]]) -> np.ndarray:
    return np.log(np.maximum([error for *_, error in sound], _SMALLEST_ERROR_MM))


def conformal_quantile(scores: np.ndarray, patients: np.ndarray, level: float) -> float:
    """The smallest score that a new patient's tumour does not exceed with a chance of `level`; the largest where there
    are too few patients.

    A patient's tumours are right or wrong together, so the patients are what is exchangeable: each weighs 1 / (K + 1),
    shared among its tumours, and what is left of 1 lies beyond all of them. patients: (n,) any names.
    """
    _, index, tumours = np.unique(patients, return_inverse=True, return_counts=True)
    weight = 1.0 / ((len(tumours) + 1) * tumours[index])
    order = np.argsort(scores, kind="stable")
    below = np.cumsum(weight[order])
    reached = np.flatnonzero(below >= level - 1e-9)
    return float(scores[order][reached[0] if len(reached) else -1])


_SMALLEST_ERROR_MM = 0.1
# In numbers of tumours: how strongly weights are drawn to 0, and those of a case to those of all. From 10 to 100 the
# cross-fitted p95 hardly differs.
_RIDGE = 100.0
_RIDGE_OF_A_CONSTANT = 1.0  # each case has its own, all but free
# Of the width: with less it follows chance, and p95 grows for nothing.
_RIDGE_OF_THE_WIDTH = 1500.0
_LEAST_RESIDUAL = 0.05
_RIDGE_OF_DOUBT = 3.0


def fit_error(sound: Sequence[tuple[str, Features, float]], names: Sequence[str]) -> ErrorModel:
    """Ridge regressions: of log(error), then of the logarithm of how far off that was for patients left out of it."""
    fold = _folds([patient for patient, *_ in sound], 5, 0)
    residuals = _logarithms(sound)
    for number in range(5):
        middle = fit_middle([entry for entry, own in zip(sound, fold, strict=True) if own != number], names)
        for i in np.flatnonzero(fold == number):
            features = sound[i][1]
            residuals[i] -= middle[case_of(features)](features)
    target = np.log(np.maximum(np.abs(residuals), _LEAST_RESIDUAL))
    terms, design = _design([features for _, features, _ in sound], names, bad=target)
    penalty = _RIDGE_OF_THE_WIDTH * np.eye(len(names))
    weights = np.linalg.solve(design.T @ design + penalty, design.T @ (target - target.mean()))
    return ErrorModel(fit_middle(sound, names), Linear(0.0, _weighted(terms, weights)))


def fit_middle(sound: Sequence[tuple[str, Features, float]], names: Sequence[str]) -> dict[str, Linear]:
    """Of log(error), by case. Weights are those of all cases plus those by which the case differs, which stay near 0
    where it has few tumours.
    """
    target = _logarithms(sound)
    terms, design = _design([features for _, features, _ in sound], names, bad=target)
    cases = np.array([case_of(features) for _, features, _ in sound])
    columns, penalty = [design], [np.full(len(names), _RIDGE)]
    for case in CASES:
        member = (cases == case)[:, None].astype(float)
        columns += [member, design * member]
        penalty += [[_RIDGE_OF_A_CONSTANT], np.full(len(names), _RIDGE)]
    whole = np.hstack(columns)
    mean = float(target.mean())
    found = np.linalg.solve(whole.T @ whole + np.diag(np.concatenate(penalty)), whole.T @ (target - mean))
    common, *of_cases = np.split(found, [len(names) + i * (len(names) + 1) for i in range(len(CASES))])
    return {
        case: Linear(mean + float(own[0]), _weighted(terms, common + own[1:]))
        for case, own in zip(CASES, of_cases, strict=True)
    }


def fit_doubt(
    sound: Sequence[tuple[str, Features, float]], spoiled: Sequence[tuple[str, Features]], names: Sequence[str]
) -> tuple[Linear, float]:
    """Logistic regression of sound (0) against spoiled (1), both classes weighing alike; and the threshold: halfway
    between the highest but two per cent of the sound ones and the lowest spoiled one, or the latter where they cross.
    """
    features = [f for _, f, _ in sound] + [f for _, f in spoiled]
    bad = np.r_[np.zeros(len(sound)), np.ones(len(spoiled))]
    weight = np.where(bad > 0, 0.5 / len(spoiled), 0.5 / len(sound)) * len(bad)
    terms, design = _design(features, names, bad)
    design = np.c_[design, np.ones(len(bad))]
    coefficients, penalty = np.zeros(design.shape[1]), np.diag([*[_RIDGE_OF_DOUBT] * len(names), 1e-6])
    for _ in range(50):  # Newton's method
        chance = 1 / (1 + np.exp(-np.clip(design @ coefficients, -30, 30)))
        gradient = design.T @ (weight * (chance - bad)) + penalty @ coefficients
        hessian = (design * (weight * chance * (1 - chance))[:, None]).T @ design + penalty
        step = np.linalg.solve(hessian, gradient)
        coefficients -= step
        if np.abs(step).max() < 1e-8:
            break
    values = design @ coefficients
    highest_sound, lowest_spoiled = np.quantile(values[bad == 0], 0.98), values[bad == 1].min()
    doubtful = 0.5 * (highest_sound + lowest_spoiled) if lowest_spoiled > highest_sound else lowest_spoiled - 1e-6
    return Linear(float(coefficients[-1]), _weighted(terms, coefficients[:-1])), float(doubtful)


def _design(features: Sequence[Features], names: Sequence[str], bad: np.ndarray) -> tuple[list[Term], np.ndarray]:
    """Standardised columns held to what was seen, (n, names). bad: larger where things are worse."""
    features = [derived(f) for f in features]
    terms, columns = [], []
    for name in names:
        values = np.array([float(f.get(name, np.nan)) for f in features])
        known = np.isfinite(values)
        if known.sum() < 3:
            raise ValueError(f"the feature {name} is hardly ever known")
        mean, sd = float(values[known].mean()), float(max(values[known].std(), 1e-6))
        low, high = (float(v) for v in np.percentile(values[known], (0.5, 99.5)))
        towards = float(((values[known] - mean) * (bad[known] - bad[known].mean())).mean())
        missing = float(np.percentile(values[known], 90 if towards >= 0 else 10))
        term = Term(name, mean, sd, low, high, missing, 1.0)
        terms.append(term)
        columns.append([term.of(f) for f in features])
    return terms, np.asarray(columns).T


def _weighted(terms: Sequence[Term], weights: np.ndarray) -> tuple[Term, ...]:
    return tuple(Term(**{**asdict(term), "weight": float(weight)}) for term, weight in zip(terms, weights, strict=True))
