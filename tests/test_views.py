"""Hidden blocks and hidden words: exact counts, whole words, and numbers that depend on the seed alone."""

import pytest
import torch

from mg3d.types import Batch, Report
from mg3d.views import BLOCKS, WORDS, block_mask, jittered, mask_words, moved, noise, pose, relit

MASK64 = 2**64 - 1


def splitmix(x: int) -> int:
    """The finaliser of splitmix64 in Python's integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK64
    return x ^ (x >> 31)


def one(seed: int, stream: int, counter: int) -> float:
    """The slow twin of `noise`."""
    golden = 0x9E3779B97F4A7C15
    key = splitmix((splitmix(seed * golden & MASK64) + stream) & MASK64)
    return (splitmix((key + (counter + 1) * golden) & MASK64) >> 40) / 2**24


def test_the_finaliser_is_splitmix64():
    """First output of the published generator seeded with 0."""
    assert splitmix(0x9E3779B97F4A7C15) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("seed", [0, 1, -3, 2**62 + 7])
def test_noise_equals_its_twin(seed):
    found = noise(torch.tensor([seed]), 5, stream=3)
    assert found.tolist() == [[one(seed, 3, k) for k in range(5)]]


def test_noise_is_uniform_and_independent():
    x = noise(torch.arange(64), 4096, stream=1)
    assert x.min() >= 0
    assert x.max() < 1
    counts = torch.histc(x, 64, 0, 1)
    assert ((counts - 4096) ** 2 / 4096).sum() < 120  # chi square of 63 degrees of freedom: p = 2e-5
    other = noise(torch.arange(64), 4096, stream=2)
    for a, b in ((x, other), (x[:-1], x[1:]), (x[:, :-1], x[:, 1:])):
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < 0.01


def test_noise_depends_on_nothing_else():
    """Neither on the place in the batch nor on how many numbers are asked for, so padding changes nothing."""
    whole = noise(torch.tensor([5, 6, 7]), 40, stream=2)
    assert torch.equal(noise(torch.tensor([7, 5]), 12, stream=2), whole[[2, 0], :12])
    assert torch.equal(noise(torch.tensor([5], dtype=torch.int32), 40, stream=2), whole[:1])


@pytest.mark.parametrize(
    ("size", "grid", "hidden"),
    [
        ((128, 96, 128), (8, 6, 8), 192),
        ((64, 48, 64), (4, 3, 4), 24),
        ((9, 30, 40), (1, 2, 2), 2),
        ((4, 4, 4), (1, 1, 1), 0),
    ],
)
def test_block_mask_hides_its_share(size, grid, hidden):
    mask = block_mask(torch.arange(6), size)
    assert mask.shape[1:] == grid
    assert mask.flatten(1).sum(1).tolist() == [hidden] * 6


def test_block_mask_of_a_sample_is_its_own():
    seeds = torch.tensor([3, 9, 4])
    mask = block_mask(seeds, (64, 64, 64), ratio=0.3)
    assert mask.flatten(1).sum(1).tolist() == [19] * 3  # round(0.3 * 64)
    assert not torch.equal(mask[0], mask[1])
    assert torch.equal(block_mask(seeds[2:], (64, 64, 64), ratio=0.3)[0], mask[2])
    shared = block_mask(seeds, (64, 64, 64), ratio=0.3, shared=True)
    assert torch.equal(shared, mask[:1].expand(3, -1, -1, -1))
    often = block_mask(torch.arange(4000), (64, 64, 64)).float().mean(0)
    assert (often - 0.5).abs().max() < 0.04  # every cell as often as the others: five standard errors


def test_block_mask_refuses_a_wrong_ratio():
    with pytest.raises(ValueError, match=r"ratio=1\.5"):
        block_mask(torch.arange(2), (64, 64, 64), ratio=1.5)


def reports(words: int, *, copies: int = 1, pad: int = 0) -> Report:
    """Reports of words of one and two pieces in turn, ids from 10 on."""
    number = torch.arange(words).repeat_interleave(torch.arange(words) % 2 + 1)
    ids = torch.cat([torch.tensor([1]), 10 + torch.arange(len(number)), torch.tensor([2]), torch.zeros(pad).long()])
    word = torch.cat([torch.tensor([-1]), number, torch.full((1 + pad,), -1)])
    sentence = torch.where(word < 0, -1, 0)
    alone = ids[None, None].expand(copies, 1, -1)
    return Report(*(x.expand(copies, -1) for x in (ids, word, sentence)), alone)


@pytest.mark.parametrize(("words", "hidden"), [(1, 1), (3, 1), (20, 3), (41, 6)])
def test_mask_words_hides_whole_words(words, hidden):
    report = reports(words, copies=50, pad=3)
    masked, labels = mask_words(report, torch.arange(50), mask_id=3, vocabulary=1000)
    asked = labels != -100
    for row in range(50):
        chosen = set(report.word[row][asked[row]].tolist())
        assert len(chosen) == hidden
        assert -1 not in chosen  # neither [CLS] nor [SEP] nor padding
        assert torch.equal(asked[row], torch.isin(report.word[row], torch.tensor(list(chosen))))
    assert torch.equal(labels[asked], report.words[asked])
    assert torch.equal(masked[~asked], report.words[~asked])


def test_mask_words_replaces_as_bert_does():
    report = reports(200, copies=200)
    masked, labels = mask_words(report, torch.arange(200), mask_id=3, vocabulary=100_000)
    asked = labels != -100
    masks = (masked[asked] == 3).float().mean()
    same = (masked[asked] == labels[asked]).float().mean()
    assert abs(masks - 0.8) < 0.02
    assert abs(same - 0.1) < 0.015
    other = masked[asked & (masked != 3) & (masked != labels)]
    assert other.max() < 100_000
    assert abs(other.float().mean() / 50_000 - 1) < 0.1
    assert (asked.float().mean(0)[1:-1] > 0.05).all()  # every word has its turn


def test_mask_words_does_not_depend_on_padding_or_place():
    masked, labels = mask_words(reports(30, copies=3), torch.tensor([4, 5, 6]), mask_id=3, vocabulary=50)
    again = mask_words(reports(30, copies=2, pad=9), torch.tensor([6, 4]), mask_id=3, vocabulary=50)
    assert torch.equal(again[0][:, :-9], masked[[2, 0]])
    assert torch.equal(again[1][:, :-9], labels[[2, 0]])


def test_mask_words_of_an_empty_report():
    empty = reports(1)
    empty = Report(empty.words.clone().fill_(0), empty.word.clone().fill_(-1), empty.sentence, empty.alone)
    masked, labels = mask_words(empty, torch.tensor([1]), mask_id=3, vocabulary=50)
    assert masked.eq(0).all()
    assert labels.eq(-100).all()


def test_blocks_and_words_draw_from_different_streams():
    assert BLOCKS != WORDS


def test_a_pose_moves_the_patient_and_mirrors_nobody():
    """A corner's bright cube stays in its octant, its mass within what scale and border allow; seeds alone decide."""
    volume = torch.zeros(12, 1, 24, 20, 24)
    volume[:, :, 5:9, 4:8, 15:19] = 1
    seeds = torch.arange(12)
    found = moved(volume, pose(seeds))
    assert torch.equal(found[3:5], moved(volume[:2], pose(seeds[3:5])))
    assert not torch.allclose(found[0], found[1])
    axes = [
        torch.linspace(-1, 1, n).view([-1 if i == axis else 1 for i in range(3)]) for axis, n in enumerate((24, 20, 24))
    ]
    mass = found.sum((1, 2, 3, 4))
    centre = torch.stack([(found[:, 0] * axis).sum((1, 2, 3)) / mass for axis in axes], 1)
    assert (centre * torch.tensor([-1, -1, 1]) > 0).all()
    assert (mass / 64 - 1).abs().max() < 0.5


def test_no_pose_is_no_change():
    volume = torch.rand(2, 1, 6, 5, 4)
    still = torch.eye(3, 4).expand(2, -1, -1)
    assert torch.allclose(moved(volume, still), volume, atol=1e-5)
    assert torch.equal(moved(volume, still, nearest=True), volume)


def test_light_stays_within_its_bounds():
    volume = torch.full((64, 1, 6, 6, 6), 0.5)
    found = relit(volume, torch.arange(64))
    each = found.mean((1, 2, 3, 4))
    assert (each - 0.5).abs().max() < 0.02 + 0.001
    assert each.std() > 0.003
    assert 0.003 < found.std((1, 2, 3, 4)).max() < 0.006
    assert (relit(torch.rand(4, 1, 6, 6, 6), torch.arange(4)) >= 0).all()


def test_a_mask_moves_with_its_volume():
    """The mask of a bright ball, moved as the ball is, covers it; whole numbers stay whole."""
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, 20),) * 3, indexing="ij")
    ball = ((z - 0.2) ** 2 + y**2 + (x + 0.3) ** 2 < 0.16).expand(5, -1, -1, -1)
    batch = Batch(
        volume=ball[:, None].float() * 0.8, ids=tuple("abcde"), seeds=torch.arange(5), target=3 * ball.to(torch.uint8)
    )
    found = jittered(batch)
    assert found.target is not None
    assert found.target.dtype == torch.uint8
    assert set(found.target.unique().tolist()) == {0, 3}
    inside = found.volume[:, 0] > 0.4
    assert ((found.target == 3) == inside).float().mean() > 0.985
    assert not torch.equal(found.target, batch.target)
    labels = torch.tensor([[1.0], [0.0], [1.0], [0.0], [1.0]])
    assert jittered(Batch(batch.volume, batch.ids, batch.seeds, target=labels)).target is labels
