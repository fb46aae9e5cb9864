"""Batches: the order, the ranks, the seeds, reading ahead, and files that are gone."""

import threading
import time
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from chest import SPEC, listing

from mg3d.data.loader import AHEAD, Loader, _mix, seeds
from mg3d.data.prepare import DamagedCache, prepare
from mg3d.types import Report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("loader")


@pytest.fixture
def entries(folder):
    """Six prepared cases; what a test has damaged is prepared again."""
    return prepare(listing(folder / "source"), spec=SPEC, folder=folder / "cache", workers=1, progress=False).entries


def tokenise(reports):
    """One token a report: its length."""
    words = torch.tensor([[len(r)] for r in reports])
    return Report(words, torch.zeros_like(words), torch.zeros_like(words), words[:, None])


def equal(a, b) -> bool:
    return a.ids == b.ids and torch.equal(a.volume, b.volume) and torch.equal(a.seeds, b.seeds)


def threads() -> int:
    return sum(t.name.startswith("loader") for t in threading.enumerate())


def test_a_batch_holds_the_volumes_reports_and_labels_of_its_cases(entries):
    loader = Loader(entries, tokenise=tokenise, batch=4, seed=3, labels=["effusion", "nodule"])
    batch = loader.batch(0)
    by_id = {e.case.id: e for e in entries}
    assert batch.volume.shape == (4, 1, *SPEC.shape)
    assert batch.volume.dtype == torch.float32
    for i, id_ in enumerate(batch.ids):
        np.testing.assert_array_equal(batch.volume[i, 0], np.load(by_id[id_].array).astype(np.float32))
        assert batch.report.words[i, 0] == len(by_id[id_].case.report)
        assert batch.target[i].tolist() == [1.0, by_id[id_].case.labels["nodule"]]


def test_large_batches_hold_the_same(entries, monkeypatch):
    small = Loader(entries, batch=6, seed=0).batch(0)
    monkeypatch.setattr("mg3d.data.loader.FRESH", 0)
    large = Loader(entries, batch=6, seed=0).batch(0)
    assert equal(small, large)
    kept = large.volume[2:4] * 1
    view = large.volume[2:4]
    del large  # the memory lives as long as a view of it
    assert torch.equal(view, kept)
    view.add_(1)
    assert torch.equal(view, kept + 1)


def test_a_batch_depends_on_seed_and_step_alone(entries):
    a, b = (Loader(entries, batch=4, seed=7) for _ in range(2))
    later = [b.batch(t) for t in (5, 0, 3)]
    assert equal(later[0], a.batch(5))
    assert equal(later[2], a.batch(3))
    assert equal(next(a.steps(3, 4)), later[2])
    assert a.batch(0).ids != Loader(entries, batch=4, seed=8).batch(0).ids or not torch.equal(
        a.batch(0).seeds, Loader(entries, batch=4, seed=8).batch(0).seeds
    )


def test_each_epoch_holds_each_case_once_in_another_order(entries):
    loader = Loader(entries, batch=4, seed=0)  # 6 cases: batches straddle the epochs
    order = [id_ for batch in loader.steps(0, 6) for id_ in batch.ids]
    epochs = [order[i : i + 6] for i in range(0, 24, 6)]
    assert all(sorted(e) == sorted(x.case.id for x in entries) for e in epochs)
    assert len({tuple(e) for e in epochs}) > 1


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batch_of_one_process(entries, world):
    one = Loader(entries, batch=2 * world, seed=5)
    ranks = [Loader(entries, batch=2, seed=5, rank=r, world=world) for r in range(world)]
    for step in range(5):
        whole, parts = one.batch(step), [r.batch(step) for r in ranks]
        assert whole.ids == sum((p.ids for p in parts), ())
        assert torch.equal(whole.seeds, torch.cat([p.seeds for p in parts]))
        assert torch.equal(whole.volume, torch.cat([p.volume for p in parts]))


def test_seeds_never_repeat_in_a_run_and_differ_between_runs():
    many = torch.cat([seeds(0, np.arange(100_000)), seeds(1, np.arange(100_000)), seeds(0, np.arange(9) + 2**62)])
    assert many.dtype == torch.int64
    assert (many >= 0).all()
    assert len(many.unique()) == len(many)
    bits = (many[:, None] >> torch.arange(63)) & 1
    assert (bits.float().mean(0) - 0.5).abs().max() < 0.01  # every bit is used
    # the published first outputs of splitmix64 for the state 0 and its golden-ratio successor
    assert _mix(np.array([0], dtype=np.uint64))[0] == 0xE220A8397B1DCDAF
    assert _mix(np.array([0x9E3779B97F4A7C15], dtype=np.uint64))[0] == 0x6E789E6AA1B965F4


def test_all_gives_every_case_once_in_order_with_fixed_seeds(entries):
    loader = Loader(entries, batch=4, seed=0)
    first, second = list(loader.all()), list(loader.all())
    assert [len(b.ids) for b in first] == [4, 2]
    assert [id_ for b in first for id_ in b.ids] == [e.case.id for e in entries]
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))
    singles = list(Loader(entries, batch=1, seed=0).all())  # the size of a batch changes no sample's seed
    assert torch.equal(torch.cat([b.seeds for b in singles]), torch.cat([b.seeds for b in first]))


@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "other"])
def test_a_damaged_file_is_named_with_the_mend(entries, damage):
    path = entries[2].array
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "other":
        np.save(path, np.zeros(3))
    else:
        path.write_bytes(whole[: 1000 if damage == "cut" else 0])
    try:
        loader = Loader(entries, batch=6, seed=0)
        with pytest.raises(DamagedCache, match=rf"{path.name}.*delete it.*prepare again"):
            loader.batch(0)
        with pytest.raises(DamagedCache, match=path.name):  # from the thread too
            list(loader.steps(0, 3))
        with pytest.raises(DamagedCache, match=path.name):
            list(loader.all())
        assert threads() == 0
    finally:
        path.unlink(missing_ok=True)  # the mend


def test_volumes_of_two_specs_in_a_batch_are_named(entries, folder):
    other = prepare(
        listing(folder / "source", 1), spec=type(SPEC)(shape=(8, 8, 8)), folder=folder / "c2", workers=1, progress=False
    )
    with pytest.raises(DamagedCache, match="another spec"):
        Loader([*entries, *other.entries], batch=7, seed=0).batch(0)


def test_it_reads_ahead_but_not_far_and_stops_at_once(entries):
    loader = Loader(entries, batch=1, seed=0)
    read = []
    original = loader.batch
    loader.batch = lambda step: (read.append(step), original(step))[1]
    batches = loader.steps(10, 1000)
    assert read == []  # nothing before the first is asked for
    for _ in islice(batches, 3):
        time.sleep(0.05)
    assert 3 <= len(read) <= 3 + AHEAD
    batches.close()
    assert threads() == 0
    assert read == list(range(10, 10 + len(read)))


def test_an_error_in_the_loop_leaves_no_thread(entries):
    batches = Loader(entries, batch=2, seed=0).steps(0, 100)

    def stumble():
        for _ in batches:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stumble()
    del batches
    assert threads() == 0


def test_the_stream_equals_the_single_batches(entries):
    loader = Loader(entries, batch=4, seed=1)
    assert all(equal(b, loader.batch(t)) for t, b in zip(range(2, 9), loader.steps(2, 9), strict=True))
    assert list(loader.steps(4, 4)) == []


def test_every_place_of_an_epoch_is_as_likely(entries):
    loader = Loader(entries, batch=1, seed=0)
    first = Counter(int(loader._epoch(e)[0]) for e in range(600))
    assert set(first) == set(range(6))
    assert max(first.values()) < 150  # 100 expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"entries": []}, "no entry"),
        ({"batch": 0}, "batch=0"),
        ({"rank": 2, "world": 2}, "rank=2"),
        ({"labels": ["nodule", "mass"]}, "case_0 has no label 'mass'; it has: nodule, effusion"),
        ({"labels": ["nodule"], "target": len}, "not both"),
    ],
)
def test_wrong_arguments_are_named(entries, wrong, message):
    arguments = {"entries": entries, "batch": 1, "seed": 0} | wrong
    with pytest.raises(ValueError, match=message):
        Loader(arguments.pop("entries"), **arguments)


def test_targets_can_be_made_from_the_entries(entries):
    loader = Loader(entries, batch=2, seed=0, target=lambda found: torch.tensor([len(e.case.id) for e in found]))
    assert loader.batch(0).target.tolist() == [6, 6]
