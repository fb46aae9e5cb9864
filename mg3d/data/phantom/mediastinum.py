"""Heart, great vessels, airways, oesophagus, and the trees that grow from the hila into the lungs."""

from dataclasses import dataclass

import numpy as np

from mg3d.data.phantom.plan import ORGANS
from mg3d.data.phantom.scene import Scene
from mg3d.data.phantom.space import EVERYWHERE, Box, chain, column, ellipsoid, grains, smooth, splat
from mg3d.data.phantom.trees import grow

LEAVES = 128  # per lung and tree of arteries; veins have half
CARINA = np.array([30.0, 14, 1])
LONG_AXIS = np.array([-0.46, -0.50, 0.73])  # of the heart, from base to apex (z, y, x)


@dataclass(frozen=True)
class Part:
    """A structure that is known before it is painted, because the lungs must make room for it."""

    box: Box
    field: np.ndarray
    hu: float
    organ: str
    margin: float = 2.0  # fat between it and the lung, patient mm


def heart(scene: Scene) -> None:
    """Place the heart ellipsoid so that its width is the wished share of the inner chest width."""
    patient = scene.plan.patient
    ratio = patient.heart_ratio
    for finding in scene.plan.findings:
        if finding.label == "Cardiomegaly":
            ratio = max(ratio, 0.52 + 0.13 * finding.severity)
    u = LONG_AXIS / np.linalg.norm(LONG_AXIS)
    v = np.cross(u, [1.0, 0, 0])
    v /= np.linalg.norm(v)
    frame = np.stack([u, v, np.cross(u, v)])
    radii = np.array([1.24, 0.97, 0.93])
    half = np.linalg.norm(frame.T * radii, axis=1)  # half extents along z, y, x at unit size
    wide = ratio * 122
    scale = np.array([45 * (wide / 55) ** 0.7 / half[0], 46 * (wide / 55) ** 0.55 / half[1], wide / half[2]])
    matrix = np.diag(1 / radii) @ frame @ np.diag(1 / scale)
    grown = wide - 55
    centre = np.array([-31.0 - 0.25 * grown - 25 * (patient.lung - 1), -21 + 0.1 * grown, 15 + 0.2 * grown])
    scene.heart = centre, matrix


def on_heart(scene: Scene, point: np.ndarray) -> np.ndarray:
    """Patient coordinates [..., 3] of a point of the heart's unit ball (axes: to the apex, back and left, down)."""
    centre, matrix = scene.heart
    return centre + point @ np.linalg.inv(matrix).T


def great_vessels(scene: Scene) -> list[Part]:
    """Aorta and arch branches, pulmonary arteries, great veins; contrast is densest where it flows in."""
    rng = scene.rng(10)
    return [*aorta(scene, rng), *great_veins(scene, rng), *pulmonary_arteries(scene, rng)]


def aorta(scene: Scene, rng: np.random.Generator) -> list[Part]:
    """The aorta in three named parts, over the left main bronchus, with the three arteries of its arch."""
    s, blood = scene.space, scene.plan.patient.blood_hu
    r = scene.mm(scene.plan.patient.aorta_mm) / 2
    w = rng.normal(0, 2, 3)  # everybody's arch lies a little differently
    top = 60 + w[0] + 0.4 * (r - 15)
    first, last = [top - 6, -17, -9, 0.92 * r], [top - 3, 20, 23 + w[1], 0.85 * r]
    ascending = [[4, -20, -2, r], [20, -23, -13, r], [40, -22, -15, r * 0.97], first]
    arch = [first, [top, -10, 4, 0.9 * r], [top, 4, 17, 0.87 * r], last]
    bend = [last, [top - 12, 34, 25, 0.83 * r], [30, 38, 24, 0.8 * r]]
    down = [[-200, 42, 6, 0.66], [-80, 40, 14 + w[1], 0.72], [0, 40, 22 + w[2], 0.76], [30, 38, 24, 0.8]]
    scene.aorta = {
        "ascending aorta": smooth(np.array(ascending)),
        "aortic arch": smooth(np.array(arch)),
        "descending aorta": np.array(down) * [1, 1, 1, r],
    }
    parts = [
        Part(*column(s, scene.aorta["descending aorta"]), blood, "aorta"),
        Part(*chain(s, np.array(bend)), blood, "aorta"),
    ]
    parts += [Part(*chain(s, scene.aorta[k]), blood, "aorta") for k in ("ascending aorta", "aortic arch")]
    for low, high, radius in ((-4, -26, 6.5), (8, 20, 4.5), (20, 34, 5)):
        path = [[top, -8 + 0.6 * low, low, radius], [112, -4, high, radius], [190, 0, high, 0.8 * radius]]
        parts.append(Part(*column(s, np.array(path)), blood, "mediastinum"))
    return parts


def great_veins(scene: Scene, rng: np.random.Generator) -> list[Part]:
    """Superior and inferior vena cava, left brachiocephalic vein, azygos."""
    s, blood = scene.space, scene.plan.patient.blood_hu
    inflow = blood + (rng.uniform(0, 300) if blood > 100 else 0)
    cava = np.array([[2.0, -6, -29, 9.5], [40, -7, -28, 9], [80, -12, -24, 7.5], [112, -8, -32, 6]])
    left = np.array([[78.0, -14, -22, 6], [84, -28, 4, 6], [94, -22, 30, 6], [112, -8, 38, 6]])
    lower = np.array([[-200.0, 30, -20, 11], [-80, 14, -22, 11], [-45, 4, -24, 11]])
    azygos = np.array([[-200.0, 42, -7, 3.5], [36, 40, -9, 4]])
    return [
        Part(*column(s, cava), inflow, "mediastinum"),
        Part(*chain(s, left), inflow, "mediastinum"),
        Part(*column(s, lower), 0.6 * blood + 16, "mediastinum"),
        Part(*column(s, azygos), 0.7 * blood + 12, "mediastinum", 3.0),
    ]


def pulmonary_arteries(scene: Scene, rng: np.random.Generator) -> list[Part]:
    """Trunk and main branches; their ends are the hila."""
    s, blood = scene.space, scene.plan.patient.blood_hu
    blood += rng.uniform(-30, 100) if blood > 100 else 0
    trunk = [[0, -38, 14, 13], [22, -26, 20, 13], [28, -8, 22, 12]]
    left = [[28, -8, 22, 12], [28, 6, 32, 10], [22, 13, 42, 8.5], [8, 18, 45, 7]]
    right = [[26, -10, 18, 11], [18, -1, -8, 10], [15, 5, -38, 9], [2, 12, -46, 7]]
    scene.hila = {"right": np.array([14.0, 6, -40]), "left": np.array([22.0, 12, 40])}
    wide = np.array([1, 1, 1, rng.normal(1, 0.07)])
    paths = [smooth(np.array(path) * wide) for path in (trunk, left, right)]
    return [Part(*chain(s, path), blood, "pulmonary artery", 1.0) for path in paths]


def gullet(scene: Scene) -> Part:
    """The oesophagus; its hold on the lung keeps the azygo-oesophageal recess open."""
    path = np.array(
        [[-95.0, 18, 16, 6], [-70, 24, 10, 7], [-20, 31, 4, 7], [30, 29, 2, 6.5], [110, 22, 3, 6.5], [190, 18, 3, 6.5]]
    )
    return Part(*column(scene.space, path), 42.0, "oesophagus", 3.0)


def make_room(scene: Scene, parts: list[Part]) -> None:
    """Carve heart, vessels and oesophagus out of the lungs, then remember the pleural cavities."""
    centre, matrix = scene.heart
    box, f = ellipsoid(scene.space, centre, matrix, margin=8.0)
    scene.carve(box, f, margin=5.0)
    for part in parts:
        scene.carve(part.box, part.field, margin=part.margin)
    scene.cavity = scene.lung.copy()


def paint_heart(scene: Scene) -> None:
    """Muscle, four chambers of blood, fat in the grooves and the line of the pericardium."""
    s, patient, rng = scene.space, scene.plan.patient, scene.rng(11)
    centre, matrix = scene.heart
    box, f = ellipsoid(s, centre, matrix, margin=8.0)
    share = s.cover(f)
    contrast = max(patient.blood_hu - 40, 0)
    y = s.at(box)[1]
    line = np.clip(1 - np.abs(f + 3) / s.voxel, 0, 1) * np.float32(min(1.5 / s.voxel, 1))
    scene.paint(box, line * (scene.cage[box] > 3), 30.0)
    scene.paint(box, share, 48 + 0.35 * contrast, organ="heart")
    fat = s.cover(f) * s.cover(rng.uniform(2, 5) - f) * np.clip(0.5 - (y - centre[1]) / 40, 0, 1)
    scene.paint(box, fat, -85.0)
    chambers = (  # place in the ball, size, how much of the contrast
        (np.array([0.26, 0.26, 0.12]), 0.46, 1.0),  # left ventricle
        (np.array([0.12, -0.46, 0.10]), 0.44, 1.0),  # right ventricle
        (np.array([-0.50, 0.34, -0.34]), 0.40, 1.0),  # left atrium
        (np.array([-0.52, -0.42, 0.10]), 0.42, 1.05),  # right atrium
    )
    for place, size, gain in chambers:
        part, g = ellipsoid(s, on_heart(scene, place), matrix / size)
        scene.paint(part, s.cover(g), patient.blood_hu * gain)


def paint_parts(scene: Scene, parts: list[Part]) -> None:
    """Vessels and the oesophagus, with a little air in some gullets."""
    for part in parts:
        scene.paint(part.box, scene.space.cover(part.field), part.hu, organ=part.organ)
        if part.organ == "oesophagus" and scene.rng(12).random() < 0.4:
            z = scene.space.at(part.box)[0]
            middle = scene.rng(12).uniform(-40, 90)
            air = scene.space.cover(np.minimum(part.field - 4.5, 12 - np.abs(z - middle)))
            scene.paint(part.box, air, -900.0)


def central_airways(scene: Scene) -> None:
    """Trachea and main bronchi, with walls."""
    s, rng = scene.space, scene.rng(13)
    c = CARINA
    r = (9.3 if scene.plan.patient.sex == "male" else 8.0) + rng.normal(0, 0.5)
    trachea = np.array([[c[0], c[1], c[2], r], [100.0, 8, 0, r], [190, -4, 0, r]])
    right = np.array([[*c, 7.2], [14.0, 14, -24, 6.5], [-4, 18, -34, 5]])
    left = np.array([[*c, 7], [12.0, 18, 26, 6], [4, 22, 36, 5]])
    shapes = [column(s, trachea), chain(s, smooth(right), margin=2.0), chain(s, smooth(left), margin=2.0)]
    for box, f in shapes:
        scene.paint(box, s.cover(f + 2), 35.0, organ="airways")
    for box, f in shapes:
        scene.paint(box, s.cover(f), -990.0)


def trees(scene: Scene) -> None:
    """Arteries with airways at their side, and veins towards the left atrium."""
    s, patient, rng = scene.space, scene.plan.patient, scene.rng(14)
    targets = {k: leaves(scene, k, LEAVES, rng) for k in ("right", "left")}
    roots = np.stack([scene.hila["right"] + [-4, 3, -4], scene.hila["left"] + [-6, 4, 3]])
    leaf = rng.uniform(0.65, 1.0)
    scene.arteries = grow(roots, np.stack([targets["right"], targets["left"]]), leaf_mm=leaf, rng=rng)
    atrium = np.array([[-4.0, 12, -30], [-4, 14, 34]])
    veins = grow(
        atrium, np.stack([leaves(scene, k, LEAVES // 2, rng) for k in ("right", "left")]), leaf_mm=leaf, rng=rng
    )
    twins = scene.arteries.pick(scene.arteries.level < 5)
    sideways = np.stack([np.zeros_like(twins.radius), 1.6 * twins.radius, 0.8 * twins.radius], 1)
    scene.airways = twins.shifted(sideways + 0.8)
    lung = s.cover(scene.lung)
    blood = splat(s, *_join(grains(s, t.start, t.end, t.radius) for t in (scene.arteries, veins)))
    scene.paint(EVERYWHERE, blood * lung, 0.75 * patient.blood_hu + 10)
    bronchi = scene.airways
    lumen, wall = 0.8 * bronchi.radius, 0.22 * bronchi.radius + 0.3
    shell = splat(s, *grains(s, bronchi.start, bronchi.end, lumen, wall=wall))
    scene.paint(EVERYWHERE, shell * lung, 10.0)
    tubes = splat(s, *grains(s, bronchi.start, bronchi.end, lumen))
    scene.paint(EVERYWHERE, tubes * lung, -985.0)
    scene.organs[(tubes * lung > 0.5)] = ORGANS.index("airways")


def _join(pairs) -> tuple[np.ndarray, np.ndarray]:
    points, volumes = zip(*pairs, strict=True)
    return np.concatenate(points), np.concatenate(volumes)


def leaves(scene: Scene, side: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Points [count, 3] spread over one lung, a little below its surface."""
    points = np.array([-126.0, -78, 3]) + rng.random((2400, 3)) * np.array([242.0, 156, 122])
    points[:, 2] *= 1 if side == "left" else -1
    good = points[scene.lung[scene.space.nearest(points)] > 3]
    return good[np.arange(count) % max(len(good), 1)] if len(good) else np.tile(scene.hila[side], (count, 1))


def small_nodes(scene: Scene) -> None:
    """Normal lymph nodes, up to 7 mm, and strands in the mediastinal fat: everybody has them."""
    rng = scene.rng(15)
    stations = np.array(
        [[56.0, 4, -22], [40, 8, 30], [12, 22, 4], [70, -26, 8], [30, -34, -2], [74, 0, 112], [70, 6, -114]]
    )
    for station in stations[rng.random(len(stations)) < 0.6]:
        radii = tuple(rng.uniform(2.0, 3.6, 3) / scene.space.scale)
        box, f = ellipsoid(scene.space, station + rng.normal(0, 3, 3), np.diag(1 / np.asarray(radii)))
        outside = scene.space.cover(-scene.lung[box]) * (scene.body[box] > 8)
        scene.paint(box, scene.space.cover(f) * outside, 35.0)
