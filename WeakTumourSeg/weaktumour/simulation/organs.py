"""The organs of the abdomen, each an implicit shape that gives way to those placed before it.

Positions are those of a supine adult seen from the feet; every seed shifts and scales them a little.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .body import DIAPHRAGM_MM, Body
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
    smooth_noise,
)
from .vessels import Segment, vessel_tree

Paint = Callable[[Region, np.ndarray, str], None]
ASCITES_SHARE = 0.12  # of the patients


# -- great vessels --------------------------------------------------------------------------------------------------
def paint_great_vessels(canvas: Canvas, body: Body, paint: Paint) -> None:
    """Aorta with its branches and iliac arteries, inferior vena cava with iliac and renal veins, oesophagus."""

    def front(z: float) -> float:
        return float(body.spine_front(np.float32(z)))

    def draw(points: list[tuple[float, float, float, float]], tissue: str = "blood", gap: float = 0.5) -> None:
        region, distance = canvas.tube(smooth_curve(points, 5))
        paint(region, canvas.claim(region, distance, gap), tissue)

    draw([(16, front(z) - 9 - max(0, (z - 120) * 0.05), z, r) for z, r in
          ((235.0, 12), (150.0, 12), (70.0, 11.5), (10.0, 10.5), (-50.0, 9.5), (-95.0, 9))])  # fmt: skip
    draw([(-19, front(z) - 9 - push, z, r) for z, push, r in
          ((-105.0, 0, 11), (-50.0, 0, 11), (0.0, 3, 12), (40.0, 9, 12.5), (75.0, 18, 13))]
         + [(-16, front(90.0) - 33, 98, 14), (-12, -14, 118, 15)])  # fmt: skip
    for side, x, radius, tissue_gap in ((-1, 14, 6, 0.2), (1, 14, 6, 0.2), (-1, -16, 7.5, 0.2), (1, -16, 7.5, 0.2)):
        y = front(-100.0) - (9 if x > 0 else 6)
        draw([(x, y, -96, radius), (x + side * 12, y - 1, -120, radius), (side * 38, y + 4, -160, radius - 0.5),
              (side * (50 if x > 0 else 47), y - 6, -230, radius - 1)], gap=tissue_gap)  # fmt: skip
    y = front(-8.0)
    draw([(-20, y - 9, -10, 5), (-38, y + 4, -14, 4.5), (-52, y + 16, -16, 4)])
    draw([(-14, y - 14, -4, 5), (6, y - 22, -3, 4.5), (34, y - 6, -4, 4.5), (50, y + 8, -4, 4)])
    y = front(20.0)
    draw([(14, y - 16, 17, 4.0), (12, y - 28, 10, 3.6), (0, y - 34, 4, 3.2)])
    draw([(13, y - 16, 8, 4.0), (9, y - 36, -10, 3.8), (6, y - 44, -70, 3.2)])
    draw([(20, front(200.0) - 14, 235, 6), (20, front(150.0) - 16, 150, 6), (24, front(90.0) - 26, 92, 7),
          (38, 2, 72, 8)], "bowel wall")  # fmt: skip


# -- liver ----------------------------------------------------------------------------------------------------------
def liver_shape(canvas: Canvas, body: Body, cavity: np.ndarray, above: np.ndarray) -> tuple[Region, np.ndarray]:
    """The liver's region and distance, before the organs it wraps are taken out.

    It fills the right dome, is cut by a visceral surface that rises to the left, and tapers across the midline. To the
    diaphragm and the wall there is a film of fat, or nothing.
    """
    rng = random_stream(body.seed, "liver")
    region = canvas.region((-170, -140, -130), (120, 110, 120))
    x, y, z = region.x, region.y, region.z
    lower = np.array([-66, -80, -72, -46, -22, -4, 10, 26, 42]) + rng.normal(0, 4) + rng.normal(0, 3, 9)
    lower[:3] += rng.normal(-4, 10)  # how far the right lobe reaches down
    floor = Profile([-140, -112, -90, -65, -40, -15, 10, 40, 75], lower, 26)(x)
    floor = floor + Profile([-130, -60, -20, 60], [0.12, 0.4, 0.55, 0.3], 30)(x) * (y + 25)
    slope = np.sqrt(1 + 0.9**2 + 0.4**2)
    back = Profile(
        [-130, -70, -45, -25, -5, 15, 45, 80], np.array([110, 88, 62, 40, 26, 8, -8, -24]) + rng.normal(0, 3), 20
    )
    left_end = rng.uniform(58, 92)
    left = x + 0.35 * (y + 50) - 0.25 * (z - 50) - left_end
    film = np.float32(max(0.0, rng.normal(0.2, 0.9)))
    patches = np.clip(smooth_noise(canvas.grid_of(region), 30, rng) + 0.5, 0, 1.5)
    wall, dome = cavity[region.slices] + 0.4, above[region.slices] + DIAPHRAGM_MM
    shape = smooth_max(wall, dome, 5) + film * patches
    shape = smooth_max(shape, (floor - z) / np.float32(slope), 12)
    shape = smooth_max(shape, (y - back(x)) * np.float32(0.8) + 0 * z, 16)
    shape = smooth_max(shape, left * np.float32(0.85), 18)
    # Fissure of the round and venous ligaments, between the left lobe's two halves.
    fissure = np.minimum(
        capsule(x, y, z, (8, -95, -30), (4, -38, 22), 7, 3.5), capsule(x, y, z, (4, -38, 22), (-4, 18, 40), 3.5, 3)
    )
    shape = smooth_max(shape, -fissure, 5)
    wobble = smooth_noise(canvas.grid_of(region), 34, rng)
    return region, shape + np.float32(1.3) * wobble


def paint_ascites(
    canvas: Canvas, body: Body, region: Region, shape: np.ndarray, cavity: np.ndarray, paint: Paint
) -> np.ndarray:
    """Now and then fluid about the liver, which shrinks from it, and beside the colon. Returns the liver's distance."""
    rng = random_stream(body.seed, "ascites")
    thickness = rng.uniform(4, 14) if rng.random() < ASCITES_SHARE else 0.0
    if not thickness:
        return shape
    gutters = canvas.region((-170, -140, -200), (170, 110, 40))
    paint(gutters, np.maximum(cavity[gutters.slices] + 1, -cavity[gutters.slices] - 1.6 * thickness), "ascites")
    paint(region, shape, "ascites")
    # Deepest to the right and below, none at the bare area behind.
    deep = np.clip(0.6 - region.x / 160 - region.z / 240, 0.2, 1) * np.clip((60 - region.y) / 60, 0, 1)
    uneven = np.clip(1 + 0.4 * smooth_noise(canvas.grid_of(region), 40, rng), 0.2, 2)
    return shape + np.float32(thickness) * (deep * uneven).astype(np.float32)


def liver_vessels(body: Body, inside: np.ndarray, hilum: np.ndarray) -> list[Segment]:
    """Portal and hepatic venous trees. inside: (n, 3) points at least 6 mm deep in the liver."""
    rng = random_stream(body.seed, "liver vessels")
    segments: list[Segment] = []

    def choose(points: np.ndarray, count: int) -> np.ndarray:
        return rng.choice(points, min(count, len(points)), replace=False)

    confluence = np.array([2.0, float(body.spine_front(np.float32(-8))) - 26, -14])
    gate = hilum + np.array([4.0, 2, -6])
    segments += [
        (confluence, 0.5 * (confluence + gate) + [-2, -2, 2], 7.0, 6.8),
        (0.5 * (confluence + gate) + [-2, -2, 2], gate, 6.8, 6.5),
    ]
    right = inside[inside[:, 0] < hilum[0] - 4]
    left = inside[inside[:, 0] >= hilum[0] - 4]
    for part, count, radius in ((right, 75, 5.6), (left, 38, 4.6)):
        if len(part):
            segments += vessel_tree(gate, choose(part, count), root_radius=radius, tip_radius=0.85, rng=rng)
    # Hepatic veins: three wedges by their angle about the vena cava, meeting below the diaphragm.
    y_cava = float(body.spine_front(np.float32(75))) - 27
    junction = np.array([-21.0, y_cava, 76])
    angle = np.degrees(np.arctan2(-(inside[:, 1] - y_cava), -(inside[:, 0] + 21)))  # 0 to the right, 90 to the front
    for low, high, count, radius in ((-180, 38, 50, 5.2), (38, 85, 34, 4.4), (85, 181, 26, 4.2)):
        part = inside[(angle >= low) & (angle < high)]
        if len(part):
            segments += vessel_tree(junction, choose(part, count), root_radius=radius, tip_radius=0.85, rng=rng)
    return segments


# -- the others -----------------------------------------------------------------------------------------------------
def paint_gallbladder(canvas: Canvas, neck: np.ndarray, fundus: np.ndarray, paint: Paint) -> None:
    path = smooth_curve(
        [(*neck, 5.0), (*(0.6 * neck + 0.4 * fundus), 9.5), (*(0.25 * neck + 0.75 * fundus), 13.0), (*fundus, 12)], 4
    )
    region, distance = canvas.tube(path)
    distance = canvas.claim(region, distance, 0.5)
    paint(region, distance, "gallbladder wall")
    paint(region, distance + 1.8, "bile")


def place_kidneys(canvas: Canvas, body: Body, cavity: np.ndarray) -> list[tuple[Region, np.ndarray, np.ndarray]]:
    """Region, distance and distance to the sinus of each kidney. The upper poles lean back and to the middle."""
    rng = random_stream(body.seed, "kidneys")
    result = []
    for side, level in ((-1, -26), (1, -8)):
        cx, cz = 66 + rng.normal(0, 2), level + rng.normal(0, 5)
        cy = 46 + rng.normal(0, 2)
        radii = np.array([26, 23, 53]) * rng.uniform(0.94, 1.08)
        region = canvas.region((min(0, side * 120), 0, cz - 70), (max(0, side * 120), 100, cz + 70))
        z = region.z - cz
        x = side * region.x - cx + 0.22 * z
        y = region.y - cy - 0.16 * z
        shape = smooth_max(ellipsoid(x, y, z, (0, 0, 0), radii), cavity[region.slices] + 4, 5)
        sinus = ellipsoid(x + 0.5 * y, y - 0.2 * x, z, (-24, -4, 0), (22, 13, 24))
        shape = smooth_max(shape, -sinus - 4, 5)
        shape = canvas.claim(region, shape, 2.0)
        result.append((region, shape, sinus))
    return result


def paint_kidneys(kidneys: list[tuple[Region, np.ndarray, np.ndarray]], paint: Paint) -> None:
    for region, shape, sinus in kidneys:
        paint(region, shape, "kidney")
        paint(region, np.maximum(shape, np.maximum(sinus, -shape - 16)), "visceral fat")
        paint(region, np.maximum(sinus + 6, shape + 2), "renal pelvis")


def paint_spleen(canvas: Canvas, body: Body, cavity: np.ndarray, above: np.ndarray, paint: Paint) -> None:
    rng = random_stream(body.seed, "spleen")
    centre = np.array([98, 38, 30]) + rng.normal(0, 3, 3)
    radii = np.array([39, 52, 54]) * rng.uniform(0.85, 1.1)
    region = canvas.around(centre[None], 90)
    # Its long axis follows the tenth rib: down and forward.
    y, z = region.y - centre[1], region.z - centre[2]
    shape = ellipsoid(region.x - centre[0], y + 0.35 * z, z - 0.2 * y, (0, 0, 0), radii)
    shape = smooth_max(shape, cavity[region.slices] + 3, 10)
    shape = smooth_max(shape, above[region.slices] + 4, 10)
    hilum = ellipsoid(region.x, region.y, region.z, (51, 2, 32), (33, 40, 60))
    shape = smooth_max(shape, -hilum, 6)
    paint(region, canvas.claim(region, shape, 2.0), "spleen")


def paint_stomach(canvas: Canvas, body: Body, cavity: np.ndarray, above: np.ndarray, paint: Paint) -> None:
    """Fundus under the left dome, body, antrum across the midline; fluid with gas above it (in front: supine)."""
    rng = random_stream(body.seed, "stomach")
    fill = rng.uniform(0.85, 1.12)
    path = np.array([(62, 20, 62, 26), (66, 2, 44, 31), (66, -26, 18, 27), (54, -48, -8, 22), (26, -58, -26, 17),
                     (0, -52, -26, 14), (-22, -36, -18, 10)]) * [1, 1, 1, fill]  # fmt: skip
    path[:, :3] += rng.normal(0, 2.5, (len(path), 3))
    region, distance = canvas.tube(smooth_curve(path, 8))
    distance = smooth_max(distance, cavity[region.slices] + 3, 8)
    distance = smooth_max(distance, above[region.slices] + 4, 8)
    distance = canvas.claim(region, distance, 1.5)
    folds = smooth_noise(canvas.grid_of(region), 9, rng)
    inside = distance + 4.0 + np.float32(0.8) * folds
    level = rng.uniform(-52, -32)
    paint(region, distance, "bowel wall")
    paint(region, inside, "fluid")
    paint(region, np.maximum(inside, region.y - np.float32(level)), "gas")


def paint_pancreas(canvas: Canvas, body: Body, paint: Paint) -> None:
    rng = random_stream(body.seed, "pancreas")
    y = float(body.spine_front(np.float32(0)))
    path = np.array([(-30, y - 22, -38, 8), (-27, y - 26, -18, 14), (-8, y - 36, -6, 10), (16, y - 42, 4, 10.5),
                     (42, y - 22, 14, 10), (72, y + 4, 24, 8), (84, y + 10, 28, 6)])  # fmt: skip
    path[:, :3] += rng.normal(0, 2, (len(path), 3))
    region, distance = canvas.tube(smooth_curve(path, 6))
    lobules = smooth_noise(canvas.grid_of(region), 7, rng)
    paint(region, canvas.claim(region, distance + 1.6 * lobules, 1.0), "pancreas")
    vein = [(2, y - 27, -12, 4.5), (22, y - 30, 2, 4.2), (46, y - 10, 12, 4.0), (78, y + 14, 26, 3.4)]
    region, distance = canvas.tube(smooth_curve(vein, 5))
    paint(region, distance, "blood")
    vein = [(2, y - 27, -14, 5), (-2, y - 34, -40, 4.5), (-4, y - 42, -90, 3.6)]
    region, distance = canvas.tube(smooth_curve(vein, 6))
    paint(region, distance, "blood")


def paint_bowel(canvas: Canvas, body: Body, cavity: np.ndarray, paint: Paint) -> None:
    """Duodenum, colon with haustra and mixed content, and loops of small bowel."""
    rng = random_stream(body.seed, "bowel")
    y = float(body.spine_front(np.float32(-30)))
    duodenum = [(-24, -34, -20, 10), (-46, -4, -22, 11), (-50, y - 6, -52, 11), (-32, y - 12, -78, 10),
                (2, y - 22, -82, 9), (26, y - 16, -64, 9), (34, y - 30, -50, 9)]  # fmt: skip
    _paint_gut(canvas, cavity, smooth_curve(duodenum, 6), 2.6, "fluid", 0.12, rng, paint)
    droop = rng.uniform(0, 22)
    front = -float(body.depth_front(np.float32(-60))) + float(body.fat(np.float32(-60))) * body.fat_front + 36
    ascending = [
        (-96, 26, -205, 26),
        (-103, 24, -160, 25),
        (-104, 28, -120, 22),
        (-96, 24, -92, 20),
        (-82, -8, -86, 19),
    ]
    transverse = [(-82, -8, -86, 19), (-62, front + 8, -92 - droop, 18), (-20, front, -84 - 1.3 * droop, 18),
                  (30, front, -70 - droop, 17), (72, front + 18, -36, 17), (100, -2, 2, 17)]  # fmt: skip
    descending = [
        (100, -2, 2, 17),
        (112, 26, -22, 15),
        (112, 32, -80, 14),
        (108, 28, -140, 14),
        (92, 10, -190, 15),
        (60, -4, -232, 16),
    ]
    for path, gas in ((ascending, 0.35), (transverse, 0.75), (descending, 0.4)):
        points = np.asarray(path, dtype=float)
        points[1:-1, :3] += rng.normal(0, 3, (len(path) - 2, 3))
        curve = smooth_curve(points, 5)
        length = np.r_[0, np.cumsum(np.linalg.norm(np.diff(curve[:, :3], axis=0), axis=1))]
        curve[:, 3] *= 1 + 0.16 * np.cos(2 * np.pi * length / 27)
        _paint_gut(canvas, cavity, curve, 2.2, "stool", gas, rng, paint)
    # Small bowel: smooth wandering paths through the middle, jejunum at the upper left.
    for loop in range(15):
        height = -42 - 11.5 * loop + rng.uniform(-8, 8)
        start = np.array([rng.uniform(-20 if height > -75 else -80, 82), rng.uniform(-72, 12), height])
        points, direction = [start], rng.normal(0, 1, 3) * [1, 0.8, 0.3]
        for _ in range(13):
            direction = 0.55 * direction / np.linalg.norm(direction) + rng.normal(0, 0.55, 3) * [1, 0.9, 0.5]
            direction += (np.array([30 if height > -75 else 2, -30, height]) - points[-1]) / 95
            points.append(points[-1] + 24 * direction / np.linalg.norm(direction))
        radius = rng.uniform(10.5, 14.5)
        curve = smooth_curve([(*p, radius * rng.uniform(0.85, 1.15)) for p in points], 6)
        _paint_gut(canvas, cavity, curve, 2.4, "fluid", 0.25, rng, paint)


def _paint_gut(
    canvas: Canvas,
    cavity: np.ndarray,
    curve: np.ndarray,
    wall_mm: float,
    content: str,
    gas_share: float,
    rng: np.random.Generator,
    paint: Paint,
) -> None:
    """A tube with a wall and its content; here and there gas in front of a level."""
    region, distance = canvas.tube(curve)
    distance = smooth_max(distance, cavity[region.slices] + 3, 6)
    distance = canvas.claim(region, distance, 1.2)
    inside = distance + wall_mm
    paint(region, distance, "bowel wall")
    paint(region, inside, content)
    # Each stretch of about 50 mm has gas or not; where it has, gas fills the front part of the lumen.
    axis = np.linspace(0, len(curve) - 1, max(2, len(curve) // 9)).astype(int)
    for index in axis:
        x, y, z, radius = curve[index]
        found = canvas.part_of(region, (x - 26, y - 26, z - 26), (x + 26, y + 26, z + 26))
        if rng.random() < gas_share and found:
            part, local = found
            bubble = ellipsoid(part.x, part.y, part.z, (x, y - 0.45 * radius, z), (24, radius * 1.1, 24))
            level = part.y - np.float32(y + rng.uniform(-0.4, 0.5) * radius)
            paint(part, np.maximum(np.maximum(inside[local], bubble), level), "gas")


def paint_mesentery(canvas: Canvas, body: Body, paint: Paint) -> None:
    """Fine vessels in the mesenteric fat, where nothing else lies."""
    rng = random_stream(body.seed, "mesentery")
    root = np.array([4.0, float(body.spine_front(np.float32(-60))) - 30, -62])
    targets = root + rng.normal(0, 1, (70, 3)) * [45, 16, 32] + [0, -26, -42]
    region = canvas.around(np.vstack((root[None], targets)), 6)
    distance = canvas.capsules(region, vessel_tree(root, targets, root_radius=3.6, tip_radius=0.9, rng=rng))
    paint(region, np.maximum(distance, 1.0 - canvas.occupied[region.slices]), "blood")


def right_hilum(region: Region, shape: np.ndarray) -> np.ndarray:
    """Where the portal vein enters: on the visceral surface, to the right of the midline."""
    column = ellipse(region.x, region.y, (-30, 2), (5, 5))[0] < 0
    inside = (shape < -3) & column[None]
    heights = np.broadcast_to(region.z, shape.shape)[inside]
    return np.array([-30.0, 2.0, float(heights.min()) if len(heights) else 5.0])
