"""The trunk: body, chest wall, lungs, bones and upper abdomen, in HU, with the patient's own build.

Numbers are patient millimetres (see `space`): the origin lies in the middle of the chest, a little below the carina.
"""

import numpy as np

from mg3d.data.phantom.plan import ORGANS
from mg3d.data.phantom.scene import OBLIQUE, Scene
from mg3d.data.phantom.space import EVERYWHERE, axes, chain, clouds, column, combine, ellipsoid

CAGE_X, CAGE_Y = 124.0, 77.0  # half axes of the inner chest wall
RIB_STEP = 20.0


def body(scene: Scene) -> None:
    """Skin to chest wall: a fat ring, and shoulders that narrow to the neck."""
    s, patient = scene.space, scene.plan.patient
    fat = scene.mm(patient.fat_mm)
    flat = s.z.ravel()
    knots = [-190, -60, 60, 100, 128, 150, 190]
    half_x = np.interp(flat, knots, [140, 142, 141, 150, 140, 80, 60]) + fat
    half_y = np.interp(flat, knots, [92, 92, 90, 84, 72, 60, 56]) + 0.8 * fat
    back = np.interp(flat, knots, [4, 4, 4, 8, 12, 12, 10])
    power = np.float32(2.6)
    wide = np.abs(s.x) ** power * (half_x**-2.6).astype(np.float32)[:, None, None]
    deep = np.abs(s.y - back.astype(np.float32)[:, None, None]) ** power
    deep *= (half_y**-2.6).astype(np.float32)[:, None, None]
    deep += wide
    scene.body = (1 - deep ** np.float32(1 / 2.6)) * np.float32(100)
    if patient.sex == "female":
        breasts(scene, fat)
    share = s.cover(scene.body)
    scene.hu[:] = -1000 + 900 * share
    scene.organs[share > 0.5] = ORGANS.index("chest wall")


def breasts(scene: Scene, fat: float) -> None:
    """Two soft hills in front of the chest wall, added to the body."""
    for side in (-1, 1):
        matrix = axes((44, 24 + fat, 48))
        box, f = ellipsoid(scene.space, np.array([-8.0, -84, 66.0 * side]), matrix)
        np.maximum(scene.body[box], f, out=scene.body[box])


def thorax(scene: Scene) -> None:
    """Fields of the chest cavity, the diaphragm and the pleural cavities before the mediastinum is carved out."""
    s, patient, rng = scene.space, scene.plan.patient, scene.rng(1)
    grow = 1 + 0.06 * (patient.lung - 1)
    power = 2.4
    flat = ((np.abs(s.x) / (CAGE_X * grow)) ** power + (np.abs(s.y) / (CAGE_Y * grow)) ** power) + 1e-6
    ring = flat ** (1 / power)
    lean = np.hypot((np.abs(s.x) / CAGE_X) ** (power - 1) / CAGE_X, (np.abs(s.y) / CAGE_Y) ** (power - 1) / CAGE_Y)
    steep = np.minimum(ring ** (power - 1) / np.maximum(lean, 1e-6), 90).astype(np.float32)
    up = np.clip((s.z + 60) / 176, 0, 1)
    taper = (1 - up**2.7) ** (1 / 2.3)
    scene.cage = (taper - ring).astype(np.float32) * steep
    front = -77 + 0.42 * np.maximum(s.z - 8, 0)
    np.minimum(scene.cage, ((s.y - front) * np.float32(0.92)).astype(np.float32), out=scene.cage)
    sink = 75 * (patient.lung - 1) + rng.normal(0, 4)
    lift = lobe_loss(scene)
    scene.dome = s.z - np.maximum(domes(scene, sink, lift), -126).astype(np.float32)
    scene.fissure = (-8 - 0.4 * sink + rng.normal(0, 3), 4 - 0.4 * sink + rng.normal(0, 3))
    wide = 2.5 + 25 * np.sqrt(np.clip(1 - ((s.y + 6) / 68) ** 2, 0, 1))
    waist = np.interp(s.z.ravel(), [-120, -20, 40, 80, 115], [1.0, 0.95, 1.0, 0.95, 0.8]).astype(np.float32)
    scene.lung = np.abs(s.x) - wide.astype(np.float32) * waist[:, None, None]
    np.minimum(scene.lung, scene.cage, out=scene.lung)
    np.minimum(scene.lung, (scene.dome - 2) * np.float32(0.8), out=scene.lung)


def lobe_loss(scene: Scene) -> dict[str, float]:
    """How far each half of the diaphragm rises: atelectasis takes a little volume."""
    lift = {"right": 0.0, "left": 0.0}
    for finding in scene.plan.findings:
        if finding.label == "Atelectasis":
            lift[finding.side] = max(lift[finding.side], 8 * finding.severity)
    return lift


def domes(scene: Scene, sink: float, lift: dict[str, float]) -> np.ndarray:
    """Height [1, H, W] of the diaphragm: two domes and the central tendon under the heart."""
    x, y = scene.space.x, scene.space.y
    right = -48 - sink + lift["right"] - 60 * (((x + 60) / 76) ** 2 + ((y + 14) / 84) ** 2)
    left = -58 - sink + lift["left"] - 60 * (((x - 60) / 76) ** 2 + ((y + 14) / 84) ** 2)
    tendon = -68 - sink - 40 * ((x / 55) ** 2 + ((y + 20) / 60) ** 2)
    return np.maximum(np.maximum(right, left), tendon)


def muscles(scene: Scene) -> None:
    """Chest wall muscle round the cage, pectorals, paraspinal muscles, shoulders and neck."""
    s, rng = scene.space, scene.rng(2)
    hu = rng.normal(48, 6)
    back = np.clip(s.y / CAGE_Y, 0, 1) ** 4 * np.exp(-(((np.abs(s.x) - 32) / 26) ** 2))
    side = np.exp(-(((np.abs(s.x) - 112) / 22) ** 2)) * (s.y > -20)
    thick = (12 + 14 * back + 5 * side).astype(np.float32)
    front = np.exp(-(((np.abs(s.x) - 55) / 34) ** 2)) * (s.y < 0)
    high = np.clip(s.z / 40, 0, 1) * np.float32(rng.uniform(5, 12))
    share = s.cover(scene.cage + thick + (high * front).astype(np.float32))
    share *= s.cover(scene.body - 4)
    scene.paint(EVERYWHERE, share, hu)
    neck = chain(s, np.array([[118.0, 10, 0, 46], [190, 8, 0, 46]]))
    shoulders = [ellipsoid(s, np.array([122.0, 22, 118.0 * k]), axes((32, 40, 56))) for k in (-1, 1)]
    for box, f in (neck, *shoulders):
        scene.paint(box, s.cover(np.minimum(f, scene.body[box] - 5)), hu)


def inside(scene: Scene) -> None:
    """Fat of the mediastinum and the abdomen, then the lungs with their gravity gradient and the diaphragm."""
    s, patient, rng = scene.space, scene.plan.patient, scene.rng(3)
    wall = s.cover(scene.cage)
    scene.paint(EVERYWHERE, wall, rng.normal(-95, 8))
    deep = wall > 0.5
    scene.organs[deep] = ORGANS.index("mediastinum")
    below = s.cover(-scene.dome) * wall
    scene.organs[below > 0.5] = 0
    rim = s.cover(1.5 - np.abs(scene.dome + 1)) * wall
    scene.paint(EVERYWHERE, rim, 45.0)
    scene.organs[(rim > 0.25) & deep] = ORGANS.index("diaphragm")
    abdomen(scene)
    reach = np.float32(-0.8 * s.voxel)
    lining = (np.abs(scene.cage) < -reach) & (scene.cavity > reach) & (scene.dome > 0)
    scene.organs[lining] = ORGANS.index("pleura")
    base = -848 - 210 * (patient.lung - 1) + rng.normal(0, 12)
    slope = rng.uniform(0.15, 0.45)
    dependent = rng.uniform(0, 60) * np.exp(-np.clip(CAGE_Y - s.y, 0, None) / 9)
    air = (base + slope * s.y + dependent).astype(np.float32) + np.float32(0.06) * (s.z * np.float32(rng.normal(0, 1)))
    air = air + np.float32(rng.uniform(4, 18)) * clouds(s, EVERYWHERE, grain_mm=44.0, rng=rng)  # uneven perfusion
    share = s.cover(scene.lung)
    scene.paint(EVERYWHERE, share, air)
    full = share > 0.5
    scene.organs[full & (s.x < 0)] = ORGANS.index("right lung")
    scene.organs[full & (s.x >= 0)] = ORGANS.index("left lung")
    fissures(scene, share)


def fissures(scene: Scene, share: np.ndarray) -> None:
    """The oblique fissures and the horizontal one as faint sheets."""
    s = scene.space
    thick = np.float32(scene.rng(4).uniform(0.2, 0.7) / s.voxel)
    oblique = (s.z - np.float32(scene.fissure[0]) - np.float32(OBLIQUE) * s.y) / np.float32(np.hypot(1, OBLIQUE))
    level = np.where((s.x < 0) & (oblique > 0), np.abs(s.z - np.float32(scene.fissure[1])), 99)
    sheet = np.clip(1 - np.minimum(np.abs(oblique), level) / np.float32(s.voxel), 0, 1)
    scene.aerate(EVERYWHERE, sheet * share * thick, 20.0)


def abdomen(scene: Scene) -> None:
    """Liver on the right, stomach with fluid and gas and the spleen on the left, all under the domes."""
    s, patient, rng = scene.space, scene.plan.patient, scene.rng(5)
    contrast = max(patient.blood_hu - 40, 0)
    liver = np.minimum(-scene.dome - 3, scene.cage - 4)
    edge = rng.normal(30, 8) - s.x * np.float32(0.8) + np.minimum(s.z + 80, 0) * np.float32(0.4)
    np.minimum(liver, edge, out=liver)
    np.minimum(liver, 50 - s.y + (s.x < -30) * np.float32(40), out=liver)
    scene.paint(EVERYWHERE, s.cover(liver), rng.normal(52, 10.0) + 0.25 * contrast, organ="liver")
    box, f = ellipsoid(s, np.array([-98.0 + rng.normal(0, 6), 42, 84]), axes((40, 34, 24)))
    f = np.minimum(f, np.minimum(-scene.dome[box] - 3, scene.cage[box] - 4))
    scene.paint(box, s.cover(f), rng.normal(48, 4.0) + 0.4 * contrast, organ="spleen")
    full = rng.uniform(0.7, 1.1)
    box, f = ellipsoid(s, np.array([-92.0, -18, 50]), axes((36 * full, 38 * full, 34 * full)))
    f = np.minimum(f, np.minimum(-scene.dome[box] - 5, scene.cage[box] - 7))
    scene.paint(box, s.cover(f), 45.0, organ="stomach")
    inner = s.cover(f - 4)
    scene.paint(box, inner, rng.uniform(-10, 60))
    level = rng.uniform(-48, -8)  # gas rises to the front
    scene.paint(box, inner * s.cover(level - s.at(box)[1]), -960.0)


def bones(scene: Scene) -> None:
    """Ribs, sternum, spine with discs, shoulder blades and collar bones; bone thins with age."""
    s, patient, rng = scene.space, scene.plan.patient, scene.rng(6)
    density = float(np.clip(1.25 - 0.009 * (patient.age - 40) + rng.normal(0, 0.1), 0.55, 1.5))
    ribs(scene, density)
    front = np.array([[-25.0, -81, 0, 5], [8, -83, 0, 6], [70, -56, 0, 6], [88, -48, 0, 7]])
    for shift in (-7.0, 0.0, 7.0):
        box, f = chain(s, front + np.array([0, 0, shift, 0]))
        scene.paint(box, s.cover(f), 190 * density, organ="ribs")
    for side in (-1, 1):
        clavicle = [[90, -50, 16 * side, 5.5], [102, -46, 60 * side, 5], [116, -20, 125 * side, 6]]
        box, f = chain(s, np.array(clavicle))
        scene.paint(box, s.cover(f), 330 * density, organ="ribs")
        shoulder_blade(scene, side, density)
    spine(scene, density)


def shoulder_blade(scene: Scene, side: int, density: float) -> None:
    """A thin three-cornered plate that slides on the chest wall, with muscle on both faces and a ridge behind."""
    s = scene.space
    inner, outer, tip = np.array([[100.0, 72, 68], [88, 34, 120], [10, 78, 92]]) * [1, 1, side]
    u, v = outer - inner, tip - inner
    normal = np.cross(u, v)
    normal /= np.linalg.norm(normal)
    box = s.box(np.minimum(np.minimum(inner, outer), tip) - 16, np.maximum(np.maximum(inner, outer), tip) + 16)
    p = [c - np.float32(o) for c, o in zip(s.at(box), inner, strict=True)]
    flat = np.linalg.pinv(np.stack([u, v], 1))  # barycentric coordinates along the two edges
    a, b = combine(flat[0], p), combine(flat[1], p)
    rim = np.minimum(np.minimum(a, b), 1 - a - b) * 70
    away = np.abs(combine(normal, p) - 14 * a * (1 - a) * side)
    outside = -scene.cage[box] - 13
    flesh = np.minimum(np.minimum(13 - away, rim + 6), np.minimum(outside, scene.body[box] - 4))
    scene.paint(box, s.cover(flesh), 46.0)
    plate = np.minimum(np.minimum(2.4 - away, rim), outside - 3)
    scene.paint(box, s.cover(plate), 330 * density, organ="ribs")
    top = np.stack([inner + np.array([-8, 6, 0]), outer + np.array([4, 4, 8 * side])])
    ridge, f = chain(s, np.pad(top, ((0, 0), (0, 1)), constant_values=5))
    scene.paint(ridge, s.cover(np.minimum(f, -scene.cage[ridge] - 14)), 300 * density, organ="ribs")


def ribs(scene: Scene, density: float) -> None:
    """Twelve pairs of arcs in the shell outside the cage, falling from the spine to cartilage in front."""
    s = scene.space
    theta = np.arctan2(np.abs(s.x), s.y)
    drop = 62 * np.sin(theta / 2) ** 2
    where = np.nonzero((scene.cage < 3) & (scene.cage > -15))
    out = scene.cage[where] + 6
    height = s.z[where[0], 0, 0] + drop[0, where[1], where[2]]
    along = (height + 118) % RIB_STEP - RIB_STEP / 2
    f = 5.2 - np.hypot(out * 1.3, along * 0.85)
    f[(height > 118) | (height < -118)] = -9
    angle = theta[0, where[1], where[2]]
    hu = np.where(angle > 2.35, 90.0, 380 * density).astype(np.float32)
    share = s.cover(f.astype(np.float32))
    scene.hu[where] += share * (hu - scene.hu[where])
    scene.organs[tuple(i[share > 0.5] for i in where)] = ORGANS.index("ribs")


def spine(scene: Scene, density: float) -> None:
    """Vertebral bodies, discs, canal and processes."""
    s = scene.space
    box = s.box(np.array([-200.0, 36, -40]), np.array([200.0, 108, 40]))
    z, y, x = s.at(box)
    y = y + 8 * ((z - 5) / 120) ** 2  # kyphosis
    beat = np.abs((z + 300) % 24 - 12)  # 12 at the middle of a disc
    disc = np.clip((beat - 8.5) / 1.5, 0, 1)
    q = np.sqrt((x / 18) ** 2 + ((y - 56) / 14) ** 2) + 0 * z
    core = (1 - q) * 15
    arch = np.minimum(13 - np.hypot(x, y - 79), 8.5 - beat + 6)
    spike = np.minimum(4.5 - np.abs(x), np.minimum(y - 84, 101 - y)) + 0 * z
    wing = np.minimum(np.minimum(5 - np.abs(y - 80), 32 - np.abs(x)), 6 - beat)
    posterior = np.maximum(np.maximum(arch, np.minimum(spike, 12 - beat)), wing)
    scene.paint(box, s.cover(posterior), 340 * density, organ="spine")
    body_hu = 80 * disc + (1 - disc) * density * (150 + 160 * np.clip(1 - core / 5, 0, 1))
    scene.paint(box, s.cover(core), body_hu.astype(np.float32), organ="spine")
    canal = 8.5 - np.hypot(x, y - 78) + 0 * z
    scene.paint(box, s.cover(canal), 25.0, organ="spine")


def spine_room(scene: Scene) -> None:
    """Carve the spine out of the lungs."""
    s = scene.space
    box = s.box(np.array([-200.0, 36, -40]), np.array([200.0, 108, 40]))
    z, y, x = s.at(box)
    y = y + 8 * ((z - 5) / 120) ** 2
    q = np.sqrt((x / 18) ** 2 + ((y - 56) / 14) ** 2)
    scene.carve(box, np.maximum((1 - q) * 15, 13 - np.hypot(x, y - 79)), margin=3.0)


def table(scene: Scene) -> None:
    """The scanner's table: a plate behind the back, mostly cut away by preparation."""
    s = scene.space
    level = 108 + scene.mm(0.8 * scene.plan.patient.fat_mm)
    box, f = column(s, np.array([[-400.0, level + 420, 0, 412], [400, level + 420, 0, 412]]))
    scene.hu[box] += s.cover(3 - np.abs(f)) * 850 * (scene.body[box] < -4)
