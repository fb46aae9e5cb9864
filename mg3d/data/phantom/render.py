"""From a plan to voxels: anatomy, findings with exact masks, and what the scanner does to them.

The order matters. Shapes that displace lung (heart, vessels, fluid, nodes, a hernia) are carved out of the lung field
first; then lungs, bones and trees are painted; then findings; then come kernel, slice thickness and noise. Masks are
made before the blur: a voxel belongs to a finding if at least half of it is covered, or, where a finding is thinner
than a voxel, at least half as much as its best covered voxel.
"""

from dataclasses import dataclass

import numpy as np

from mg3d.data.phantom import anatomy, mediastinum
from mg3d.data.phantom.findings import PAINT, SHAPE
from mg3d.data.phantom.plan import Plan
from mg3d.data.phantom.scene import Scene
from mg3d.data.phantom.space import space

STATURE = 0.95  # the chest of the largest patient in the smallest field of view survives the crop of preparation


@dataclass(frozen=True)
class Rendering:
    """A phantom's voxels in the frame of a prepared volume (see `mg3d.types`)."""

    hu: np.ndarray  # int16 [D, H, W]
    spacing_mm: tuple[float, float, float]  # along D, H, W
    organs: np.ndarray  # uint8 [D, H, W], places in plan.ORGANS
    masks: np.ndarray  # bool [F, D, H, W], one a finding, in the order of plan.findings


def render(plan: Plan, *, shape: tuple[int, int, int] = (72, 72, 72)) -> Rendering:
    """Voxels of `plan` on a grid [D, H, W] over a cube of 360 mm times the patient's zoom.

    A pure function of its arguments: the same plan gives the same bytes. Raises ValueError if a finding covers no
    voxel, and KeyError on a label, place or side that plan.py does not list.
    """
    scene, shapes = build(plan, shape)
    masks = np.zeros((len(plan.findings), *shape), bool)
    for i, (finding, shape_of) in enumerate(zip(plan.findings, shapes, strict=True)):
        box, share = PAINT[finding.label](scene, finding, scene.rng(100, i), shape_of)
        peak = float(share.max(initial=0))
        if peak <= 0.02:
            raise ValueError(f"{plan.id}: {finding} covers no voxel of a grid {shape}; enlarge the grid or the finding")
        masks[i][box] = share >= min(0.5, 0.5 * peak)
    scan(scene)
    hu = np.rint(np.clip(scene.hu, -1024, 3071)).astype(np.int16)
    return Rendering(hu=hu, spacing_mm=scene.space.spacing_mm, organs=scene.organs, masks=masks)


def build(plan: Plan, shape: tuple[int, int, int]) -> tuple[Scene, list[list]]:
    """The healthy scene with room made for the findings, and each finding's shapes (see findings.SHAPE)."""
    patient = plan.patient
    scale = STATURE * patient.size
    grid = space(shape, zoom=patient.zoom, scale=scale, shift_mm=patient.shift_mm, tilt_deg=patient.tilt_deg)
    scene = Scene(plan, grid, np.empty(shape, np.float32), np.zeros(shape, np.uint8))
    anatomy.body(scene)
    anatomy.thorax(scene)
    anatomy.spine_room(scene)
    mediastinum.heart(scene)
    parts = [*mediastinum.great_vessels(scene), mediastinum.gullet(scene)]
    mediastinum.make_room(scene, parts)
    shapes = [
        SHAPE[finding.label](scene, finding, scene.rng(200, i)) if finding.label in SHAPE else []
        for i, finding in enumerate(plan.findings)
    ]
    anatomy.muscles(scene)
    anatomy.inside(scene)
    anatomy.bones(scene)
    mediastinum.paint_heart(scene)
    mediastinum.paint_parts(scene, parts)
    mediastinum.trees(scene)
    mediastinum.central_airways(scene)
    mediastinum.small_nodes(scene)
    anatomy.table(scene)
    return scene, shapes


def scan(scene: Scene) -> None:
    """Blur by kernel and slice thickness, then add noise, correlated in the plane and louder at the shoulders."""
    patient, grid = scene.plan.patient, scene.space
    sigmas_mm = (patient.slice_mm / 12**0.5, patient.kernel_mm, patient.kernel_mm)
    for axis, (sigma, step) in enumerate(zip(sigmas_mm, grid.spacing_mm, strict=True)):
        blur(scene.hu, axis=axis, variance=(sigma / step) ** 2)
    noise = scene.rng(300).standard_normal(grid.shape, np.float32)
    coarse = noise.copy()
    for axis in (1, 2):
        blur(coarse, axis=axis, variance=1.5)
    noise -= np.float32(0.8) * coarse  # filtered back projection leaves little noise at low frequencies
    for axis in (1, 2):
        blur(noise, axis=axis, variance=0.12 + 0.5 * (patient.kernel_mm / grid.spacing_mm[axis]) ** 2)
    loud = 1 + 0.4 / (1 + np.exp((100 - grid.z) / 8))
    noise *= (patient.noise_hu / noise.std() * loud).astype(np.float32)
    scene.hu += noise


def blur(volume: np.ndarray, *, axis: int, variance: float) -> None:
    """Smooth in place along an axis by a Gaussian of this variance in voxels squared, as a power of three-tap filters.

    The kernel [a, 1 - 2a, a] has variance 2a; up to a = 0.3 it is positive everywhere in frequency or nearly so.
    """
    if variance < 0.02:
        return
    rounds = int(np.ceil(variance / 0.6))
    a = np.float32(variance / rounds / 2)
    v = np.moveaxis(volume, axis, 0)
    for _ in range(rounds):
        step = v[1:] - v[:-1]
        step *= a
        v[:-1] += step
        v[1:] -= step
