"""The label scheme: which value is liver, which is a tumour, what they are called, and where their boundaries lie.

Label maps hold 0 background, 1 liver parenchyma, 2 and above one tumour each. Other schemes are mapped by the user
("5=liver,7=tumour"), never guessed; values that the map does not name are *other*.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .errors import InputError
from .volumes import Grid, Volume, read_volume

LIVER, TUMOUR, OTHER = "liver", "tumour", "other"

_TERMINOLOGY = {
    LIVER: {
        "category": {"scheme": "SCT", "value": "123037004", "meaning": "Anatomical Structure"},
        "type": {"scheme": "SCT", "value": "10200004", "meaning": "Liver"},
    },
    TUMOUR: {
        "category": {"scheme": "SCT", "value": "49755003", "meaning": "Morphologically Altered Structure"},
        "type": {"scheme": "SCT", "value": "4147007", "meaning": "Mass"},
    },
    OTHER: {
        "category": {"scheme": "SCT", "value": "85756007", "meaning": "Tissue"},
        "type": {"scheme": "SCT", "value": "85756007", "meaning": "Tissue"},
    },
}
_LIVER_COLOUR = (221, 130, 101)
_TUMOUR_COLOURS = ((240, 200, 40), (60, 170, 230), (220, 90, 200), (110, 210, 90), (245, 130, 50), (140, 120, 240))
_OTHER_COLOUR = (128, 174, 128)


@dataclass(frozen=True)
class Label:
    """One value of a label map; colour is RGB, 0 to 255."""

    value: int
    name: str
    role: str

    @property
    def colour(self) -> tuple[int, int, int]:
        if self.role == TUMOUR:
            return _TUMOUR_COLOURS[(self.value - 2) % len(_TUMOUR_COLOURS)]
        return _LIVER_COLOUR if self.role == LIVER else _OTHER_COLOUR

    def to_json(self) -> dict[str, object]:
        return {
            "value": self.value,
            "name": self.name,
            "role": self.role,
            "colour": list(self.colour),
            "terminology": _TERMINOLOGY[self.role],
        }


@dataclass(frozen=True)
class LabelMap:
    """A label volume with the meaning of its values (ascending, background left out)."""

    volume: Volume
    labels: tuple[Label, ...]

    def of_role(self, role: str) -> tuple[Label, ...]:
        return tuple(label for label in self.labels if label.role == role)

    @property
    def tumours(self) -> tuple[Label, ...]:
        return self.of_role(TUMOUR)

    def mask(self, *roles: str) -> np.ndarray:
        """(z, y, x) bool: all voxels of these roles. Whole liver is `mask(LIVER, TUMOUR)`."""
        values = [label.value for label in self.labels if label.role in roles]
        return np.isin(self.volume.array, values)

    def whole_liver(self) -> Volume:
        """Liver parenchyma and all tumours as a mask."""
        return Volume(self.mask(LIVER, TUMOUR), self.volume.grid)


def parse_label_map(text: str | None) -> dict[int, str] | None:
    """'5=liver,7=tumour' -> {5: 'liver', 7: 'tumour'}; None stays None (the default scheme).

    Raises InputError for anything else.
    """
    if text is None or not text.strip():
        return None
    roles: dict[int, str] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*=\s*(liver|tumour|tumor)\s*", part, flags=re.IGNORECASE)
        if not match or int(match[1]) == 0:
            raise InputError(
                f'Label map: "{part.strip()}" is not VALUE=liver or VALUE=tumour; write for example "5=liver,7=tumour".'
            )
        value = int(match[1])
        if value in roles:
            raise InputError(f"Label map: value {value} is given twice; name each value once.")
        roles[value] = LIVER if match[2].lower() == "liver" else TUMOUR
    return roles


def name_labels(
    values: list[int], roles: dict[int, str] | None, names: dict[int, str] | None = None
) -> tuple[Label, ...]:
    """The labels of these values under a mapping or, without one, the default scheme (1 liver, 2 and above tumours)."""
    names = names or {}
    labels, tumours = [], 0
    for value in sorted(values):
        role = (LIVER if value == 1 else TUMOUR) if roles is None else roles.get(value, OTHER)
        tumours += role == TUMOUR
        default = {LIVER: "Liver", TUMOUR: f"Tumour {tumours}", OTHER: f"Other {value}"}[role]
        labels.append(Label(value, names.get(value, default), role))
    return tuple(labels)


def read_labels(path: str | Path, what: str, roles: dict[int, str] | None = None) -> LabelMap:
    """Read a label map and, where it lies beside, its labels.json.

    Raises InputError (unreadable, empty, no whole numbers).
    """
    try:
        volume = read_volume(path, what)
    except InputError as error:
        if "every voxel has the value" in str(error):
            raise InputError(
                f"{what}: the label map is empty (one value everywhere); give a map with the liver and its tumours."
            ) from error
        raise
    array = volume.array
    if array.dtype.kind == "f" and not np.array_equal(array, np.round(array)):
        raise InputError(
            f"{what}: the voxels are not whole numbers; give a label map, not an image or a probability map."
        )
    if array.min() < 0 or array.max() > 65535:
        raise InputError(
            f"{what}: label values must lie between 0 and 65535, "
            f"found {array.min():g} to {array.max():g}; renumber them."
        )
    array = array.astype(np.uint8 if array.max() < 256 else np.uint16)
    values = [int(value) for value in np.unique(array) if value]
    if len(values) > 256:
        raise InputError(
            f"{what}: {len(values)} different values are not a label map; give the segmentation, not the image."
        )
    if roles is not None:
        absent = sorted(set(roles) - set(values))
        if absent:
            raise InputError(
                f"{what}: the label map names value {absent[0]}, which does not occur "
                f"(found {values}); correct the mapping."
            )
    names = read_label_names(Path(path).parent / "labels.json") if not Path(path).is_dir() else {}
    return LabelMap(Volume(array, volume.grid), name_labels(values, roles, names))


def write_labels_json(path: str | Path, labels: tuple[Label, ...] | dict[int, str]) -> None:
    """Names, colours and terminology beside a label map; a plain {value: name} means the default scheme."""
    if isinstance(labels, dict):
        labels = name_labels(list(labels), None, labels)
    Path(path).write_text(
        json.dumps({"schema": 1, "labels": [label.to_json() for label in labels]}, indent=2) + "\n", encoding="utf-8"
    )


def read_label_names(path: str | Path) -> dict[int, str]:
    """{value: name} from labels.json; empty where there is none or it is not ours."""
    return _of_each_label(path, "name")


def read_label_roles(path: str | Path) -> dict[int, str]:
    """{value: liver, tumour or other} from labels.json; empty where there is none or it is not ours."""
    return _of_each_label(path, "role")


def _of_each_label(path: str | Path, what: str) -> dict[int, str]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return {int(entry["value"]): str(entry[what]) for entry in content["labels"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def components(mask: np.ndarray, grid: Grid, smallest_voxels: int = 1) -> list[dict[str, object]]:
    """Connected parts (26-neighbourhood), largest first: voxels, volume_mm3, centroid_lps_mm, diameter_mm."""
    if not mask.any():
        return []
    index = np.argwhere(mask)
    low, high = index.min(0), index.max(0) + 1
    part = np.ascontiguousarray(mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])
    found = sitk.GetArrayFromImage(sitk.ConnectedComponent(sitk.GetImageFromArray(part.astype(np.uint8)), True))
    result = []
    for number in range(1, int(found.max()) + 1):
        voxels = np.argwhere(found == number) + low
        if len(voxels) < smallest_voxels:
            continue
        volume = len(voxels) * grid.voxel_volume_mm3
        result.append(
            {
                "voxels": len(voxels),
                "volume_mm3": volume,
                "centroid_lps_mm": grid.index_to_world(voxels[:, ::-1].mean(0)).tolist(),
                "diameter_mm": equivalent_diameter(volume),
            }
        )
    return sorted(result, key=lambda entry: -entry["voxels"])


def equivalent_diameter(volume_mm3: float) -> float:
    """Diameter in mm of the sphere with this volume."""
    return float((6 * volume_mm3 / np.pi) ** (1 / 3))


def boundary_level_set(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """A smooth function, negative inside, whose trilinear zero surface encloses the volume of the mask.

    mask: (z, y, x) bool with a background border. spacing: (x, y, z) mm. Returns float32 (z, y, x), about mm.

    Shape-based interpolation (Raya and Udupa 1990): distance to the nearest voxel inside minus distance to the nearest
    outside, so that the surface between thick slices is a slope and not a stair. Averaging flattens small objects;
    the level is therefore shifted until the enclosed volume, counted on a finer lattice, is that of the mask.
    """
    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing)

    def distance(of: sitk.Image) -> np.ndarray:
        # Squared Maurer distance from each voxel to the nearest voxel centre of the object.
        return sitk.GetArrayFromImage(sitk.SignedMaurerDistanceMap(of, False, False, True))

    outside = np.maximum(distance(image), 0.0)
    inside = np.maximum(distance(sitk.Equal(image, 0)), 0.0)
    level = (outside - inside).astype(np.float32)
    return level - np.float32(_volume_preserving_level(level, mask, spacing))


def _volume_preserving_level(level: np.ndarray, mask: np.ndarray, spacing: tuple[float, float, float]) -> float:
    """The value c for which {trilinear(level) < c} has the volume of the mask."""
    finest = min(spacing)
    factor = [int(np.clip(round(s / finest * (2 if mask.sum() < 20000 else 1)), 1, 8)) for s in spacing]
    image = sitk.GetImageFromArray(level)
    size = [n * f for n, f in zip(image.GetSize(), factor, strict=True)]
    fine = sitk.Resample(
        image,
        size,
        sitk.Transform(3, sitk.sitkIdentity),
        sitk.sitkLinear,
        [(-0.5 + 0.5 / f) for f in factor],  # centres of the sub-voxels
        [1 / f for f in factor],
        image.GetDirection(),
        float(level.max()),
        sitk.sitkFloat32,
    )
    values = sitk.GetArrayViewFromImage(fine).ravel()
    wanted = min(int(mask.sum()) * int(np.prod(factor)), values.size - 1)
    # At most half the coarsest spacing: beyond it the level would no longer be this object's boundary.
    limit = 0.5 * max(spacing)
    return float(np.clip(np.partition(values, wanted)[wanted], -limit, limit))
