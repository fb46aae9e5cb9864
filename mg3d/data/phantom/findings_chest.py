"""Findings outside the lung tissue: heart, vessels, nodes, pleura, hiatus and devices.

The `_room` functions run before the lung is painted: they give shapes [(box, field), ...] and carve them out of it.
"""

import numpy as np

from mg3d.data.phantom.findings_lung import Painted
from mg3d.data.phantom.mediastinum import on_heart
from mg3d.data.phantom.plan import ORGANS, Finding
from mg3d.data.phantom.scene import Scene
from mg3d.data.phantom.space import EVERYWHERE, Box, axes, ellipsoid, splat

FIRM = [ORGANS.index(name) for name in ("aorta", "airways", "spine", "ribs", "pulmonary artery", "heart")]
Shapes = list[tuple[Box, np.ndarray]]


def soft(scene: Scene, box: Box, *, spare: tuple[str, ...] = ()) -> np.ndarray:
    """True where a mass may lie: not in bone, airway, heart or a great vessel, except the organs in `spare`."""
    firm = [i for i in FIRM if ORGANS[i] not in spare]
    return ~np.isin(scene.organs[box], firm)


def cardiomegaly(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: Shapes) -> Painted:
    """Nothing to paint: the heart was built wide. The mask is the heart."""
    box, f = ellipsoid(scene.space, *scene.heart)
    return box, scene.space.cover(f)


def pericardial_room(scene: Scene, finding: Finding, rng: np.random.Generator) -> Shapes:
    """A shell round the heart, size_mm thick where it is thickest: behind, below and to the left."""
    depth = scene.mm(finding.size_mm)
    centre, matrix = scene.heart
    box, f = ellipsoid(scene.space, centre, matrix, margin=depth + 8)
    z, y, x = scene.space.at(box)
    lean = 0.5 * (y - centre[1]) - 0.25 * (z - centre[0]) + 0.3 * (x - centre[2])
    thick = depth * np.clip(0.72 + lean / 70, 0.4, 1)
    scene.carve(box, f + thick, margin=3.0)
    return [(box, np.minimum(f + thick, -f - 1.5))]


def pericardial_effusion(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: Shapes) -> Painted:
    """Fluid at 0 to 15 HU between a thin line of epicardial fat and the pericardium."""
    s = scene.space
    ((box, f),) = shapes
    f = np.minimum(np.minimum(f, scene.cage[box] - 2), scene.dome[box] + 3)
    share = s.cover(f) * soft(scene, box, spare=("heart",))
    scene.paint(box, share, rng.uniform(0, 15))
    centre, matrix = scene.heart
    inner, g = ellipsoid(s, centre, matrix, margin=6.0)
    line = np.clip(1 - np.abs(g + 0.5) / s.voxel, 0, 1) * np.float32(min(2.2 / s.voxel, 1)) * (scene.cage[inner] > 2)
    scene.paint(inner, line * soft(scene, inner, spare=("heart",)), -85.0)
    return box, share


def hernia_room(scene: Scene, finding: Finding, rng: np.random.Generator) -> Shapes:
    """A sac of long axis size_mm behind the heart, just above the diaphragm."""
    half = scene.mm(finding.size_mm) / 2
    radii = (half, 0.8 * half, 0.9 * half)
    floor = scene.space.nearest(np.array([0.0, 18, 8]))
    height = -float(scene.dome[floor] - scene.space.z[floor[0], 0, 0])
    centre = np.array([height + 0.75 * half, 20 + 0.15 * half, 8 + rng.normal(0, 3)])
    box, f = ellipsoid(scene.space, centre, axes(radii))
    scene.carve(box, f, margin=2.0)
    return [(box, f)]


def hernia(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: Shapes) -> Painted:
    """Fat, stomach wall, fluid, and a bubble of air that floats to the front."""
    s = scene.space
    ((box, f),) = shapes
    free = soft(scene, box, spare=("heart",))
    half = scene.mm(finding.size_mm) / 2
    share = s.cover(f) * free
    scene.paint(box, share, -80.0)
    scene.paint(box, s.cover(f - 0.15 * half) * free, 48.0, organ="stomach")
    inner = s.cover(f - 0.15 * half - 2.5) * free
    scene.paint(box, inner, rng.uniform(0, 40))
    y = s.at(box)[1]
    level = float(np.median(y[np.broadcast_to(f > 0, f.shape).any(0, keepdims=True)])) + rng.uniform(0, 0.5) * half
    scene.paint(box, inner * s.cover(level - y), -900.0)
    return box, share


def node_room(scene: Scene, finding: Finding, rng: np.random.Generator) -> Shapes:
    """Three to seven nodes at a station; the first has the short axis size_mm, the others are a little smaller."""
    s = scene.space
    k = 1 if finding.side == "left" else -1
    station = {
        "paratracheal": np.array([52.0, 8, -23]) if k < 0 else np.array([42.0, 6, 30]),
        "subcarinal": np.array([8.0, 20, -2]),
        "hilar": np.array([4.0, 24, 44 * k]),
        "axillary": np.array([76.0, -4, 115 * k]),
    }[finding.place]
    spread = np.array([13.0, 5, 5]) if finding.place != "subcarinal" else np.array([5.0, 3, 9])
    shapes = []
    for i in range(3 + int(4 * finding.severity)):
        short = scene.mm(finding.size_mm) / 2 * (1 if i == 0 else rng.uniform(0.65, 0.95))
        radii = (short * rng.uniform(1.2, 1.5), short, short * rng.uniform(1.0, 1.2))
        centre = station + rng.normal(0, 2, 3) + (0 if i == 0 else 1) * rng.normal(0, 1, 3) * spread
        box, f = ellipsoid(s, centre, axes(radii))
        scene.carve(box, f, margin=1.0)
        shapes.append((box, f))
    return shapes


def nodes(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: Shapes) -> Painted:
    """Soft tissue at 30 to 50 HU in the fat between the organs; where there is too little fat, veins give way."""
    s = scene.space
    total = np.zeros(s.shape, np.float32)
    hu = rng.uniform(30, 50) + 0.3 * max(scene.plan.patient.blood_hu - 40, 0)
    for box, f in shapes:
        wall = -scene.cage[box] - 10 if finding.place == "axillary" else scene.cage[box]
        whole = s.cover(np.minimum(f, wall))
        share = whole * soft(scene, box)
        if share.sum() < 0.5 * whole.sum():
            share = whole * soft(scene, box, spare=("heart", "pulmonary artery"))
        scene.paint(box, share, hu)
        np.maximum(total[box], share, out=total[box])
    return EVERYWHERE, total


def pleural_room(scene: Scene, finding: Finding, rng: np.random.Generator) -> Shapes:
    """Fluid that layers at the back of a lying patient, size_mm deep at the base, with a meniscus at the wall."""
    s = scene.space
    low, high = np.array([-135.0, -82, 0]), np.array([118.0, 84, 132])
    if finding.side == "right":
        low[2], high[2] = -132, 0
    box = s.box(low, high)
    z, y, x = s.at(box)
    depth = scene.mm(finding.size_mm)
    height = np.clip((-35 + 2.4 * depth - z) / (45 + depth), 0, 1)
    wall = np.exp(-np.maximum(scene.cage[box], 0) / 9)
    level = y - 75 + depth * height + 0.2 * depth * wall * height - 6 * (1 - height)
    f = np.minimum(level.astype(np.float32), x if finding.side == "left" else -x)
    scene.carve(box, f)
    return [(box, f)]


def pleural_effusion(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: Shapes) -> Painted:
    """Fluid at 0 to 20 HU wherever the pleural cavity is below the level."""
    ((box, f),) = shapes
    share = scene.space.cover(np.minimum(f, scene.cavity[box]))
    scene.paint(box, share, rng.uniform(0, 20), organ="pleura")
    return box, share


def arterial_plates(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: Shapes) -> Painted:
    """Calcified plates in the wall of one part of the aorta."""
    path = scene.aorta[finding.place]
    if finding.place == "descending aorta":
        path = np.stack([np.interp(np.linspace(-110, 26, 30), path[:, 0], path[:, i]) for i in range(4)], 1)
    points = []
    for _ in range(2 + int(7 * finding.severity)):
        length, arc = (
            scene.mm(1.0) * rng.uniform(6, 10 + 12 * finding.severity),
            rng.uniform(0.5, 0.8 + finding.severity),
        )
        i = rng.integers(0, len(path) - 1)
        way = path[i + 1, :3] - path[i, :3]
        way /= np.linalg.norm(way)
        e1 = np.cross(way, [0.3, 0.2, 1.0])
        e1 /= np.linalg.norm(e1)
        angle = rng.uniform(0, 2 * np.pi) + rng.uniform(-arc / 2, arc / 2, 90)
        spoke = np.cos(angle)[:, None] * e1 + np.sin(angle)[:, None] * np.cross(way, e1)
        radius = path[i, 3]
        centre = path[i, :3] + rng.uniform(-length / 2, length / 2, (90, 1)) * way
        volume = length * arc * radius * scene.mm(2.8) / 90
        points.append((centre + (radius - 0.6) * spoke, np.full(90, volume)))
    share = splat(scene.space, *(np.concatenate(part) for part in zip(*points, strict=True)))
    scene.paint(EVERYWHERE, share, rng.uniform(1000, 1400))
    return EVERYWHERE, np.minimum(2 * share, 1)  # half a voxel of plate outshines the wall


def coronary_specks(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: Shapes) -> Painted:
    """Two to twelve bright specks along an epicardial artery."""
    if finding.place == "right coronary artery":
        course = np.array([[-0.15, -0.6, -0.75], [-0.3, -0.92, -0.1], [-0.35, -0.75, 0.55]])
    else:
        course = np.array([[-0.25, -0.3, -0.85], [0.25, -0.4, -0.7], [0.85, -0.4, -0.25]])
    t = rng.random(2 + int(10 * finding.severity)) * 1.4
    spine = np.stack([np.interp(t, [0, 1, 2], course[:, i]) for i in range(3)], 1)
    spine *= 0.95 / np.linalg.norm(spine, axis=1, keepdims=True)
    centres = on_heart(scene, spine)
    radius = scene.mm(1.0) * rng.uniform(1.4, 2.0 + 0.6 * finding.severity, len(centres))
    offset = rng.standard_normal((len(centres), 24, 3))
    offset *= (radius[:, None] * rng.random((len(centres), 24)) ** (1 / 3) / np.linalg.norm(offset, axis=2))[..., None]
    volume = np.repeat(4 / 3 * np.pi * radius**3 / 24, 24)
    share = splat(scene.space, (centres[:, None] + offset).reshape(-1, 3), volume)
    scene.paint(EVERYWHERE, share, rng.uniform(2000, 3000))  # blooming: dense specks look larger than they are
    return EVERYWHERE, np.minimum(6 * share, 1)
