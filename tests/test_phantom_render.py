"""The phantom's voxels: anatomy the right way round, findings where and as large as the plan says, exact masks."""

import re
from dataclasses import replace

import numpy as np
import pytest
from phantoms import centre, every, finding, healthy, named, plan

from mg3d.data.phantom.findings import PAINT, SHAPE
from mg3d.data.phantom.plan import FORMS, LABELS, ORGANS, SIZES_MM, Finding, draw
from mg3d.data.phantom.render import build, render
from mg3d.data.phantom.space import ellipsoid

SHAPE_72 = (72, 72, 72)
LUNG_LABELS = (
    "Emphysema",
    "Atelectasis",
    "Lung nodule",
    "Lung opacity",
    "Pulmonary fibrotic sequela",
    "Mosaic attenuation pattern",
    "Peribronchial thickening",
    "Consolidation",
    "Bronchiectasis",
    "Interlobular septal thickening",
)


def grown(mask: np.ndarray, steps: int) -> np.ndarray:
    from scipy.ndimage import binary_dilation

    return binary_dilation(mask, iterations=steps)


def test_every_label_has_a_renderer():
    assert set(PAINT) == set(LABELS)
    assert set(SHAPE) <= set(LABELS)


@pytest.mark.parametrize("shape", [(72, 72, 72), (40, 48, 56)])
def test_shapes_types_and_bytes(shape):
    p = draw(3, split="test", seed=1)
    one, two = render(p, shape=shape), render(p, shape=shape)
    assert one.hu.shape == one.organs.shape == shape
    assert one.masks.shape == (len(p.findings), *shape)
    assert (one.hu.dtype, one.organs.dtype, one.masks.dtype) == (np.int16, np.uint8, np.bool_)
    assert one.spacing_mm == pytest.approx(tuple(360 * p.patient.zoom / n for n in shape))
    assert one.hu.tobytes() == two.hu.tobytes()
    assert one.masks.tobytes() == two.masks.tobytes()
    assert one.organs.tobytes() == two.organs.tobytes()
    assert one.hu.min() >= -1024
    assert not np.array_equal(one.hu, render(replace(p, seed=p.seed + 1), shape=shape).hu)


def test_the_right_way_round():
    r = healthy()
    liver, spleen, stomach, heart, spine = (
        centre(named(o, r)) for o in ("liver", "spleen", "stomach", "heart", "spine")
    )
    right, left, aorta, air = (centre(named(o, r)) for o in ("right lung", "left lung", "aorta", "airways"))
    assert right[2] < 36 < left[2]  # W runs from the patient's right to the left
    assert liver[2] < heart[2]
    assert min(spleen[2], stomach[2], heart[2], aorta[2]) > 36
    assert spine[1] > 45  # H runs from front to back
    assert spine[1] > aorta[1] > heart[1]
    assert max(liver[0], spleen[0], stomach[0]) < heart[0] < air[0]  # D runs from feet to head
    top = np.nonzero(named("aorta", r).any((1, 2)))[0].max()
    arch = named("aorta", r)[top - 1]
    trachea = named("airways", r)[top - 1]
    assert np.argwhere(arch)[:, 1].mean() > np.argwhere(trachea)[:, 1].mean()  # the arch passes on the left


@pytest.mark.parametrize(
    ("organ", "low", "high"),
    [
        ("right lung", -900, -780),
        ("left lung", -900, -780),
        ("liver", 20, 130),
        ("spine", 60, 400),
        ("aorta", 110, 175),
    ],
)
def test_tissues_have_their_hu(organ, low, high):
    r = healthy()
    assert low < np.median(r.hu[named(organ, r)]) < high


def test_every_organ_is_there():
    assert set(np.unique(healthy().organs)) == set(range(len(ORGANS)))


def test_lung_volume_is_human():
    r = healthy()
    litres = (named("left lung", r) | named("right lung", r)).sum() * np.prod(r.spacing_mm) / 1e6
    assert 2.5 < litres < 6


@pytest.mark.parametrize("f", every(), ids=lambda f: f"{f.label}-{f.side}-{f.place}-{f.form}")
def test_finding_is_seen_where_its_mask_is(f):
    base, r = healthy(), render(plan(f))
    mask = r.masks[0]
    assert mask.any()
    assert not mask.all()
    change = np.abs(r.hu.astype(float) - base.hu)
    if f.label == "Medical material":
        assert r.hu[mask].max() > 700
    inside, outside = change[grown(mask, 1)].mean(), change[~grown(mask, 4)].mean()
    # a wide heart or a sac moves its neighbours, metal throws streaks; everything else stays in its mask
    assert inside > (3 if f.label in ("Cardiomegaly", *SHAPE, "Medical material") else 12) * outside
    assert inside > 8


@pytest.mark.parametrize(
    "f", [f for f in every() if f.label in LUNG_LABELS], ids=lambda f: f"{f.label}-{f.place}-{f.form}"
)
@pytest.mark.parametrize("side", ["right", "left"])
def test_lung_finding_lies_in_its_lung_and_place(f, side):
    if side == "left" and f.place == "middle lobe":
        pytest.skip("there is no left middle lobe")
    p = plan(replace(f, side=side), seed=11)
    mask = render(p).masks[0]
    scene, _ = build(p, SHAPE_72)
    s = scene.space
    inside = scene.region(side, f.place, s.z, s.y, s.x)
    middle = (
        s.voxel * 0.6
        if f.label not in ("Pulmonary fibrotic sequela", "Bronchiectasis", "Peribronchial thickening", "Atelectasis")
        else 12
    )
    assert (scene.cavity[mask] > -s.voxel).mean() > 0.95
    assert (inside[mask] > -middle).mean() > 0.9
    flank = s.x + 0 * s.z if side == "left" else -s.x + 0 * s.z
    assert (np.broadcast_to(flank, mask.shape)[mask] > -s.voxel).all()


@pytest.mark.parametrize("form", FORMS["Lung nodule"])
@pytest.mark.parametrize("size_mm", [4.0, 9.0, 17.0, 30.0])
def test_nodule_is_as_long_as_told(size_mm, form):
    p = plan(Finding("Lung nodule", "right", "lower lobe", form, size_mm, 0.5), seed=8)
    r = render(p, shape=(120, 120, 120))
    spots = np.argwhere(r.masks[0]) * r.spacing_mm
    if len(spots) > 1:
        from scipy.spatial.distance import pdist

        assert pdist(spots).max() + 2 == pytest.approx(size_mm, abs=3.0)  # voxels of 3 mm
    else:
        assert size_mm < 6


@pytest.mark.parametrize("depth_mm", [8.0, 20.0, 45.0])
def test_effusion_is_as_deep_as_told_and_lies_at_the_back(depth_mm):
    r = render(plan(Finding("Pleural effusion", "left", "pleura", "", depth_mm, 0.4)))
    columns = r.masks[0].sum(1) * r.spacing_mm[1]
    assert np.quantile(columns[columns > 0], 0.98) == pytest.approx(depth_mm, abs=8)
    assert centre(r.masks[0])[1] > centre(named("left lung", r))[1]
    assert np.median(r.hu[r.masks[0]]) == pytest.approx(10, abs=30)


@pytest.mark.parametrize("depth_mm", [6.0, 12.0, 20.0])
def test_pericardial_effusion_is_as_deep_as_told(depth_mm):
    p = plan(Finding("Pericardial effusion", "", "pericardium", "", depth_mm, 0.4))
    r = render(p, shape=(120, 120, 120))
    scene, _ = build(p, (120, 120, 120))
    box, f = ellipsoid(scene.space, *scene.heart, margin=40.0)
    deepest = -f[r.masks[0][box]].min() * scene.space.scale
    assert deepest == pytest.approx(depth_mm, abs=3)


@pytest.mark.parametrize("size_mm", [10.0, 18.0, 25.0])
def test_node_short_axis(size_mm):
    p = plan(Finding("Lymphadenopathy", "left", "axillary", "", size_mm, 0.1))
    r = render(p, shape=(120, 120, 120))
    _, ((first, *others),) = build(p, (120, 120, 120))
    rows = (first[1] > 0).any((0, 2)).sum() * r.spacing_mm[1]
    assert rows == pytest.approx(size_mm, abs=3)
    assert others
    assert all((f > 0).sum() < (first[1] > 0).sum() * 1.4 for _, f in others)
    assert r.masks[0][first[0]][first[1] > 3].mean() > 0.6  # the rest gives way to the chest wall


def test_cardiomegaly_widens_the_heart():
    small, large = healthy(), render(plan(finding("Cardiomegaly", "", "heart", level=1.0)))
    width = [np.ptp(np.nonzero(named("heart", r).any((0, 1)))[0]) for r in (small, large)]
    assert width[1] > width[0] * 1.25
    assert large.masks[0].sum() > 1.3 * named("heart", small).sum()


def test_ground_glass_adds_and_spares_vessels():
    r, base = render(plan(finding("Lung opacity", "left", "lower lobe", "focal", level=0.8))), healthy()
    change = r.hu.astype(int) - base.hu
    mask = r.masks[0]
    assert change.min() > -3  # nothing is ever darker
    assert change[mask & (base.hu < -700)].mean() > 150
    assert change[mask & (base.hu > -450)].mean() < 0.6 * change[mask & (base.hu < -800)].mean()


def test_consolidation_keeps_air_bronchograms():
    f = finding("Consolidation", "right", "lower lobe", level=1.0)
    r = render(plan(f, seed=3), shape=(120, 120, 120))
    mask = r.masks[0]
    assert np.median(r.hu[mask]) > -100
    assert (r.hu[mask] < -300).sum() > 10


def test_emphysema_is_dark_and_grows_with_severity():
    dark = []
    for level in (0.2, 0.9):
        r = render(plan(finding("Emphysema", "left", "upper lobe", "centrilobular", level=level)))
        assert np.median(r.hu[r.masks[0]]) < -900
        dark.append(r.masks[0].sum())
    assert dark[1] > 2 * dark[0]


@pytest.mark.parametrize("label", [label for label in LABELS if label not in SIZES_MM and label != "Cardiomegaly"])
def test_severity_makes_more_of_it(label):
    first = next(f for f in every() if f.label == label)
    weak, strong = (render(plan(replace(first, severity=s))) for s in (0.05, 1.0))
    base = healthy()
    changes = [np.abs(r.hu.astype(float) - base.hu).sum() for r in (weak, strong)]
    assert changes[1] > (1.05 if label == "Medical material" else 1.15) * changes[0]


def test_one_finding_does_not_move_another():
    nodule = Finding("Lung nodule", "left", "upper lobe", "solid", 14.0, 0.5)
    alone = render(plan(nodule)).masks[0]
    pair = render(plan(nodule, finding("Lung opacity", "right", "lower lobe", "focal"))).masks[0]
    assert np.array_equal(alone, pair)


@pytest.mark.parametrize("corner", [(1, 1, 1), (-1, -1, -1), (1, -1, 1)])
def test_largest_patient_in_the_smallest_field_survives_the_crop(corner):
    shift = tuple(12.0 * c for c in corner)
    findings = [
        finding("Medical material", "", "sternum", "sternal wires"),
        finding("Lymphadenopathy", "left", "axillary"),
        finding("Pleural effusion", "right", "pleura"),
        finding("Lung nodule", "left", "upper lobe", "solid"),
    ]
    r = render(plan(*findings, size=1.12, zoom=0.92, shift_mm=shift, lung=1.1))
    low = [round(72 * (1 - c) / 2) for c in (0.88, 0.66, 0.88)]
    inside = np.zeros(SHAPE_72, bool)
    inside[low[0] : 72 - low[0], low[1] : 72 - low[1], low[2] : 72 - low[2]] = True
    lungs = named("right lung", r) | named("left lung", r)
    assert (lungs & inside).sum() > 0.985 * lungs.sum()
    for mask in r.masks:
        assert (mask & inside).sum() > 0.9 * mask.sum()


def test_drawn_plans_have_no_empty_mask():
    for number in range(1, 9):
        p = draw(number, split="train", seed=0)
        assert all(mask.any() for mask in render(p).masks), p.id


def test_a_finding_outside_the_vocabulary_is_refused():
    with pytest.raises(KeyError, match=re.escape("attic")):
        render(plan(Finding("Lymphadenopathy", "left", "attic", "", 12.0, 0.5)))
    with pytest.raises(KeyError, match="Gallstone"):
        render(plan(Finding("Gallstone", "", "liver", "", 0.0, 0.5)))
