"""The container of the abdomen: skin, fat, muscle wall, diaphragm, lungs, heart, spine, ribs and pelvis.

The origin lies between the first and the second lumbar vertebra, near the centre of the trunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .shapes import (
    Canvas,
    Profile,
    Region,
    capsule,
    ellipse,
    ellipsoid,
    random_stream,
    smooth_curve,
    smooth_max,
    smooth_min,
)
from .vessels import vessel_tree

Paint = Callable[[Region, np.ndarray, str], None]
DIAPHRAGM_MM = 3.0
EFFUSION_SHARE = 0.12  # of the patients

# Centres of the vertebral bodies, T5 to S2, and their height with the disc below, mm.
_VERTEBRAE = {
    "T5": (230, 26), "T6": (204, 26), "T7": (178, 26), "T8": (152, 26), "T9": (125, 27), "T10": (98, 28),
    "T11": (70, 29), "T12": (41, 30), "L1": (10, 32), "L2": (-23, 33), "L3": (-57, 34), "L4": (-91, 34),
    "L5": (-125, 34), "S1": (-158, 32), "S2": (-188, 28), "S3": (-214, 24),
}  # fmt: skip


@dataclass(frozen=True)
class Body:
    """One patient's build. All lengths in mm; the spread over seeds is that of ordinary adults."""

    seed: int
    width: Profile = field(init=False)
    depth_front: Profile = field(init=False)
    depth_back: Profile = field(init=False)
    fat: Profile = field(init=False)
    spine_y: Profile = field(init=False)
    fat_front: float = field(init=False)
    asymmetry: np.ndarray = field(init=False)
    dome_right: np.ndarray = field(init=False)
    dome_left: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        rng = random_stream(self.seed, "body")
        size = rng.uniform(0.95, 1.04)
        girth = rng.uniform(0.94, 1.05)
        waist = rng.uniform(-6, 5)
        levels = [-250, -170, -60, 30, 110, 230]
        # Half the transverse width, and from the origin to the skin in front and behind.
        width = np.array([160, 158, 147 + waist, 149, 151, 150]) * size
        front = np.array([92, 94, 98 + 0.6 * waist, 104, 108, 100]) * size * girth
        values = {
            "width": Profile(levels, width, 60),
            "depth_front": Profile(levels, front, 60),
            "depth_back": Profile(levels, np.array([104, 102, 99, 103, 108, 108]) * size, 60),
            # Subcutaneous fat at the flank, thin over the thorax.
            "fat": Profile([-200, -60, 60, 160], np.array([19, 15, 9, 7]) * rng.uniform(0.6, 1.35), 60),
            "fat_front": float(rng.uniform(0.8, 1.5)),
            "spine_y": Profile([-220, -160, -60, 80, 200], [56, 42, 35, 45, 54], 50),
            "asymmetry": rng.normal(0, 0.012, 4),
            # Centre x, y, top and half widths in x and y of each half of the diaphragm.
            "dome_right": np.array([-62, 0, 90, 66, 76]) + rng.normal(0, [3, 3, 4, 2, 3]),
            "dome_left": np.array([60, 4, 76, 62, 72]) + rng.normal(0, [3, 3, 4, 2, 3]),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    # -- as motion sees it -----------------------------------------------------------------------------------------
    @property
    def origin(self) -> np.ndarray:
        return np.zeros(3)

    def from_spine(self, points: np.ndarray) -> np.ndarray:
        return np.hypot(points[..., 0] / 1.1, points[..., 1] - self.spine_y(points[..., 2]) - 18)

    def below_skin(self, points: np.ndarray) -> np.ndarray:
        return self.depth(*np.moveaxis(points, -1, 0))

    # -- surfaces -----------------------------------------------------------------------------------------------
    def depth(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Millimetres below the skin (negative outside), from superelliptic sections; broadcasts."""
        a, front, back = self.width(z), self.depth_front(z), self.depth_back(z)
        b = np.where(y < 0, front, back)
        power = np.where(y < 0, 2.3, 2.7)
        u, v = np.abs(x) / a + 1e-4, np.abs(y) / b + 1e-4
        rho = (u**power + v**power) ** (1 / power)
        slope = np.sqrt((u ** (power - 1) / a) ** 2 + (v ** (power - 1) / b) ** 2) * rho ** (1 - power)
        # Nobody is symmetric: low angular harmonics, fading towards the centre.
        c, s = x / (a * np.maximum(rho, 0.3)), y / (b * np.maximum(rho, 0.3))
        k = self.asymmetry
        rho = rho * (1 + k[0] * c + k[1] * c * s + k[2] * (c * c - s * s) + k[3] * c * (c * c - 3 * s * s))
        # The furrow over the spinous processes.
        furrow = 5.0 * np.exp(-((x / 14) ** 2)) * (y > 0)
        return ((1 - rho) / slope - furrow).astype(np.float32)

    def fat_thickness(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        front = np.clip(-y / 90, 0, 1)
        return self.fat(z) * (1 + (self.fat_front - 1) * front) + 2.0

    def wall_thickness(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Skin to peritoneum or pleura."""
        muscle = 13 + 4 * np.clip(y / 90, 0, 1) - 3 * np.clip(-y / 90, 0, 1)
        return (self.fat_thickness(x, y, z) + muscle).astype(np.float32)

    def spine_front(self, z: np.ndarray) -> np.ndarray:
        return self.spine_y(z) - 17

    def beside_spine(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Distance to the spine with the muscles behind it: what no organ enters."""
        centre = self.spine_y(z)
        column = ellipse(x, y - centre, (0, 0), (26, 19))
        back = ellipse(np.abs(x), y - centre, (27, 40), (34, 26))
        return smooth_min(column, back, 10)

    def cavity(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Distance to the inside of thorax and abdomen together, negative inside."""
        return smooth_max(self.wall_thickness(x, y, z) - self.depth(x, y, z), -self.beside_spine(x, y, z), 8)

    def above_diaphragm(self, x: np.ndarray, y: np.ndarray, z: np.ndarray, cavity: np.ndarray) -> np.ndarray:
        """Distance to the diaphragm, positive above it: two domes that fall steeply to the recess along the wall."""

        def dome(d: np.ndarray) -> np.ndarray:
            q = ((x - d[0]) / d[3]) ** 2 + ((y - d[1]) / d[4]) ** 2
            return d[2] - 24 * q

        top = -smooth_min(-dome(self.dome_right), -dome(self.dome_left), 10)
        fall = np.exp(np.minimum(cavity, 0) / 13) * (48 + 0.45 * np.clip(y, -40, 80))
        slope = np.sqrt(1.3 + (fall / 13) ** 2)
        return ((z - top + fall) / slope).astype(np.float32)

    def on_wall(self, angle: float, z: float, below_skin_mm: float) -> np.ndarray:
        """The point at an angle from the back's midline (positive to the left) and a depth under the skin."""
        direction = np.array([np.sin(angle), np.cos(angle), 0.0])
        r = np.linspace(20, 220, 801)
        depth = self.depth(direction[0] * r, direction[1] * r, np.full_like(r, z))
        return np.array([0.0, 0.0, z]) + direction * r[int(np.argmin(np.abs(depth - below_skin_mm)))]


# -- drawing --------------------------------------------------------------------------------------------------------
def paint_wall(canvas: Canvas, body: Body, paint: Paint) -> tuple[np.ndarray, np.ndarray]:
    """Skin, subcutaneous fat, muscles, and a cavity full of fat.

    Returns (z, y, x) distances on the whole canvas: to the cavity, negative inside, and above the diaphragm.
    """
    cavity = np.empty(canvas.grid.shape, dtype=np.float32)
    above = np.empty(canvas.grid.shape, dtype=np.float32)
    for region in canvas.slabs():
        x, y, z = region.x, region.y, region.z
        depth = body.depth(x, y, z)
        thickness = body.fat_thickness(x, y, z)
        paint(region, -depth, "skin")
        paint(region, 2.0 - depth, "fat")
        paint(region, thickness - depth, "muscle")
        # The wall is layered: a thin line of fat between the oblique muscles, and none in front, where the recti lie.
        layer = np.abs(depth - thickness - 6.5) - 0.5 + 4 * np.clip((-y - 55) / 20, 0, 1) + 9 * (z > 60)
        paint(region, layer, "fat")
        inside = smooth_max(body.wall_thickness(x, y, z) - depth, -body.beside_spine(x, y, z), 8)
        paint(region, inside, "visceral fat")
        # The midline in front: fat between the two recti.
        line = np.maximum(np.abs(x) - 2.0, np.maximum(thickness - depth, 1.5 - inside))
        paint(region, np.where((y < -50) & (z < 90), line, 9.0), "fat")
        cavity[region.slices] = inside
        above[region.slices] = body.above_diaphragm(x, y, z, inside)
    return cavity, above


def paint_back_muscles(canvas: Canvas, body: Body, paint: Paint) -> None:
    """Psoas, quadratus lumborum and the fat septa of the erector spinae."""
    for side in (-1, 1):
        psoas = [(side * 26, body.spine_y(20.0), 20, 7), (side * 36, body.spine_y(-60.0) - 2, -60, 15),
                 (side * 46, body.spine_y(-130.0) - 12, -130, 20), (side * 58, 2, -230, 19)]  # fmt: skip
        region, distance = canvas.tube(smooth_curve(psoas, 10))
        paint(region, canvas.claim(region, distance, 0.0), "muscle")
        quadratus = [(side * 58, body.spine_y(25.0) + 20, 25, 7), (side * 68, body.spine_y(-60.0) + 20, -90, 10)]
        region, distance = canvas.tube(smooth_curve(quadratus, 10))
        paint(region, canvas.claim(region, distance, 0.0), "muscle")
        region = canvas.region((min(side * 9, side * 60), 50, -250), (max(side * 9, side * 60), 120, 250))
        septum = np.abs(np.abs(region.x) - 33 - 0.2 * (region.y - 75)) - 0.7
        inside = ellipse(np.abs(region.x), region.y - body.spine_y(region.z), (27, 40), (32, 24))
        skin = body.fat_thickness(region.x, region.y, region.z) - body.depth(region.x, region.y, region.z)
        paint(region, np.maximum(septum, np.maximum(inside, skin) + 2), "fat")


def paint_thorax(canvas: Canvas, body: Body, cavity: np.ndarray, above: np.ndarray, paint: Paint) -> None:
    """Diaphragm, lungs with their vessels, heart and mediastinum."""
    lowest = -80.0
    chance = random_stream(body.seed, "effusion")
    # Behind this plane, tilted by the dome, fluid lies in the pleural space of one side or both.
    sides = chance.permutation([-1, 1])[: 1 + chance.integers(2)] if chance.random() < EFFUSION_SHARE else ()
    level = chance.uniform(20, 70)
    whole = canvas.region((-1e4, -1e4, lowest))
    bottom = whole.slices[0].start
    lungs = np.empty(cavity[whole.slices].shape, dtype=np.float32)
    for region in canvas.slabs((-1e4, -1e4, lowest)):
        x, y, z = region.x, region.y, region.z
        inside, height = cavity[region.slices], above[region.slices]
        paint(region, np.maximum(np.maximum(inside, -height - DIAPHRAGM_MM), height), "muscle")
        # The mediastinum: a column in front of the spine, and the heart on the central tendon.
        column = ellipse(x, y, (2, 14), (31, 34)) + 0 * z
        heart = ellipsoid(x - 0.25 * (y + 30), y, z + 0.25 * x, (24, -36, 128), (56, 44, 54))
        atrium = ellipsoid(x, y, z, (-14, -22, 126), (29, 34, 38))
        heart = smooth_min(heart, atrium, 12)
        middle = smooth_min(smooth_min(column, heart - 1, 14), ellipse(x, y, (4, -60), (16, 50)) + 0 * z, 12)
        lung = smooth_max(smooth_max(inside + 1.5, 2 - height, 5), -middle, 5)
        paint(region, lung, "lung")
        for side in sides:
            behind = np.maximum(np.float32(level) + 0.25 * z - y, -side * x)
            pool = np.maximum(lung, behind)
            paint(region, pool, "ascites")
            lung = np.maximum(lung, -pool)
        paint(region, np.maximum(heart + 4, 3 - height), "myocardium")
        septum = 5 - np.abs((x - 20) * 0.6 - (y + 36) * 0.8)
        chambers = smooth_max(smooth_max(heart + 12, septum - 40 * (x < 0), 5), 8 - height, 4)
        paint(region, np.minimum(chambers, atrium + 8), "heart")
        lungs[region.slices[0].start - bottom : region.slices[0].stop - bottom] = lung

    rng = random_stream(body.seed, "lung vessels")
    inner = np.argwhere(lungs[::4, ::4, ::4] < -6) * 4
    points = np.stack([axis.ravel()[inner[:, 2 - i]] for i, axis in enumerate((whole.x, whole.y, whole.z))], axis=1)
    points = points[points[:, 2] > -20]
    for side in (-1, 1):
        targets = rng.permutation(points[points[:, 0] * side > 0])[:140]
        root = np.array([side * 38.0, 12, 190])
        for a, b, r0, r1 in vessel_tree(root, targets, root_radius=6.0, tip_radius=0.9, rng=rng):
            found = canvas.part_of(whole, np.minimum(a, b) - r0 - 2, np.maximum(a, b) + r0 + 2)
            if found:
                part, local = found
                # The vessels stop at the pleura.
                distance = np.maximum(capsule(part.x, part.y, part.z, a, b, r0, r1), lungs[local] + 1)
                paint(part, distance, "lung vessel")


def paint_skeleton(canvas: Canvas, body: Body, paint: Paint) -> None:
    """Vertebrae with discs, canal and processes; ribs with cartilage; sternum; iliac bones."""
    for name, (height, pitch) in _VERTEBRAE.items():
        _paint_vertebra(canvas, body, float(height), float(pitch), name, paint)
    canal = smooth_curve([(0, body.spine_y(z) + 25, z, 8.0) for z in (-225.0, -120, -40, 60, 150, 235)], 8)
    region, distance = canvas.tube(canal)
    paint(region, distance, "spinal fluid")
    paint(region, np.maximum(distance + 3.5, 5.0 - region.z), "cord")
    _paint_ribs(canvas, body, paint)
    region = canvas.region((-30, -140, 70), (30, -40, 250))
    skin = body.depth(region.x, region.y, region.z)
    plate = np.maximum(np.abs(skin - body.fat_thickness(region.x, region.y, region.z) - 8) - 5, np.abs(region.x) - 16)
    sternum = np.maximum(plate, 112 - region.z)
    paint(region, sternum, "cortical bone")
    paint(region, sternum + 1.8, "marrow")
    paint(region, np.maximum(np.maximum(plate + 2, np.abs(region.x) - 7), np.abs(region.z - 98) - 14), "cartilage")
    _paint_pelvis(canvas, body, paint)


def _bone(paint: Paint, region: Region, distance: np.ndarray, shell_mm: float) -> None:
    paint(region, distance, "cortical bone")
    paint(region, distance + np.float32(shell_mm), "marrow")


def _paint_vertebra(canvas: Canvas, body: Body, height: float, pitch: float, name: str, paint: Paint) -> None:
    lumbar = name[0] in "LS"
    rx, ry = (24.0, 17.0) if lumbar else (19.0, 16.0)
    front = float(body.spine_y(np.float32(height)))
    region = canvas.region((-50, front - 28, height - pitch), (50, front + 72, height + pitch))
    x, y, z = region.x, region.y - front, region.z - height
    half = 0.37 * pitch
    waist = 1 - 0.1 * np.clip(1 - (z / half) ** 2, 0, 1)
    column = ellipse(x / waist, y / waist, (0, 0), (rx, ry))
    if name != "S3":
        disc = smooth_max(ellipse(x, y, (0, 0), (rx + 0.5, ry + 0.5)) + 0 * z, np.abs(z + pitch / 2) - 0.15 * pitch, 3)
        paint(region, disc, "disc")
    arch = np.maximum(np.abs(ellipse(x, y, (0, 25), (11.5, 11.0))) - 2.6, np.abs(z + 2) - 0.28 * pitch)
    tail = 54.0 if lumbar else 50.0
    bone = np.minimum(arch, capsule(x / 0.8, y, z / 2.2, (0, 37, -1), (0, tail, -4), 3.4, 3.0))
    for side in (-1, 1):
        bone = np.minimum(bone, capsule(x, y, z, (side * 12, 22, 2), (side * (36 if lumbar else 30), 28, 3), 4.0, 3.0))
        bone = np.minimum(bone, capsule(x, y, z / 1.6, (side * 17, 30, -5), (side * 16, 36, -7), 5.5, 4.5))
        bone = np.minimum(bone, capsule(x, y, z, (side * 13, 8, 3), (side * 14, 24, 3), 5.0, 5.0))
    _bone(paint, region, bone, 1.8)
    _bone(paint, region, smooth_max(column, np.abs(z) - half, 4), 1.5)


def _paint_ribs(canvas: Canvas, body: Body, paint: Paint) -> None:
    rng = random_stream(body.seed, "ribs")
    # Where the bone ends and where its cartilage ends, in degrees from the back's midline.
    reach = {"T5": (150, 172), "T6": (148, 172), "T7": (143, 171), "T8": (136, 166), "T9": (128, 158),
             "T10": (118, 146), "T11": (92, 92), "T12": (58, 58)}  # fmt: skip
    for name, (bone_end, end) in reach.items():
        height = _VERTEBRAE[name][0]
        drop = 62 if name not in ("T11", "T12") else 74
        for side in (-1, 1):
            tilt = drop + rng.normal(0, 2)
            points = [(side * 20, body.spine_y(np.float32(height)) + 12, height + 8),
                      (side * 38, body.spine_y(np.float32(height)) + 27, height + 5)]  # fmt: skip
            for angle in np.arange(38, end + 0.1, 6.0):
                # Down and forward over the bone, up again along the cartilage to the sternum.
                fall = tilt * np.sin(np.radians(min(angle, bone_end) - 20) * 90 / 130) ** 1.3
                rise = 0.0 if angle <= bone_end else 1.5 * (angle - bone_end)
                level = height - fall + rise
                at = np.array([0.0, 0.0, level])
                below = float(body.fat(np.float32(level))) * (body.fat_front if angle > 110 else 1) + 9.5
                at = body.on_wall(side * np.radians(angle), level, below)
                points.append(tuple(at))
            curve = smooth_curve([(*p, 4.6) for p in points], 5)
            angle = np.degrees(np.arctan2(np.abs(curve[:, 0]), curve[:, 1]))
            last = int(np.argmax(angle > bone_end)) if (angle > bone_end).any() else len(curve)
            region, distance = canvas.tube(curve[:last])
            _bone(paint, region, distance, 1.7)
            if last < len(curve) - 1:
                region, distance = canvas.tube(curve[last - 1 :])
                paint(region, distance, "cartilage")


def _paint_pelvis(canvas: Canvas, body: Body, paint: Paint) -> None:
    """The iliac wings as parts of two bowls, and the sacrum's sides."""
    for side in (-1, 1):
        region = canvas.region((min(0, side * 170), -60, -250), (max(0, side * 170), 110, -90))
        x, y, z = side * region.x, region.y, region.z
        bowl = np.abs(ellipsoid(x - 0.25 * y, y, z, (40, 14, -185), (82, 72, 84))) - 5.0
        # Open upwards and to the middle: the crest lies far out, the back edge reaches the sacrum.
        wing = smooth_max(bowl, 0.8 * (66 + 0.62 * (z + 185) - 0.5 * np.maximum(y, 0) - x), 6)
        wing = smooth_max(wing, -(y + 40) - 0.2 * (z + 170), 6)
        _bone(paint, region, smooth_max(wing, 14 - body.depth(region.x, y, z), 4), 2.2)
        sacrum = ellipsoid(x, y, z, (26, 58, -185), (30, 16, 42))
        _bone(paint, region, sacrum, 2.0)
