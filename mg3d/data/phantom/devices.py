"""Medical material: pacemaker and leads, port and catheter, wires round the sternum, and the streaks of metal."""

import numpy as np

from mg3d.data.phantom.findings_lung import Painted
from mg3d.data.phantom.mediastinum import on_heart
from mg3d.data.phantom.plan import Finding
from mg3d.data.phantom.scene import Scene
from mg3d.data.phantom.space import EVERYWHERE, axes, ellipsoid, grains, smooth, splat

METAL_HU = 9000.0  # before the scanner's scale ends at 3071


def device(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: list) -> Painted:
    """The device of `finding.form`."""
    share = np.zeros(scene.space.shape, np.float32)
    if finding.form == "sternal wires":
        wires(scene, finding, rng, share)
    else:
        implant(scene, finding, rng, share)
    return EVERYWHERE, share


def wires(scene: Scene, finding: Finding, rng: np.random.Generator, share: np.ndarray) -> None:
    """Three to seven loops round the sternum."""
    count = 3 + int(4.5 * finding.severity)
    angle = np.linspace(0, 2 * np.pi, 13)
    loops = []
    for height in np.linspace(-18, 84, count) + rng.normal(0, 2, count):
        y = np.interp(height, [-25, 8, 70, 88], [-81, -83, -56, -48])
        loops.append(np.stack([height + 2 * np.sin(angle), y + 9 * np.cos(angle), 14 * np.sin(angle)], 1))
    start = np.concatenate([loop[:-1] for loop in loops])
    end = np.concatenate([loop[1:] for loop in loops])
    thread(scene, share, start, end, radius=scene.mm(0.85))


def implant(scene: Scene, finding: Finding, rng: np.random.Generator, share: np.ndarray) -> None:
    """A case under the skin of the chest, and leads or a catheter through the superior vena cava."""
    k = 1 if finding.side == "left" else -1
    pacemaker = finding.form == "pacemaker"
    home = np.array([68.0 if pacemaker else 58.0, -72, 72.0 * k]) + rng.normal(0, 3, 3)
    radii = (22.0, 6.5, 25.0) if pacemaker else (11.0, 6.0, 11.0)
    box, f = ellipsoid(scene.space, home, axes(tuple(r / scene.space.scale for r in radii)))
    case = scene.space.cover(f)
    scene.paint(box, case, METAL_HU / 3 if pacemaker else rng.uniform(900, 2200))
    np.maximum(share[box], case, out=share[box])
    down = [home, [90, -50, 62 * k], [95, -24, 36 * k], [80, -14, -20], [40, -8, -28]]
    if pacemaker:
        tips = [on_heart(scene, np.array([0.45, -0.55, 0.15]))]
        tips += [on_heart(scene, np.array([-0.5, -0.5, 0.0]))] if finding.severity > 0.5 else []
        ends = [[[-8, -12, -28], tip] for tip in tips]
        streaks(scene, home, rng)
    else:
        ends = [[[14, -8, -28]]]
    for end in ends:
        course = smooth(np.array([*down, *end], np.float64))
        thread(
            scene,
            share,
            course[:-1],
            course[1:],
            radius=scene.mm(1.1 if pacemaker else 1.0),
            hu=METAL_HU if pacemaker else 4000.0,
        )


def thread(
    scene: Scene, share: np.ndarray, start: np.ndarray, end: np.ndarray, *, radius: float, hu: float = METAL_HU
) -> None:
    """Paint a thin tube and enter it into the share."""
    part = splat(scene.space, *grains(scene.space, start, end, np.full(len(start), radius)))
    scene.paint(EVERYWHERE, part, hu)
    np.maximum(share, np.minimum(part * 6, 1), out=share)  # a wire fills a tenth of a voxel, yet the whole voxel shines


def streaks(scene: Scene, home: np.ndarray, rng: np.random.Generator) -> None:
    """Dark and bright rays in the slices of a thick piece of metal."""
    s = scene.space
    reach = np.array([22, 90, 90])
    box = s.box(home - reach, home + reach)
    z, y, x = s.at(box)
    angle = np.arctan2(y - home[1], x - home[2])
    far = np.hypot(y - home[1], (x - home[2]) * 0.7)
    rays = np.cos(angle * 14 + rng.uniform(0, 6)) * np.exp(-far / 30) * np.clip((far - 8) / 12, 0, 1)
    scene.hu[box] += 110 * rays * np.exp(-(((z - home[0]) / 14) ** 2)) * (scene.body[box] > 0)
