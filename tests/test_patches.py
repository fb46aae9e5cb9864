"""Batches of patches: what they hold, where they lie, and that nothing but seed and step decides it."""

import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from chest import chest, write_nifti

from mg3d.data.listing import Listing
from mg3d.data.masks import prepare_masks
from mg3d.data.patches import PatchLoader, PatchSpec, load_mask, mask_path, places_path
from mg3d.data.store import DamagedCache
from mg3d.fit import Batches
from mg3d.types import Case

SPEC = PatchSpec(spacing_mm=(10.0, 9.0, 9.0), window_hu=(-1000.0, 1000.0), patch=(8, 10, 12))
WHOLE = (28, 32, 36)


@pytest.fixture(scope="module")
def entries(tmp_path_factory):
    """Five cases with one large class and one of a single voxel, in a corner of the volume; the last has none."""
    folder, cases = tmp_path_factory.mktemp("patches"), []
    for i in range(5):
        hu = chest(i)
        mask = ((hu < -600) & (hu > -930)).astype(np.uint8) * (i < 4)
        mask[35, 31, 27] = 2 * (i < 4)
        files = [write_nifti(folder / f"{i}{end}.nii.gz", x) for end, x in (("", hu), ("_seg", mask))]
        cases.append(Case(f"case_{i}", f"p{i}", "train", files[0], "", mask=files[1]))
    listing = Listing(cases)
    return prepare_masks(listing, classes="0ab", spec=SPEC, folder=folder / "c", workers=1, progress=False).entries


def loader(entries, **options) -> PatchLoader:
    return PatchLoader(entries, **{"spec": SPEC, "batch": 2, "seed": 3} | options)


def equal(a, b) -> bool:
    same = (torch.equal(getattr(a, n), getattr(b, n)) for n in ("volume", "target", "seeds"))
    return a.ids == b.ids and all(same)


def corner(entry, volume: np.ndarray) -> tuple[int, ...]:
    """Where in its volume a patch without padding lies, by its first row: noise makes it unique."""
    whole = entry.load().astype(np.float32)
    rows = np.lib.stride_tricks.sliding_window_view(whole, volume.shape[2], axis=2)
    found = np.argwhere((rows == volume[0, 0]).all(-1))
    assert len(found) == 1
    return tuple(found[0])


def test_a_patch_is_a_piece_of_volume_and_mask(entries):
    by_id = {e.case.id: e for e in entries}
    for batch in loader(entries).steps(0, 12):
        assert batch.volume.shape == (2, 1, *SPEC.patch)
        assert batch.volume.dtype == torch.float32
        assert batch.target.shape == (2, *SPEC.patch)
        assert batch.target.dtype == torch.int64
        for id_, volume, target in zip(batch.ids, batch.volume.numpy()[:, 0], batch.target.numpy(), strict=True):
            at = corner(by_id[id_], volume)
            piece = tuple(slice(a, a + p) for a, p in zip(at, SPEC.patch, strict=True))
            np.testing.assert_array_equal(volume, by_id[id_].load()[piece])
            np.testing.assert_array_equal(target, load_mask(by_id[id_])[piece])


def test_it_is_what_the_training_loop_asks_for(entries):
    assert isinstance(loader(entries), Batches)


def test_a_batch_depends_on_seed_and_step_alone(entries):
    a, b = loader(entries), loader(entries)
    later = {t: b.batch(t) for t in (5, 0, 3)}
    assert all(equal(a.batch(t), batch) for t, batch in later.items())
    assert equal(next(a.steps(3, 4)), later[3])
    assert not torch.equal(a.batch(0).volume, loader(entries, seed=4).batch(0).volume)
    first = a.batch(0)
    again = next(t for t in range(1, 99) if set(first.ids) & set(a.batch(t).ids))  # another epoch, another place
    assert not torch.isin(a.batch(again).seeds, first.seeds).any()


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_batch_of_one_process(entries, world):
    one = loader(entries, batch=2 * world)
    ranks = [loader(entries, rank=r, world=world) for r in range(world)]
    for step in range(4):
        whole, parts = one.batch(step), [r.batch(step) for r in ranks]
        assert whole.ids == sum((p.ids for p in parts), ())
        for name in ("volume", "target", "seeds"):
            assert torch.equal(getattr(whole, name), torch.cat([getattr(p, name) for p in parts]))


def test_each_epoch_takes_each_case_once(entries):
    order = [id_ for batch in loader(entries, batch=1).steps(0, 20) for id_ in batch.ids]
    epochs = [order[i : i + 5] for i in range(0, 20, 5)]
    assert all(len(set(e)) == 5 for e in epochs)
    assert len({tuple(e) for e in epochs}) > 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_foreground_is_in_its_share_of_patches_and_classes_take_turns(entries, share):
    tiny = replace(SPEC, patch=(1, 1, 1), foreground=share)
    drawn = loader(entries[:4], spec=tiny, batch=400).batch(0).target.flatten().tolist()
    counts, base = Counter(drawn), load_mask(entries[0]).astype(bool).mean()
    expected = share + (1 - share) * base
    assert abs((counts[1] + counts[2]) / 400 - expected) < 4 * np.sqrt(0.25 / 400)
    assert abs(counts[2] / 400 - share / 2) < 0.1  # one voxel in 32,256, but half of the foreground patches


def test_a_wanted_voxel_may_lie_anywhere_in_its_patch(entries):
    whole = replace(SPEC, foreground=1.0)
    found = loader(entries[:1], spec=whole, batch=300).batch(0)
    places = {tuple(np.argwhere(t == 2)[0]) for t in found.target.numpy() if (t == 2).any()}
    assert len(places) == 1  # a corner of the volume: one patch holds it
    middle = loader(entries[:1], spec=replace(whole, patch=(3, 3, 3)), batch=300).batch(0).target
    hits = (middle == 1).float().mean(0)
    assert hits.min() > 0.3
    assert hits.max() - hits.min() < 0.1
    assert all((t > 0).any() for t in middle)


def test_without_foreground_patches_lie_anywhere(entries):
    found = loader(entries[4:], spec=replace(SPEC, foreground=1.0), batch=40).batch(0)
    assert not found.target.any()
    at = {corner(entries[4], v) for v in found.volume.numpy()[:, 0]}
    assert len(at) > 30
    assert max(a for a, _, _ in at) > 14 > min(a for a, _, _ in at)


def test_what_a_volume_is_smaller_is_padded_on_both_sides(entries):
    large = replace(SPEC, patch=(33, 40, 12))
    batch = loader(entries[:2], spec=large).batch(0)
    for id_, volume, target in zip(batch.ids, batch.volume.numpy()[:, 0], batch.target.numpy(), strict=True):
        entry = next(e for e in entries if e.case.id == id_)
        w = corner(entry, volume[2:30, 4:36])[2]
        np.testing.assert_array_equal(volume[2:30, 4:36], entry.load()[..., w : w + 12])
        np.testing.assert_array_equal(target[2:30, 4:36], load_mask(entry)[..., w : w + 12])
        volume[2:30, 4:36] = target[2:30, 4:36] = 0
        assert not volume.any()
        assert not target.any()


def test_whole_volumes_come_one_by_one_in_order(entries):
    first, second = (list(loader(entries, batch=n).all()) for n in (1, 2))
    assert [b.ids for b in first] == [(e.case.id,) for e in entries]
    assert all(equal(a, b) for a, b in zip(first, second, strict=True))
    for batch, entry in zip(first, entries, strict=True):
        np.testing.assert_array_equal(batch.volume[0, 0], entry.load())
        np.testing.assert_array_equal(batch.target[0], load_mask(entry))
        assert batch.target.dtype == torch.uint8  # a split of them is kept until it is scored
    assert not torch.isin(torch.cat([b.seeds for b in first]), loader(entries).batch(0).seeds).any()
    alone = [replace(e, case=replace(e.case, mask=None)) for e in entries[:1]]
    assert next(loader(alone).all()).target is None


@pytest.mark.parametrize("which", ["volume", "mask", "places"])
def test_a_damaged_file_is_named_with_the_mend(entries, which, tmp_path):
    entry = entries[0]
    path = {"volume": entry.array, "mask": mask_path(entry), "places": places_path(entry)}[which]
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    try:
        for read in (lambda: loader(entries[:1]).batch(0), lambda: list(loader(entries[:1]).steps(0, 3))):
            with pytest.raises(DamagedCache, match=rf"{path.name}.*delete it.*prepare again"):
                read()
        np.save(path, np.zeros((3, 3, 3), np.float16 if which == "volume" else np.uint8))
        with pytest.raises(DamagedCache, match=r"\(3, 3, 3\)"):
            loader(entries[:1]).batch(0)
    finally:
        path.write_bytes(whole)
    assert not any(t.name.startswith("loader") for t in threading.enumerate())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"entries": []}, "no entry"),
        ({"batch": 0}, "batch=0"),
        ({"rank": 2, "world": 2}, "rank=2"),
    ],
)
def test_wrong_arguments_are_named(entries, wrong, message):
    with pytest.raises(ValueError, match=message):
        loader(**{"entries": entries} | wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"spacing_mm": (0.0, 1.0, 1.0)}, "spacing_mm="),
        ({"window_hu": (5.0, 5.0)}, "window_hu="),
        ({"patch": (0, 8, 8)}, "patch="),
        ({"foreground": 1.5}, "foreground=1.5"),
    ],
)
def test_a_wrong_spec_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        replace(SPEC, **wrong)


def test_the_hash_is_of_what_is_prepared():
    assert SPEC.hash == replace(SPEC, patch=(4, 4, 4), foreground=0.1).hash
    others = (replace(SPEC, spacing_mm=(3.0, 3.0, 3.0)), replace(SPEC, window_hu=(0.0, 0.0)))
    assert len({SPEC.hash, *(s.hash for s in others)}) == 3
