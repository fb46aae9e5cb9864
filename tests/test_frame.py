"""The prepared grid: orientation, crop, resize, and the way back."""

from itertools import permutations, product

import numpy as np
import pytest

from mg3d.data.frame import SLAB, Frame, Spec, orientation, prepare_mask, resample, taps, to_source

SPEC = Spec(shape=(20, 16, 24))
WINDOW = (-1000.0, 1000.0)


def signed(order, signs) -> np.ndarray:
    """A matrix that permutes and flips axes."""
    return np.eye(3)[:, list(order)] * np.array(signs)


ORIENTATIONS = [signed(p, s) for p in permutations(range(3)) for s in product((1.0, -1.0), repeat=3)]


def affine_of(axes: np.ndarray, *, spacing=(2.0, 3.0, 5.0), tilt_deg: float = 0.0, offset=(13.0, -70.0, 400.0)):
    """Voxel -> RAS mm: `axes` with a spacing a voxel axis, then turned about an oblique line."""
    line, angle = np.array([1.0, 2.0, -1.5]) / np.linalg.norm([1.0, 2.0, -1.5]), np.radians(tilt_deg)
    k = np.array([[0, -line[2], line[1]], [line[2], 0, -line[0]], [-line[1], line[0], 0]])
    turn = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ axes @ np.diag(spacing), offset
    return affine


def record_of(affine, shape, spec) -> dict:
    """What `to_source` needs of a sidecar."""
    return {
        "source_affine": affine.tolist(),
        "source_shape": list(shape),
        "spec": {"shape": list(spec.shape), "crop": list(spec.crop)},
    }


def prepared(hu, affine, spec=SPEC):
    frame = Frame.of(affine, hu.shape, shape=spec.shape, crop=spec.crop)
    return resample(hu, frame, window_hu=spec.window_hu), frame.affine(affine)


def centroid_mm(weights, affine) -> np.ndarray:
    """Centre of mass in RAS mm."""
    index = np.stack(np.meshgrid(*map(np.arange, weights.shape), indexing="ij")).reshape(3, -1)
    return affine[:3, :3] @ (index @ weights.ravel() / weights.sum()) + affine[:3, 3]


@pytest.mark.parametrize("tilt_deg", [0.0, 12.0])
@pytest.mark.parametrize("axes", ORIENTATIONS, ids=lambda m: str(m.astype(int).tolist()))
def test_a_bright_spot_stays_where_it_is_in_the_patient(axes, tilt_deg):
    shape, affine = (34, 30, 26), affine_of(axes, tilt_deg=tilt_deg)
    spot = np.array([20, 12, 15])  # not at the centre of any axis
    hu = np.full(shape, -1000, np.int16)
    hu[tuple(slice(i - 1, i + 2) for i in spot)] = 900
    there = affine[:3, :3] @ spot + affine[:3, 3]

    volume, to_mm = prepared(hu, affine)
    assert volume.shape == SPEC.shape
    directions = to_mm[:3, :3] / np.linalg.norm(to_mm[:3, :3], axis=0)
    assert directions[2, 0] > 0.9  # D towards the head
    assert directions[1, 1] < -0.9  # H towards the back
    assert directions[0, 2] < -0.9  # W towards the left
    np.testing.assert_allclose(centroid_mm(volume + 1000, to_mm), there, atol=0.6)

    back = to_source(volume + 1000, record_of(affine, shape, SPEC))
    assert back.shape == shape
    np.testing.assert_allclose(centroid_mm(back, affine), there, atol=0.8)
    assert np.abs(np.array(np.unravel_index(back.argmax(), shape)) - spot).max() <= 1


@pytest.mark.parametrize("axes", ORIENTATIONS[::5], ids=lambda m: str(m.astype(int).tolist()))
def test_orientation_agrees_with_nibabel(axes):
    from nibabel.orientations import axcodes2ornt, io_orientation

    affine = affine_of(axes, tilt_deg=20.0)
    order, signs = orientation(affine)
    theirs = io_orientation(affine)  # [source axis] -> (RAS axis, sign)
    wanted = axcodes2ornt(("S", "P", "L"))
    for t in range(3):
        assert theirs[order[t], 0] == wanted[t, 0]
        assert theirs[order[t], 1] * wanted[t, 1] == signs[t]


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("axes", ORIENTATIONS[::7], ids=lambda m: str(m.astype(int).tolist()))
def test_resample_equals_its_slow_twin(axes, order, dtype):
    rng = np.random.default_rng(0)
    hu = np.asarray(rng.uniform(-1500, 1500, (31, 45, 23)), dtype=dtype, order=order)
    frame = Frame.of(affine_of(axes), hu.shape, shape=SPEC.shape, crop=SPEC.crop)
    matrices = [taps(x, scale=s, size=n) for x, s, n in zip(frame.centres(), frame.scale, frame.size, strict=True)]
    clipped = hu.astype(np.float64).clip(*WINDOW).transpose(frame.axes)
    twin = np.einsum("di,hj,wk,ijk->dhw", *matrices, clipped, optimize=True)
    volume = resample(hu, frame, window_hu=WINDOW)
    assert volume.dtype == np.float32
    np.testing.assert_allclose(volume, twin, atol=2e-3)
    np.testing.assert_array_equal(resample(hu[::-1][::-1].copy(order), frame, window_hu=WINDOW), volume)


def test_resample_takes_reversed_views_and_large_planes(monkeypatch):
    hu = np.random.default_rng(0).integers(-900, 900, (31, 45, 23)).astype(np.int16)
    frame = Frame.of(affine_of(np.eye(3)), hu.shape, shape=SPEC.shape, crop=SPEC.crop)
    whole = resample(hu, frame, window_hu=WINDOW)
    np.testing.assert_array_equal(resample(hu[::-1].copy()[::-1], frame, window_hu=WINDOW), whole)
    assert hu.size < SLAB  # all in one slab so far; now a slice at a time
    monkeypatch.setattr("mg3d.data.frame.SLAB", 1)
    np.testing.assert_allclose(resample(hu, frame, window_hu=WINDOW), whole, atol=1e-3)


@pytest.mark.parametrize("scale", [0.37, 1.0, 1.7, 3.3])
def test_taps_are_the_mean_of_the_linear_interpolant(scale):
    n = 40
    source = np.random.default_rng(1).normal(size=n)
    x = np.array([-0.4, 3.21, 17.0, 20.5, 39.3])
    width = np.sqrt(max(scale**2 - 1, 0))
    fine = x[:, None] + width * (np.arange(20_000) + 0.5 - 10_000) / 20_000
    slow = np.interp(fine, np.arange(n), source).mean(1)  # constant beyond the border
    np.testing.assert_allclose(taps(x, scale=scale, size=n) @ source, slow, atol=1e-6)


@pytest.mark.parametrize(
    ("n", "m", "crop"), [(50, 20, 1.0), (33, 64, 1.0), (512, 128, 0.88), (40, 40, 1.0), (9, 1, 0.5)]
)
def test_constants_ramps_and_means_are_kept(n, m, crop):
    s = crop * n / m
    x = (n - 1) / 2 + s * (np.arange(m) - (m - 1) / 2)
    weights = taps(x, scale=s, size=n)
    np.testing.assert_allclose(weights.sum(1), 1)
    inner = (x - s > 0) & (x + s < n - 1)
    np.testing.assert_allclose((weights @ np.arange(n))[inner], x[inner])
    if crop == 1:
        noise = np.random.default_rng(0).normal(size=(n, 2000))
        np.testing.assert_allclose((weights @ noise).mean(), noise.mean(), atol=0.002)
        np.testing.assert_allclose(weights.sum(0), m / n, rtol=0.2)  # each source voxel counts alike
    if m == n:
        np.testing.assert_array_equal(weights, np.eye(n))


def test_shrinking_removes_what_would_alias():
    checker = np.where(np.arange(300) % 3 == 0, 2.0, -1.0)  # a period of 3 voxels, sampled every 4.5: plain trilinear
    x = 2 + 4.5 * np.arange(66)  # sampling would turn it into a coarse wave
    assert np.abs(taps(x, scale=1.0, size=300) @ checker).max() > 0.9
    assert np.abs(taps(x, scale=4.5, size=300) @ checker).max() < 0.3


def test_clipping_comes_before_averaging():
    hu = np.where(np.arange(20 * 20 * 20).reshape(20, 20, 20) % 2, 3000, -3000).astype(np.int16)  # metal beside padding
    volume, _ = prepared(hu, affine_of(np.eye(3)), Spec(shape=(5, 5, 5)))
    assert np.abs(volume).max() < 300


@pytest.mark.parametrize("axes", ORIENTATIONS[::11], ids=lambda m: str(m.astype(int).tolist()))
def test_masks_travel_both_ways_with_their_labels(axes):
    shape, affine = (60, 52, 56), affine_of(axes, spacing=(1.0, 1.2, 1.5), tilt_deg=5.0)
    mask = np.zeros(shape, np.uint8)
    mask[20:40, 15:30, 22:33], mask[30:42, 30:40, 30:45] = 3, 7
    spec = Spec(shape=(40, 36, 44))
    forth = prepare_mask(mask, affine, spec)
    assert forth.shape == spec.shape
    assert forth.dtype == np.uint8
    assert set(np.unique(forth)) == {0, 3, 7}
    back = to_source(forth, record_of(affine, shape, spec), nearest=True)
    assert back.dtype == np.uint8
    for label in (3, 7):
        a, b = mask == label, back == label
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.9
    # where the volume is bright, the mask is
    volume, to_mm = prepared(np.where(mask == 3, 1000, -1000).astype(np.int16), affine, spec)
    np.testing.assert_allclose(centroid_mm(volume + 1000, to_mm), centroid_mm((forth == 3) * 1.0, to_mm), atol=0.7)


def test_a_stack_of_maps_goes_back_each_by_itself_and_is_zero_outside_the_crop():
    shape, affine = (30, 40, 50), affine_of(ORIENTATIONS[17], tilt_deg=8.0)
    record = record_of(affine, shape, SPEC)
    maps = np.random.default_rng(0).random((3, *SPEC.shape)).astype(np.float16)
    back = to_source(maps, record)
    assert back.dtype == np.float32
    assert back.shape == (3, *shape)
    np.testing.assert_allclose(back[1], to_source(maps[1], record))
    ones = to_source(np.ones(SPEC.shape, np.float32), record)
    np.testing.assert_allclose(np.unique(ones.round(5)), [0, 1])
    assert ones.mean() == pytest.approx(0.88 * 0.66 * 0.88, abs=0.05)
    with pytest.raises(ValueError, match=r"\(20, 16, 24\) is needed"):
        to_source(maps[:, 1:], record)


def test_spec_hash_is_stable_and_tells_specs_apart():
    assert Spec().hash == Spec(shape=(128, 96, 128)).hash
    others = [Spec(shape=(64, 48, 64)), Spec(crop=(1.0, 1.0, 1.0)), Spec(window_hu=(-1000.0, 200.0))]
    assert len({s.hash for s in [Spec(), *others]}) == 4


@pytest.mark.parametrize(
    ("wrong", "name"),
    [({"shape": (0, 1, 1)}, "shape"), ({"crop": (1.1, 1.0, 1.0)}, "crop"), ({"window_hu": (5.0, 5.0)}, "window_hu")],
)
def test_a_wrong_spec_is_named(wrong, name):
    with pytest.raises(ValueError, match=name):
        Spec(**wrong)
