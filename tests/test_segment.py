"""Segmentation as a task: its loss, its windows, its scores, and that it learns."""

import numpy as np
import pytest
import torch
from monai.losses.dice import DiceCELoss

from mg3d.encoders import ENCODERS, build
from mg3d.metrics import dice, hd95, nsd, surface_distances
from mg3d.tasks import Task
from mg3d.tasks.segment import Segment
from mg3d.types import Batch

PATCH = (16, 16, 16)
NAMES = ("background", "large", "small")
SPACING_MM = (3.0, 2.0, 1.0)


def segment(name: str = "unet", *, names=NAMES, patch=PATCH) -> Segment:
    torch.manual_seed(0)
    encoder = build(name, shrink=4, shape=patch)
    return Segment(encoder, names=names, patch=patch, spacing_mm=SPACING_MM)


def batch(shape=PATCH, count: int = 2, *, seed: int = 0, classes: int = 3) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    volume = torch.rand(count, 1, *shape, generator=generator)
    target = torch.randint(classes, (count, *shape), generator=generator)
    return Batch(volume, tuple(map(str, range(count))), torch.arange(count), target=target)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_encoder_is_trained_whole(name):
    task = segment(name, patch=(32, 32, 32))
    losses = task(batch((32, 32, 32)))
    assert isinstance(task, Task)
    assert list(losses) == ["dice_loss", "ce"]
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in task.parameters())
    assert any(p.grad.any() for p in task.encoder.parameters())


def test_the_loss_is_dice_and_cross_entropy():
    task, some = segment(), batch()
    with torch.no_grad():
        logits = task.logits(some.volume)
        wanted = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)(logits, some.target[:, None])
        torch.testing.assert_close(sum(task(some).values()), wanted)
        halves = [Batch(some.volume[i : i + 1], ("x",), torch.arange(1), target=some.target[i : i + 1]) for i in (0, 1)]
        parts = [sum(task(half).values()) for half in halves]
    torch.testing.assert_close(sum(parts) / 2, wanted)  # a mean over patches: parts of a step add up
    small = Batch(some.volume, some.ids, some.seeds, target=some.target.to(torch.uint8))
    assert task(small) == task(small)
    torch.testing.assert_close(task(small)["ce"], task(some)["ce"])


def test_absent_classes_do_no_harm():
    task, some = segment(), batch(classes=1)
    losses = task(some)
    sum(losses.values()).backward()
    assert all(x.isfinite() for x in losses.values())
    assert all(p.grad.isfinite().all() for p in task.parameters() if p.grad is not None)


@pytest.mark.parametrize("shape", [(16, 16, 16), (40, 20, 33), (7, 30, 16), (5, 6, 7)])
def test_a_label_for_each_voxel_of_any_volume(shape):
    task, some = segment(), batch(shape, 1)
    (found,) = task.predict(some)
    assert found.shape == shape
    assert found.dtype == np.uint8
    assert found.max() < 3
    np.testing.assert_array_equal(task.predict(some)[0], found)
    assert task(some)["ce"].isfinite()  # whole volumes have a loss too


def test_half_precision_says_the_same():
    task, some = segment("swin_b"), batch((24, 16, 20))
    with torch.no_grad():
        full = task.logits(some.volume)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half, losses = task.logits(some.volume), task(some)
    assert torch.corrcoef(torch.stack([half.float().flatten(), full.flatten()]))[0, 1] > 0.99
    assert all(x.dtype == torch.float32 and x.isfinite() for x in losses.values())


def test_windows_are_blended_by_a_gaussian():
    """Against the definition: what each window says, weighted, voxel by voxel."""
    task = segment()
    volume = batch((24, 16, 16), 1).volume
    at = np.arange(16) - 7.5
    side = np.exp(-(at**2) / (2 * (16 / 8) ** 2))
    weight = torch.from_numpy(np.maximum(side[:, None, None] * side[:, None] * side, 1e-3)).float()
    total, count = torch.zeros(1, 3, 24, 16, 16), torch.zeros(24, 16, 16)
    with torch.no_grad():
        for start in (0, 8):
            total[:, :, start : start + 16] += weight * task.logits(volume[:, :, start : start + 16])
            count[start : start + 16] += weight
        torch.testing.assert_close(task.logits(volume), total / count, rtol=1e-3, atol=1e-4)


def balls(centres, radii, shape=(20, 24, 28)) -> np.ndarray:
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    labels = np.zeros(shape, dtype=np.uint8)
    for k, (centre, radius) in enumerate(zip(centres, radii, strict=True), 1):
        labels[np.linalg.norm(grid - centre, axis=-1) < radius] = k
    return labels


TRUE = [balls([(8, 8, 8), (12, 16, 20)], (5, 4)), balls([(8, 8, 8), (0, 0, 0)], (4, 0)), balls([(8, 8, 8)], (0,))]
SAID = [balls([(9, 8, 8), (12, 16, 20)], (5, 3)), balls([(8, 8, 8), (9, 12, 20)], (4, 3)), balls([(8, 8, 8)], (0,))]


def test_scores_are_means_over_cases_then_classes():
    line = segment().score(SAID, [torch.from_numpy(t) for t in TRUE])
    d = [dice(p, t, classes=2) for p, t in zip(SAID, TRUE, strict=True)]
    surfaces = [surface_distances(p, t, classes=2, spacing_mm=SPACING_MM) for p, t in zip(SAID, TRUE, strict=True)]
    large, small = (d[0][0] + d[1][0]) / 2, (d[0][1] + 0) / 2  # the third case has neither, said or true
    assert d[1][0] == 1
    assert line["dice/large"] == pytest.approx(large)
    assert line["dice/small"] == pytest.approx(small)
    assert line["dice"] == pytest.approx((large + small) / 2)
    assert line["hd95/large"] == pytest.approx((hd95(surfaces[0])[0] + 0) / 2)
    assert hd95(surfaces[0])[0] == 3  # mm: one voxel along the first axis
    assert line["hd95/small"] == pytest.approx(hd95(surfaces[0])[1])
    assert line["nsd/small"] == pytest.approx((nsd(surfaces[0], tolerance_mm=2.0)[1] + 0) / 2)
    assert line["unmatched"] == 1
    assert not any(np.isnan(v) or np.isinf(v) for v in line.values())


def test_what_is_undefined_is_left_out_or_said():
    task = segment()
    line = task.score(SAID[2:] + SAID[:1], [*TRUE[2:], balls([(9, 8, 8)], (5,))])
    assert line["dice/large"] == 1
    assert line["dice/small"] == 0
    only = task.score([balls([(9, 8, 8)], (5,))], [balls([(9, 8, 8)], (5,))])
    assert "dice/small" not in only
    assert (only["dice"], only["hd95"], only["unmatched"]) == (1, 0, 0)
    never = task.score([balls([(9, 8, 8)], (5,))], TRUE[2:])
    assert never == {"dice": 0, "dice/large": 0, "nsd": 0, "nsd/large": 0, "unmatched": 1}
    with pytest.raises(ValueError, match=r"Dice is undefined: .* these 1 cases holds large, small"):
        task.score(SAID[2:], TRUE[2:])


def test_intervals_hold_the_scores():
    task = segment()
    line = task.score(SAID * 3, TRUE * 3)
    found = task.intervals(SAID * 3, TRUE * 3, cases=[f"p{i}" for i in range(9)])
    assert set(found) == set(line) - {"unmatched"}
    for name, (value, low, high) in found.items():
        assert value == pytest.approx(line[name])
        assert low <= value + 1e-9
        assert value <= high + 1e-9
    assert found["dice"].low < found["dice"].high
    one = task.intervals(SAID * 3, TRUE * 3, cases=["a", "b", "c"] * 3)  # the same patients again: no more certain
    assert one["dice"].high - one["dice"].low > found["dice"].high - found["dice"].low


def spheres(step: int, shape=PATCH) -> Batch:
    """Two volumes with a bright and a dark ball, which are the classes."""
    rng = np.random.default_rng(step)
    labels = np.stack([balls(rng.uniform(3, 13, (2, 3)), (5, 3.5), shape) for _ in range(2)])
    volume = np.array([0.5, 0.8, 0.2])[labels] + rng.normal(0, 0.05, labels.shape)
    target = torch.from_numpy(labels.astype(np.int64))
    return Batch(torch.from_numpy(volume[:, None]).float(), ("a", "b"), torch.arange(2), target=target)


def test_it_learns_what_is_there_to_learn():
    task = segment()
    optimiser = torch.optim.AdamW(task.parameters(), lr=5e-3)
    for step in range(30):
        optimiser.zero_grad()
        sum(task(spheres(step)).values()).backward()
        optimiser.step()
    test = spheres(1000, (20, 24, 18))
    scores = task.eval().score(task.predict(test), list(test.target))
    assert scores["dice"] > 0.9
    assert scores["dice/small"] > 0.85


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"names": ("background",)}, "names="),
        ({"patch": (8, 8)}, r"patch=\(8, 8\)"),
        ({"spacing_mm": (0.0, 1.0, 1.0)}, "spacing_mm="),
    ],
)
def test_refuses(wrong, message):
    options = {"names": list(NAMES), "patch": list(PATCH), "spacing_mm": list(SPACING_MM)}  # as JSON gives them back
    encoder = build("unet", shrink=16)
    assert Segment(encoder, **options).patch == PATCH
    with pytest.raises(ValueError, match=message):
        Segment(encoder, **options | wrong)
    with pytest.raises(ValueError, match="without targets"):
        Segment(encoder, **options)(Batch(torch.zeros(1, 1, *PATCH), ("a",), torch.arange(1)))
