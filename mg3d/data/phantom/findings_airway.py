"""Findings of airways and lobules: emphysema, mosaic, bronchiectasis, peribronchial and septal thickening."""

import numpy as np

from mg3d.data.phantom.findings_lung import Painted
from mg3d.data.phantom.plan import Finding
from mg3d.data.phantom.scene import Scene
from mg3d.data.phantom.space import EVERYWHERE, Box, clouds, grains, splat
from mg3d.data.phantom.trees import Tree


def flank(scene: Scene, side: str) -> Box:
    """The box that holds one lung."""
    low, high = np.array([-130.0, -82, 0]), np.array([118.0, 82, 132])
    if side == "right":
        low[2], high[2] = -132, 0
    return scene.space.box(low, high)


def thin_air(scene: Scene, box: Box, share: np.ndarray, hu: np.ndarray | float) -> None:
    """Let the air of the lung fall towards `hu`; vessels stay."""
    view = scene.hu[box]
    view += share * np.minimum(hu - view, 0) * np.clip((-550 - view) / 150, 0, 1)


def emphysema(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: list) -> Painted:
    """Clustered holes at -970 to -1000 HU in 8 to 42 per cent of a lobe; the paraseptal form lines the pleura."""
    s = scene.space
    box = flank(scene, finding.side)
    lung = scene.lung[box]
    place = scene.region(finding.side, finding.place, *s.at(box))
    where = np.minimum(lung, place)
    paraseptal = finding.form == "paraseptal"
    holes = clouds(s, box, grain_mm=12.0 if paraseptal else 9.0, rng=rng)
    holes += (0.25 if paraseptal else 0.7) * clouds(s, box, grain_mm=42.0, rng=rng)
    if paraseptal:
        holes -= np.maximum(scene.cage[box] - 11, 0) / 4
    inside = where > 0
    if not inside.any():
        return box, np.zeros_like(lung)
    extent = (0.08 + 0.16 * finding.severity) if paraseptal else (0.12 + 0.30 * finding.severity)
    edge = np.quantile(holes[inside], 1 - extent)
    share = np.clip((holes - edge) / 0.5 + 0.5, 0, 1) * s.cover(np.minimum(where, lung - 1))
    thin_air(scene, box, share, rng.uniform(-1000, -975))
    return box, share


def mosaic(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: list) -> Painted:
    """A patchwork with sharp borders; the mask holds the dark patches, where air is trapped."""
    s = scene.space
    box = flank(scene, finding.side)
    field = 6 * clouds(s, box, grain_mm=20.0, rng=rng)
    lung = s.cover(scene.lung[box] - 1)
    dark = s.cover(field) * lung
    step = 32 + 45 * finding.severity
    thin_air(scene, box, dark, scene.hu[box] - step)
    scene.aerate(box, (lung - dark) * np.float32(step / 850), 40.0)
    return box, dark


def branches(scene: Scene, finding: Finding, rng: np.random.Generator, *, count: int, levels: tuple[int, int]) -> Tree:
    """Up to `count` neighbouring branches of a place, chosen among those of some levels, with their children."""
    tree = scene.arteries
    middle = tree.middle
    inside = scene.region(finding.side, finding.place, *middle.T)
    inside = np.minimum(inside, scene.lung[scene.space.nearest(middle)])
    fits = (tree.level >= levels[0]) & (tree.level <= levels[1])
    score = np.where(fits, inside, -1e3)
    candidates = np.nonzero(score > 1)[0]
    if not len(candidates):
        return tree.pick(np.argsort(-score)[:count])
    seed = middle[rng.choice(candidates)]
    order = np.argsort(np.linalg.norm(middle[candidates] - seed, axis=1))
    return tree.pick(candidates[order[:count]])


def bronchi(
    scene: Scene, tree: Tree, lumen: np.ndarray, wall: np.ndarray, *, hu: float
) -> tuple[np.ndarray, np.ndarray]:
    """Paint thick or wide bronchi beside their arteries; shares [D, H, W] of the lumina and of the walls."""
    s = scene.space
    aside = (tree.radius + lumen + wall)[:, None] * np.array([0.2, 0.85, 0.5]) * np.sign(tree.middle[:, 2:3] + 1e-3)
    aside[:, :2] = np.abs(aside[:, :2])
    lung = s.cover(scene.lung)
    start, end = tree.start + aside, tree.end + aside
    shell = splat(s, *grains(s, start, end, lumen, wall=wall)) * lung
    tubes = splat(s, *grains(s, start, end, lumen)) * lung
    scene.aerate(EVERYWHERE, shell, hu)
    scene.paint(EVERYWHERE, np.minimum(tubes * 1.1, 1), -990.0)
    return tubes, shell


def bronchiectasis(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: list) -> Painted:
    """Bronchi 1.5 to 2.5 times as wide as their artery, walls kept, out to the periphery."""
    tree = branches(scene, finding, rng, count=9 + int(10 * finding.severity), levels=(2, 5))
    wider = rng.uniform(1.5, 1.9 + 0.6 * finding.severity, len(tree.radius))
    lumen = np.maximum(wider * tree.radius, scene.mm(4.4 + 1.6 * finding.severity))
    wall = np.full(len(lumen), scene.mm(1.5 + 0.5 * finding.severity))
    tubes, shell = bronchi(scene, tree, lumen, wall, hu=40.0)
    return EVERYWHERE, np.minimum(tubes + shell, 1)


def peribronchial(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: list) -> Painted:
    """Bronchi of normal calibre in a cuff of 2 to 4 mm; the mask holds the cuff with its lumen."""
    tree = branches(scene, finding, rng, count=10 + int(10 * finding.severity), levels=(1, 4))
    lumen = np.clip(0.8 * tree.radius, scene.mm(1.3), scene.mm(2.6))
    wall = np.full(len(lumen), scene.mm(2.6 + 1.8 * finding.severity))
    tubes, shell = bronchi(scene, tree, lumen, wall, hu=35.0)
    return EVERYWHERE, np.minimum(tubes + shell, 1)


def septa(scene: Scene, finding: Finding, rng: np.random.Generator, shapes: list) -> Painted:
    """Walls of polygonal lobules below the pleura: voxels nearly as close to the second cell centre as to the first."""
    from scipy.spatial import cKDTree  # pyright: ignore[reportAttributeAccessIssue]  (a compiled name)

    s = scene.space
    box = flank(scene, finding.side)
    z, y, x = s.at(box)
    lung = scene.lung[box]
    deep = scene.mm(22 + 14 * finding.severity)
    rind = np.minimum(np.minimum(lung, deep - np.minimum(scene.cage[box], scene.dome[box])), 0 * lung + 99)
    where = np.nonzero(np.minimum(rind, scene.region(finding.side, finding.place, z, y, x)) > -s.voxel / 2)
    share = np.zeros(lung.shape, np.float32)
    if not len(where[0]):
        return box, share
    points = np.stack([z[where[0], 0, 0], y[0, where[1], where[2]], x[0, where[1], where[2]]], 1)
    step = scene.mm(19.0)
    low, high = points.min(0) - step, points.max(0) + step
    lattice = np.stack(np.meshgrid(*(np.arange(a, b, step) for a, b in zip(low, high, strict=True)), indexing="ij"), -1)
    centres = lattice.reshape(-1, 3) + rng.uniform(-0.42, 0.42, (lattice.size // 3, 3)) * step
    near = cKDTree(centres).query(points, k=2)[0]
    wall = scene.mm(1.6 + 1.2 * finding.severity)
    sheet = np.clip((wall - (near[:, 1] - near[:, 0]) / 2) / s.voxel + 0.5, 0, 1)
    share[where] = sheet
    share *= s.cover(np.minimum(rind, scene.region(finding.side, finding.place, z, y, x)))
    scene.aerate(box, share * np.float32(0.26 + 0.3 * finding.severity), 20.0)
    return box, share
