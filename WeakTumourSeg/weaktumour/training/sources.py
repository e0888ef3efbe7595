"""The anatomies of one training run: which are learnt from, which validate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError
from ..simulation.tissue_maps import TissueMap
from .anatomies import label_maps_in, prepare_anatomies, read_map, read_split
from .config import Data
from .synthesis import Random

# Where there is no splits.json: ours has the same.
_TRAINING_SEEDS = range(100_000, 200_000)
_VALIDATION_SEEDS = range(20)
# How often each kind is drawn: the few whole real torsos are worth more than their number.
_SHARES = {"phantom": 0.3, "liver": 0.5, "torso": 0.2}


class Sources:
    """training, validation: tissue maps, all held in memory (about 5 MB each)."""

    def __init__(self, training: Sequence[TissueMap], validation: Sequence[TissueMap]) -> None:
        self._training, self._validation = list(training), list(validation)
        self._tensors: dict[tuple[str, str], torch.Tensor] = {}
        groups: dict[str, list[TissueMap]] = {}
        for anatomy in self._training:
            groups.setdefault(anatomy.kind, []).append(anatomy)
        self._groups = [groups[kind] for kind in sorted(groups)]
        share = np.array([_SHARES[kind] for kind in sorted(groups)])
        self._shares = share / share.sum()

    @staticmethod
    def of(data: Data, folder: Path) -> Sources:
        """Make or read the maps that the settings name. Raises InputError."""
        cache = Path(data.cache) if data.cache else folder / "anatomies"
        maps: dict[str, dict[str, Path]] = {"train": {}, "development": {}}
        seeds: dict[str, Sequence[int]] = {"train": _TRAINING_SEEDS, "development": _VALIDATION_SEEDS}
        for part in maps:
            names = None
            if data.splits:
                names, seeds[part] = read_split(data.splits, part)
            if data.label_maps and (data.splits or part == "train"):
                maps[part] = label_maps_in(data.label_maps, names)
        phantoms, validating = seeds["train"][: data.phantoms], seeds["development"][: data.validation_phantoms]
        for part, found in (
            ("learn from", (*phantoms, *maps["train"])),
            ("validate on", (*validating, *maps["development"])),
        ):
            if not found:
                raise InputError(f"Configuration: data leaves no anatomy to {part}; give more phantoms or label maps.")

        def report(done: int, of: int) -> None:
            if done % 10 == 0 or done == of:
                print(f"anatomies: {done} of {of} made", flush=True)

        files = prepare_anatomies(cache, phantoms, maps["train"], processes=data.processes, report=report)
        kept = prepare_anatomies(cache, validating, maps["development"], processes=data.processes, report=report)
        return Sources([read_map(f) for f in files], [read_map(f) for f in kept])

    @property
    def anatomies(self) -> tuple[TissueMap, ...]:
        """Those learnt from."""
        return tuple(self._training)

    def counts(self) -> dict[str, int]:
        """How many of each kind are learnt from."""
        kinds = [anatomy.kind for anatomy in self._training]
        return {kind: kinds.count(kind) for kind in sorted(set(kinds))}

    def training(self, random: Random) -> TissueMap:
        group = self._groups[int(random.numbers.choice(len(self._groups), p=self._shares))]
        return group[int(random.numbers.integers(len(group)))]

    def validation(self, number: int) -> TissueMap:
        # In large steps, since phantoms come first and real livers after them.
        count = len(self._validation)
        return self._validation[number * (7 if count % 7 else 1) % count]

    def tensor(self, anatomy: TissueMap, device: torch.device) -> torch.Tensor:
        key = (anatomy.name, str(device))
        if key not in self._tensors:
            self._tensors[key] = torch.from_numpy(anatomy.tissues).to(device)
        return self._tensors[key]
