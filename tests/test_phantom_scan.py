"""What patient and scanner do to the phantom, and the shapes that it is made of."""

import numpy as np
import pytest
from phantoms import centre, healthy, named, plan

from mg3d.data.phantom.render import blur, render
from mg3d.data.phantom.space import Space, chain, clouds, ellipsoid, grains, smooth, space, splat


@pytest.mark.parametrize("noise_hu", [8.0, 30.0])
def test_noise_is_as_told(noise_hu):
    quiet, loud = render(plan(noise_hu=1e-3)), render(plan(noise_hu=noise_hu))
    difference = (loud.hu.astype(float) - quiet.hu)[10:50]
    assert difference[quiet.hu[10:50] > -900].std() == pytest.approx(noise_hu, rel=0.1)
    assert abs(difference[quiet.hu[10:50] > -900].mean()) < 1


@pytest.mark.parametrize(
    ("change", "more"),
    [
        ({"fat_mm": 40.0}, lambda r: ((r.hu > -140) & (r.hu < -60)).sum()),
        ({"blood_hu": 240.0}, lambda r: np.median(r.hu[named("aorta", r)])),
        ({"lung": 1.15}, lambda r: (r.hu < -850)[named("left lung", r)].mean()),
        ({"size": 1.1}, lambda r: named("liver", r).sum() + named("heart", r).sum()),
        ({"aorta_mm": 39.0}, lambda r: named("aorta", r).sum()),
        ({"age": 25}, lambda r: r.hu[named("spine", r)].mean()),
        ({"zoom": 0.92}, lambda r: named("heart", r).sum()),
        ({"shift_mm": (0.0, 0.0, 12.0)}, lambda r: centre(named("spine", r))[2]),
        ({"shift_mm": (0.0, 12.0, 0.0)}, lambda r: centre(named("spine", r))[1]),
        ({"shift_mm": (12.0, 0.0, 0.0)}, lambda r: centre(named("heart", r))[0]),
        ({"tilt_deg": -8.0}, lambda r: centre(named("spine", r))[2]),
        ({"sex": "female"}, lambda r: (r.hu[24:36, :18] > -200).sum()),
    ],
    ids=lambda v: str(v) if isinstance(v, dict) else "",
)
def test_patient_and_scan_show(change, more):
    assert more(render(plan(**change))) > more(healthy())


@pytest.mark.parametrize(("change", "axis"), [({"slice_mm": 8.0}, 0), ({"kernel_mm": 4.0}, 2)])
def test_blur_of_the_scan(change, axis):
    rough = [np.abs(np.diff(render(plan(noise_hu=0.01, **c)).hu.astype(float), axis=axis)).mean() for c in ({}, change)]
    assert rough[1] < 0.97 * rough[0]


@pytest.mark.parametrize("variance", [0.1, 0.55, 2.5])
def test_blur_keeps_the_sum_and_has_its_variance(variance):
    x = np.zeros((41, 3, 3), np.float32)
    x[20, 1, 1] = 1
    blur(x, axis=0, variance=variance)
    line = x[:, 1, 1].astype(float)
    t = np.arange(41) - 20
    assert line.sum() == pytest.approx(1, abs=1e-5)
    assert (line * t * t).sum() == pytest.approx(variance, rel=1e-3)
    assert line.min() >= 0


def grid(n: int = 60, *, tilt_deg: float = 0.0) -> Space:
    return space((n, n, n), zoom=1.0, scale=1.1, shift_mm=(3.0, -4.0, 5.0), tilt_deg=tilt_deg)


def test_index_inverts_the_coordinates():
    s = grid(tilt_deg=7.0)
    k, i, j = 13, 41, 22
    point = np.array([s.z[k, 0, 0], s.y[0, i, j], s.x[0, i, j]])
    assert s.index(point) == pytest.approx([k, i, j], abs=1e-3)


@pytest.mark.parametrize("radius", [12.0, 30.0])
def test_volumes_of_ball_tube_and_grains(radius):
    s = grid(tilt_deg=5.0)
    unit = s.voxel**3
    _, ball = ellipsoid(s, np.array([0.0, 3, 2]), np.eye(3) / radius)
    assert s.cover(ball).sum() * unit == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.06)
    ends = np.array([[-40.0, 0, 10], [35, 20, -15]])
    _, tube = chain(s, np.column_stack([ends, [radius, radius]]))
    length = np.linalg.norm(ends[1] - ends[0])
    volume = np.pi * radius**2 * length + 4 / 3 * np.pi * radius**3
    assert s.cover(tube).sum() * unit == pytest.approx(volume, rel=0.03)
    thin = splat(s, *grains(s, ends[:1], ends[1:], np.array([1.2])))
    assert thin.sum() * unit == pytest.approx(np.pi * 1.2**2 * length, rel=1e-3)
    shell = splat(s, *grains(s, ends[:1], ends[1:], np.array([radius]), wall=np.array([1.5])))
    assert shell.sum() * unit == pytest.approx(np.pi * ((radius + 1.5) ** 2 - radius**2) * length, rel=0.02)


def test_smooth_keeps_the_ends_and_clouds_are_noise():
    path = smooth(np.array([[0.0, 0], [1, 0], [1, 1]]))
    assert path[0].tolist() == [0, 0]
    assert path[-1].tolist() == [1, 1]
    noise = clouds(grid(), (slice(None), slice(5, 50), slice(0, 60)), grain_mm=25.0, rng=np.random.default_rng(0))
    assert noise.shape == (60, 45, 60)
    assert abs(noise.mean()) < 0.3
    assert 0.6 < noise.std() < 1.4
