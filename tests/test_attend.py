"""Maps of sentences: from a run to voxels and back to the file, and their score against the phantom's truth."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from trained import trained

import mg3d
from mg3d import Recipe, attend, ground
from mg3d.data import BadVolume
from mg3d.data.phantom import load_truth
from mg3d.data.phantom.report import Sentence
from mg3d.grounding import Pool, _borrow, prepared, score, table, truth_of
from mg3d.maps import Attention, attend_all, covered, look, opened, stride_of, upsample
from mg3d.metrics import contrast, means
from mg3d.objectives.mg3d import VARIANTS
from mg3d.recipe import Scale
from mg3d.runs import DamagedRun, Run
from mg3d.types import Batch, Report

TINY = Scale("phantom", 4, 1, 2, 2, (48, 32, 48), shrink=16, lr=1e-3, lr_fusion=1e-3, test=4)
CASES = [f"test_{i}_a_1" for i in (3, 1, 4, 2)]
MAPS = ("run", "untrained", "permuted", "stranger", "same finding", "ceiling", "uniform")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with trained(tmp_path_factory.mktemp("home"), TINY) as run:
        yield run


@pytest.fixture(scope="module")
def found(run) -> list[Attention]:
    return list(attend_all(run, CASES))


# from a run to voxels ------------------------------------------------------------------------------------------------


def test_every_sentence_of_the_report_has_a_map(run, found):
    one = attend(run, CASES[0])
    assert one.sentences == tuple(s.text for s in load_truth(one.case.truth).sentences)
    assert one.tokens.shape == (len(one.sentences), 2, 1, 2)
    assert one.maps.shape == (len(one.sentences), *TINY.shape)
    assert one.volume.shape == TINY.shape
    assert one.maps.dtype == np.float32
    assert np.allclose(one.maps.sum((1, 2, 3), dtype=float), 1, atol=1e-5)
    assert one.maps.min() > 0
    assert [a.case.id for a in found] == CASES
    assert np.ptp(one.tokens, 0).max() > 0  # sentences differ


def test_a_run_can_be_named_in_three_ways(run):
    wanted = attend(run, CASES[0]).tokens
    for name in (run.path, str(run.path), run.path.name):
        assert np.array_equal(attend(name, CASES[0]).tokens, wanted)
    assert mg3d.find(scale="tinier")[0].path == opened(run.path.name).path
    assert mg3d.attend is attend


def test_company_changes_nothing(run, found):
    """Reports are padded to the longest of a batch; nobody's map may see that."""
    for size in (1, 3):
        for one, other in zip(attend_all(run, CASES, batch=size), found, strict=True):
            assert one.sentences == other.sentences
            assert np.allclose(one.tokens, other.tokens, atol=1e-6)


def test_the_untrained_control_is_the_objective_before_its_first_step(run):
    from mg3d.train import objective, words

    one, again = (attend(run, CASES[0], untrained=True) for _ in range(2))
    assert np.array_equal(one.tokens, again.tokens)
    assert not np.allclose(one.tokens, attend(run, CASES[0]).tokens, atol=1e-7)
    text, tokenise = words(run.recipe)
    model = objective(run.recipe, text).eval()
    volume = torch.from_numpy(one.volume)[None, None]
    report = tokenise([one.case.report])
    maps, grid = model.maps(Batch(volume, ("x",), torch.tensor([0]), report))
    assert np.allclose(one.tokens, maps[0, -1].mean(0).reshape(-1, *grid), atol=1e-5)


def test_a_layer_is_chosen_from_either_end(run):
    layers = [attend(run, CASES[0], layer=i).tokens for i in (0, 2, -1, -3)]
    assert np.array_equal(layers[1], layers[2])
    assert np.array_equal(layers[0], layers[3])
    assert not np.allclose(layers[0], layers[1], atol=1e-7)
    assert np.array_equal(attend(run, CASES[0], head=0).tokens, layers[2])
    for wrong in ({"layer": 3}, {"layer": -4}, {"head": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*: this run has"):
            attend(run, CASES[0], **wrong)


def test_maps_follow_the_grid_of_the_objective(run):
    """A variant whose tokens are cells of a finer level of the pyramid."""
    name = next(name for name, config in VARIANTS.items() if config.level < -1)
    finer = attend(Run.open(Recipe(scale="tinier", text="tiny", variant=name)), CASES[0], untrained=True)
    assert (finer.grid, finer.stride) == ((6, 4, 6), 8)
    assert finer.maps.shape[1:] == TINY.shape
    assert np.allclose(finer.maps.sum((1, 2, 3), dtype=float), 1, atol=1e-5)


class Fixed:
    """An objective whose maps are given."""

    def __init__(self, maps):
        self._maps = maps

    def maps(self, batch):
        return self._maps, (1, 2, 2)


def test_weights_are_shares_of_their_sentence_whatever_the_mechanism():
    maps = torch.rand(2, 3, 2, 5, 4) * 7  # sums far from 1, as a sigmoid's
    report = Report(*(torch.ones(2, *shape, dtype=torch.int64) for shape in ((9,), (9,), (9,), (5, 4))))
    report.alone[1, 3:] = 0
    batch = Batch(torch.zeros(2, 1, 4, 4, 4), ("a", "b"), torch.zeros(2, dtype=torch.int64), report)
    weights, real, grid = look(Fixed(maps), batch, layer=1)
    assert grid == (1, 2, 2)
    assert real.sum(1).tolist() == [5, 3]
    mean = maps[:, 1].mean(1)
    assert torch.allclose(weights, mean / mean.sum(-1, keepdim=True))
    single, _, _ = look(Fixed(maps), batch, layer=0, head=1)
    assert torch.allclose(single, maps[:, 0, 1] / maps[:, 0, 1].sum(-1, keepdim=True))
    with pytest.raises(ValueError, match="no reports"):
        look(Fixed(maps), replace(batch, report=None))


# between tokens and voxels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "stride"), [((8, 4, 12), 4), ((7, 4, 9), 4), ((5, 6, 7), None)])
def test_upsampling_is_linear_between_the_centres_of_tokens(shape, stride):
    grid = (2, 1, 3)
    tokens = np.random.default_rng(0).random((5, *grid), dtype=np.float32)
    slow = tokens.astype(float)
    for axis, (voxels, n) in enumerate(zip(shape, grid, strict=True), start=1):
        width = stride or voxels / n
        centres = (np.arange(n) + 0.5) * width - 0.5
        slow = np.apply_along_axis(lambda row, c=centres, v=voxels: np.interp(np.arange(v), c, row), axis, slow)
    slow /= slow.sum((1, 2, 3), keepdims=True)
    assert np.allclose(upsample(tokens, shape, stride=stride), slow, atol=1e-6)
    assert upsample(tokens[:0], shape, stride=stride).shape == (0, *shape)


def test_the_cells_of_tokens_are_found():
    assert stride_of((64, 40, 64), (2, 2, 2), (2, 4, 8, 16, 32)) == 32
    assert stride_of((64, 40, 64), (4, 3, 4), (2, 4, 8, 16, 32)) == 16
    assert stride_of((64, 40, 64), (3, 3, 3), (2, 4, 8, 16, 32)) is None


def test_covered_is_the_share_of_each_cell():
    masks = np.zeros((1, 4, 4, 6), bool)
    masks[0, :2, 2:, 4:] = True  # a quarter of what the volume has of the second cell
    masks[0, 3, 0, 0] = True
    assert covered(masks, (1, 1, 2), stride=4)[0, 0, 0].tolist() == pytest.approx([1 / 64, 8 / 32])
    assert covered(masks, (2, 2, 3), stride=2)[0, 0, 1].tolist() == [0, 0, 1]
    assert covered(masks, (2, 2, 3))[0, 0, 1].tolist() == [0, 0, 1]
    assert covered(masks[:0], (2, 2, 3)).shape == (0, 2, 2, 3)


@pytest.mark.parametrize("corner", [(0, 0, 0), (1, 0, 1), (0, 1, 0)])
def test_maps_go_back_to_the_file_the_right_way_round(found, corner):
    """The centre of mass of a map that looks at one corner is where it was, in millimetres, in every stored frame."""
    frames = set()
    for attention in found:
        tokens = np.zeros((1, 2, 2, 2), np.float32)
        tokens[(0, *corner)] = 1
        here = replace(attention, tokens=tokens)
        there, record = here.to_source(), attention.record
        assert there.shape == (1, *record["source_shape"])
        frames.add(str(np.sign(np.diag(record["source_affine"]))))
        places = []
        for maps, affine in ((here.maps, record["affine"]), (there, record["source_affine"])):
            mass = maps[0] / maps[0].sum()
            index = [float((mass.sum(tuple({0, 1, 2} - {a})) * np.arange(mass.shape[a])).sum()) for a in range(3)]
            places.append(np.array(affine) @ [*index, 1])
        assert np.allclose(*places, atol=1.5)  # a source voxel has 5 mm
    assert len(frames) > 1


# what is refused -----------------------------------------------------------------------------------------------------


def test_an_unknown_run_or_case_is_named_with_its_neighbours(run):
    with pytest.raises(FileNotFoundError, match=f"no run nonsense.*{run.path.name}"):
        attend("nonsense", CASES[0])
    with pytest.raises(ValueError, match=r"no case 'test_9_a_1'.*test_4_a_1"):
        attend(run, "test_9_a_1")


def test_a_run_without_weights_says_what_to_do(run):
    unfinished = Run.open(Recipe(scale="tinier", text="tiny", seed=5))
    with pytest.raises(DamagedRun, match=r"at step 0 of 2.*finish it with pretrain"):
        attend(unfinished, CASES[0])
    assert attend(unfinished, CASES[0], untrained=True).sentences
    weights = run.path / "model.safetensors"
    whole = weights.read_bytes()
    weights.unlink()
    try:
        with pytest.raises(DamagedRun, match=r"model\.safetensors"):
            attend(run, CASES[0])
    finally:
        weights.write_bytes(whole)


def test_a_method_that_reads_no_sentences_has_no_maps(run, monkeypatch):
    monkeypatch.setattr("mg3d.train.load", lambda run, **_: torch.nn.Identity())
    with pytest.raises(ValueError, match="method 'mg3d' reads no sentences"):
        attend(run, CASES[0])


def test_a_case_of_ones_own_is_prepared_and_a_bad_one_refused(run, found, tmp_path):
    case = found[0].case
    own = replace(
        case, id="mine", report="Heart is large. No effusion. There is a nodule in the left lung.", truth=None
    )
    seen = attend(run, own)
    assert seen.sentences == ("Heart is large.", "No effusion.", "There is a nodule in the left lung.")
    assert np.array_equal(seen.volume, found[0].volume)
    with pytest.raises(ValueError, match="case mine has no report"):
        attend(run, replace(own, report=" . "))
    with pytest.raises(BadVolume, match=r"nowhere\.nii\.gz"):
        attend(run, replace(own, volume=tmp_path / "nowhere.nii.gz"))


# against the truth ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def planted(found) -> list[Attention]:
    """Maps that are the masks of their sentences' findings; uniform where there is none."""
    maps = []
    for attention in found:
        masks = prepared(truth_of(attention.case), attention).finding.astype(np.float32)
        masks[~masks.any((1, 2, 3))] = 1
        maps.append(replace(attention, tokens=masks / masks.sum((1, 2, 3), keepdims=True), stride=1))
    return maps


def chosen(rows, name, target="finding"):
    return [r for r in rows if r["map"] == name and r["target"] == target and not np.isnan(r["share"])]


def test_a_planted_map_scores_one_and_a_uniform_one_chance(planted):
    rows = [row for part in score(planted, untrained=planted) for row in part]
    assert len(chosen(rows, "run")) > 10
    for name in ("run", "untrained", "ceiling"):
        for row in chosen(rows, name):
            assert (row["pointing"], row["pointing_near"], row["pointing_token"]) == (1, 1, 1), row
            assert row["mass"] == pytest.approx(1, abs=1e-5)
            assert row["auprc"] == pytest.approx(1)
    for target in ("finding", "organ"):
        for row in chosen(rows, "uniform", target):
            assert row["pointing"] == row["mass"] == row["share"]
            assert row["auprc"] == pytest.approx(row["share"], rel=1e-12)
            assert (row["pointing_near"], row["pointing_token"]) == (row["share_near"], row["share_token"])
            assert (row["lift"], row["spread"]) == (1, pytest.approx(1))
    for name in ("permuted", "stranger"):
        assert means(rows, "mass", where={"map": name, "target": "finding"})[0]["mean"] < 0.2
    found = contrast(rows, "mass", "run", "permuted", where={"target": "finding"})
    assert found["low"] > 0.5
    assert found["p"] == 2 / 2**4  # the least that four cases can give


def test_ground_scores_a_run_with_all_its_controls(run):
    rows = ground(run, progress=False)
    assert {r["map"] for r in rows if r["target"] == "finding"} == set(MAPS)
    assert {r["kind"] for r in rows if r["target"] == "organ"} == {"present", "negated", "normal"}
    assert {r["kind"] for r in rows if r["target"] == "finding"} == {"present"}
    assert {r["run"] for r in rows} == {run.path.name}
    assert len({r["case"] for r in rows}) == 4
    counts = {(t, m): sum(r["map"] == m and r["target"] == t for r in rows) for t in ("finding", "organ") for m in MAPS}
    assert counts["finding", "run"] == counts["finding", "untrained"] == counts["finding", "uniform"]
    assert counts["organ", "run"] > counts["finding", "run"]
    by_size = means(rows, "pointing", by=("map", "size"), where={"target": "finding"})
    assert sum(r["n"] + r["undefined"] for r in by_size if r["map"] == "run") == counts["finding", "run"]
    lines = table(rows, ("pointing_near",)).splitlines()
    mean = means(rows, "pointing_near", where={"map": "uniform", "target": "finding"})[0]["mean"]
    assert lines[0] == "map | pointing_near"
    assert {line.split(" | ")[0] for line in lines[2 : 2 + len(MAPS)]} == set(MAPS)
    assert any(line.startswith(f"uniform | {mean:.3f} (") for line in lines)
    assert sum(line.startswith("run - ") for line in lines) == len(MAPS) - 2
    fewer, again = (ground(run, volumes=2, progress=False) for _ in range(2))
    assert len({r["case"] for r in fewer}) == 2
    assert str(fewer) == str(again)  # as text, where NaN equals NaN


def test_what_cannot_be_scored_is_refused(run, found):
    with pytest.raises(ValueError, match="no case in split 'tset'"):
        ground(run, split="tset")
    with pytest.raises(ValueError, match="only phantom cohorts"):
        truth_of(replace(found[0].case, truth=None))
    with pytest.raises(ValueError, match="truth tells of"):
        next(score([replace(found[0], sentences=("Something else.", *found[0].sentences[1:]))]))
    other = next(a for a in found[1:] if a.record["source_affine"] != found[0].record["source_affine"])
    with pytest.raises(ValueError, match="different grids"):
        prepared(truth_of(other.case), found[0])


def test_targets_are_the_truth_at_the_voxels_of_the_prepared_grid(found):
    """Each prepared voxel against the source voxel that holds its centre, one by one."""
    attention = found[1]
    truth, record = truth_of(attention.case), attention.record
    targets = prepared(truth, attention)
    to_source = np.linalg.inv(record["source_affine"]) @ np.array(record["affine"])
    rng = np.random.default_rng(0)
    for place in np.concatenate([rng.integers(0, attention.shape, (50, 3)), np.argwhere(targets.finding.any(0))[::9]]):
        x, y, z = np.rint((to_source @ [*place, 1])[:3] + 1e-9).astype(int)
        for i, sentence in enumerate(truth.sentences[: len(attention.sentences)]):
            there = any(truth.masks[f, x, y, z] for f in sentence.findings)
            assert targets.finding[i][tuple(place)] == there
    assert targets.finding.any()
    assert (targets.size_ml > 0).tolist() == [bool(s.findings) for s in truth.sentences[: len(attention.sentences)]]


def test_controls_borrow_from_whom_they_say(found):
    """Maps carry their owner's number, so that the borrowed ones tell whose they are."""

    def said(label="", *findings):
        return Sentence("x", "present" if findings else "negated", findings, label)

    reports = [
        (said("A", 0), said("A", 0, 1), said("B", 2), said(), said("A", 1)),
        (said("B", 0), said("C", 1)),
        (said("A", 0), said()),
    ]
    numbers = np.cumsum([0, *(len(r) for r in reports)])
    tokens = [np.arange(a, b, dtype=np.float32).reshape(-1, 1, 1, 1) for a, b in pairwise(numbers)]
    pool = Pool.of([replace(found[0], tokens=t) for t in tokens], reports)
    assert pool.tokens.ravel().tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert pool.case.tolist() == [0, 0, 0, 0, 1, 1, 2]
    seen = {"permuted": {}, "stranger": {}, "same finding": {}}
    for seed in range(60):
        lent = _borrow(pool, 0, reports[0], tokens[0], np.random.default_rng(seed))
        for name, maps in lent.items():
            for i, value in enumerate(maps.ravel()):
                seen[name].setdefault(i, set()).add(float(value))
    assert seen["permuted"] == {0: {2, 3, 4}, 1: {2, 3}, 2: {0, 1, 3, 4}, 3: {0, 1, 2, 4}, 4: {0, 2, 3}}
    assert all(seen["stranger"][i] == {5, 6, 7} for i in range(5))
    assert [seen["same finding"][i] for i in (0, 1, 2, 4)] == [{7}, {7}, {5}, {7}]
    nobody = _borrow(pool, 1, reports[1], tokens[1], np.random.default_rng(0))["same finding"]
    assert np.isnan(nobody.ravel()).tolist() == [False, True]  # nobody else has a C
