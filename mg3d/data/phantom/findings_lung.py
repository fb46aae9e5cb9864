"""Focal findings of the lung tissue: nodule, consolidation, ground glass, atelectasis, fibrotic sequela.

Every renderer takes (scene, finding, rng, shapes) and returns (box, share): the share of each voxel that the finding
fills. What is added is mixed into air only where vessels must stay visible (`Scene.aerate`).
"""

import numpy as np

from mg3d.data.phantom.plan import Finding
from mg3d.data.phantom.scene import Scene
from mg3d.data.phantom.space import EVERYWHERE, Box, axes, clouds, combine, ellipsoid, grains, rotation, splat

Painted = tuple[Box, np.ndarray]


def nodule(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: list) -> Painted:
    """A bumpy ellipsoid whose long axis is size_mm: solid, calcified, ground glass, or ground glass with a solid core.

    A nodule thinner than a voxel sits on a voxel's centre, else whether it can be seen would be a lottery of the grid.
    """
    s = scene.space
    radius = scene.mm(finding.size_mm) / 2
    centre = scene.spot(finding.side, finding.place, rng, deep=(radius + 2, 1e3))
    if radius < 0.8 * s.voxel:
        centre = snap(scene, centre)
    radii = radius * np.array([1, rng.uniform(0.8, 0.97), rng.uniform(0.75, 0.92)])
    box, f = ellipsoid(s, centre, axes(radii, rotation=rotation(rng)))
    if radius > s.voxel:
        f = f + np.minimum(0.09 * radius * clouds(s, box, grain_mm=0.8 * radius, rng=rng), 0.3 * s.voxel)
    lung = s.cover(scene.lung[box] + 1)
    share = s.cover(f) * lung
    if finding.form in ("ground glass", "subsolid"):
        scene.aerate(box, share * np.float32(rng.uniform(0.5, 0.65)), 40.0)
        if finding.form == "subsolid":
            scene.paint(box, s.cover(f - 0.45 * radius) * lung, rng.uniform(0, 40))
    elif finding.form == "calcified":
        scene.paint(box, share, rng.uniform(350, 700))
    else:
        scene.paint(box, share, rng.uniform(10, 60))
        if finding.size_mm > 12 and rng.random() < 0.5:
            spicules(scene, centre, radius, rng)
    return box, share


def snap(scene: Scene, point: np.ndarray) -> np.ndarray:
    """The centre [3] of the voxel that holds a point."""
    s = scene.space
    k, i, j = (int(n) for n in s.nearest(point))
    return np.array([s.z[k, 0, 0], s.y[0, i, j], s.x[0, i, j]])


def spicules(scene: Scene, centre: np.ndarray, radius: float, rng: np.random.Generator) -> None:
    """Thin strands that radiate from a nodule."""
    ways = rng.standard_normal((9, 3))
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    start, end = centre + 0.8 * radius * ways, centre + radius * ways * rng.uniform(1.4, 1.9, (9, 1))
    share = splat(scene.space, *grains(scene.space, start, end, np.full(9, 0.9 / scene.space.scale)))
    scene.aerate(EVERYWHERE, share * scene.space.cover(scene.lung), 20.0)


def blob(scene: Scene, finding: Finding, rng: np.random.Generator, *, radius: float, ragged: float) -> Painted:
    """Box and field of a noise-bounded lump near the pleura, kept inside its lobe and the lung."""
    s = scene.space
    centre = scene.spot(finding.side, finding.place, rng, deep=(4.0, 26.0))
    box, f = ellipsoid(s, centre, axes(radius * rng.uniform(0.8, 1.25, 3), rotation=rotation(rng)))
    f = f + ragged * radius * clouds(s, box, grain_mm=0.7 * radius, rng=rng)
    place = scene.region(finding.side, finding.place, *s.at(box))
    return box, np.minimum(np.minimum(f, scene.lung[box]), place + 1)


def consolidation(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: list) -> Painted:
    """Airless lung at 0 to 50 HU that ends at the fissures; bronchi stay open in it (air bronchograms)."""
    s = scene.space
    box, f = blob(scene, finding, rng, radius=scene.mm(17 + 24 * finding.severity), ragged=0.22)
    share = s.cover(f)
    tree = scene.airways.pick(scene.airways.level > 0)
    open_air = splat(s, *grains(s, tree.start, tree.end, np.maximum(tree.radius, 1.7 / s.scale)))[box]
    contrast = max(scene.plan.patient.blood_hu - 40, 0)
    scene.aerate(box, share * (1 - 0.9 * np.minimum(1.5 * open_air, 1)), rng.uniform(15, 45.0) + 0.25 * contrast)
    return box, share


def opacity(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: list) -> Painted:
    """Ground glass: a quarter to a half of the air is filled, so that vessels still show. One region, or patches."""
    s = scene.space
    if finding.form == "patchy":
        count, radius = 3 + int(4 * finding.severity), scene.mm(12 + 8 * finding.severity)
    else:
        count, radius = 1, scene.mm(20 + 18 * finding.severity)
    share = np.zeros(s.shape, np.float32)
    for _ in range(count):
        box, f = blob(scene, finding, rng, radius=radius * rng.uniform(0.85, 1.15), ragged=0.25)
        np.maximum(share[box], s.cover(f * np.float32(0.6)), out=share[box])  # hazy edge
    fill = 0.24 + 0.24 * finding.severity + rng.uniform(-0.03, 0.05)
    scene.aerate(EVERYWHERE, share * np.float32(fill), 40.0)
    return EVERYWHERE, share


def atelectasis(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: list) -> Painted:
    """Linear: one to three plates of collapsed lung. Subsegmental: a wedge from the pleura towards the hilum."""
    s = scene.space
    dense = 35 + 0.3 * max(scene.plan.patient.blood_hu - 40, 0)
    centre = scene.spot(finding.side, finding.place, rng, deep=(3.0, 20.0), prefer=scene.off_the_domes)
    share = np.zeros(s.shape, np.float32)
    if finding.form == "linear":
        reach = scene.mm(24 + 18 * finding.severity)
        half = max(scene.mm(1.8 + 1.6 * finding.severity), 0.3 * s.voxel)
        normal = np.array([1.0, 0, 0]) + rng.normal(0, 0.4, 3)
        normal /= np.linalg.norm(normal)
        for k in range(1 + int(2.5 * finding.severity)):
            middle = centre + 13 * k * normal
            box = s.around(middle, reach)
            p = [c - np.float32(o) for c, o in zip(s.at(box), middle, strict=True)]
            away = np.abs(combine(normal, p) + 1.5 * clouds(s, box, grain_mm=30.0, rng=rng))
            f = np.minimum(np.float32(half) - away, reach - np.sqrt(sum(c * c for c in p)))
            np.maximum(share[box], s.cover(f), out=share[box])
        box = EVERYWHERE
    else:
        way = scene.hila[finding.side] - centre
        way /= np.linalg.norm(way)
        base, length = scene.mm(13 + 13 * finding.severity), scene.mm(32 + 28 * finding.severity)
        tail = centre - 12 * way
        box = s.around(tail + way * length / 2, length)
        p = [c - np.float32(o) for c, o in zip(s.at(box), tail, strict=True)]
        along = combine(way, p)
        across = np.sqrt(np.maximum(sum(c * c for c in p) - along**2, 0))
        f = np.minimum(base * (1 - along / length) - across, along + 4) + 1.2 * clouds(s, box, grain_mm=12.0, rng=rng)
        share[box] = s.cover(np.minimum(f, length - along))
    own = scene.region(finding.side, "lung", *s.at(box))
    share[box] *= s.cover(np.minimum(scene.lung[box], own))
    scene.aerate(box, share[box], dense)
    return box, share[box]


def fibrosis(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: list) -> Painted:
    """Strands that run from a thickened pleura into the lung, with the scar between them."""
    s = scene.space

    def score(points: np.ndarray) -> np.ndarray:
        basal = scene.off_the_domes(points) if finding.place == "base" else 0
        return scene.off_the_wall(points) + basal

    centre = scene.spot(finding.side, finding.place, rng, deep=(1.0, 7.0), prefer=score)
    count = 9 + int(10 * finding.severity)
    start = centre + rng.normal(0, 9 + 4 * finding.severity, (count, 3))
    inward = scene.hila[finding.side] - centre
    inward /= np.linalg.norm(inward)
    way = inward + rng.normal(0, 0.45, (count, 3))
    end = start + way * rng.uniform(16, 28 + 16 * finding.severity, (count, 1))
    middle = (start + end) / 2 + rng.normal(0, 2.5, (count, 3))
    radius = np.tile(scene.mm(1.0) * rng.uniform(1.3, 2.0 + 0.6 * finding.severity, count), 2)
    strands = splat(s, *grains(s, np.concatenate([start, middle]), np.concatenate([middle, end]), radius))
    box = s.around(centre, 32.0)
    z, y, x = s.at(box)
    near = 22 + 8 * finding.severity - np.sqrt((z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2)
    depth = scene.lung[box]
    cap = s.cover(np.minimum(4.0 + 5 * finding.severity - depth + 1.5 * clouds(s, box, grain_mm=8.0, rng=rng), near))
    np.maximum(strands[box], 0.8 * cap, out=strands[box])
    strands *= s.cover(scene.lung)
    scene.aerate(EVERYWHERE, strands, 30.0)
    return EVERYWHERE, strands
