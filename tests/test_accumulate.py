"""Steps in parts: losses and gradients of the whole batch, the memory of a part, and stops where that cannot be."""

import dataclasses
import weakref
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from distributed_worker import REPORTS
from toy import STEPS, Toy, ToyBatches, ToyEncoder

from mg3d import objectives
from mg3d.accumulate import SPREAD, Parts
from mg3d.encoders.text import load_text
from mg3d.fit import Diverged, fit
from mg3d.recipe import Recipe
from mg3d.runs import Run
from mg3d.text import Tokeniser
from mg3d.types import Batch, Losses, Report, Trainable

SIZE = 8
IDS = tuple(f"case{i}" for i in range(SIZE))
SAID = dict(zip(IDS, [*REPORTS, *(". ".join(r.split(". ")[1:]) for r in REPORTS)], strict=True))


def tokenised(ids: tuple[str, ...]) -> Report:
    """The reports of some cases, padded to the longest of them."""
    return Tokeniser(load_text("tiny").tokenizer, max_words=64)([SAID[i] for i in ids])


def cut(whole: Batch, parts: int):
    """What reads a batch in equal parts."""

    def read(first: int) -> Iterator[Batch]:
        n = len(whole.ids) // parts
        for k in range(first, parts):
            own = slice(k * n, (k + 1) * n)
            yield Batch(whole.volume[own], whole.ids[own], whole.seeds[own], whole.report and tokenised(whole.ids[own]))

    return read


def volumes(size: int = SIZE, dtype: torch.dtype = torch.float64) -> Batch:
    volume = torch.rand(size, 1, 16, 16, 16, generator=torch.Generator().manual_seed(3))
    volume += torch.arange(size).view(-1, 1, 1, 1, 1) / size  # patients differ
    return Batch(volume.to(dtype), tuple(f"case{i}" for i in range(size)), torch.arange(size) + 5)


def nce(one: torch.Tensor, two: torch.Tensor, tau: float | torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.normalize(one, dim=1) @ F.normalize(two, dim=1).T / tau, torch.arange(len(one)))


class Pairs(Trainable):
    """One loss that is a mean, one that compares samples once, one that compares with what it learns, and a mixed one.

    With dropout; `shift` makes features differ from call to call.
    """

    def __init__(self, dropout: float = 0.0, shift: float = 0.0) -> None:
        super().__init__()
        self.encoder = ToyEncoder()
        self.one, self.two = torch.nn.Linear(16, 6), torch.nn.Linear(16, 6)
        self.tau = torch.nn.Parameter(torch.tensor(0.3))
        self.dropout = torch.nn.Dropout(dropout)
        self.shift, self.passes, self.compared = shift, 0, 0

    def pair(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.dropout(self.encoder(batch.volume).pooled)
        return self.one(x), self.two(x) + self.shift * self.passes

    def compare(self, one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
        self.compared += 1
        return nce(one, two, 0.2)

    def total(self, one, two, all_one, all_two) -> Losses:
        learned = nce(all_two, all_one, self.tau)
        return {
            "mean": (one - two).square().mean(),
            "once": 3 * self.once(self.compare, all_one, all_two),
            "bare": learned,
            "mixed": one.square().mean() + 0.5 * learned,
        }

    def forward(self, batch: Batch) -> Losses:
        self.passes += 1
        one, two = self.pair(batch)
        return self.total(one, two, self.gather(one), self.gather(two))


def gradients(model: Trainable) -> dict[str, torch.Tensor]:
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def step(model: Trainable, whole: Batch, parts: int, seed: int = 0):
    """Mean losses and gradients of a step in parts."""
    found = Parts(model, parts=parts, forward=lambda batch, last: model(batch)).backward(cut(whole, parts), seed=seed)
    assert sum((ids for _, ids in found), ()) == whole.ids
    means = {name: sum(float(terms[name]) for terms, _ in found) / parts for name in found[0][0]}
    return means, gradients(model)


def assert_same(found, wanted) -> None:
    """Losses to 1e-6 and gradients to 1e-5, both far above the rounding of float64."""
    assert found[0] == pytest.approx(wanted[0], rel=1e-6)
    assert found[1].keys() == wanted[1].keys()
    for name, grad in wanted[1].items():
        assert (found[1][name] - grad).norm() <= 1e-5 * grad.norm() + 1e-12, name


class Exact:
    """A text encoder whose features are float64, so that rounding does not pass for a wrong gradient."""

    def __init__(self, text) -> None:
        self.text, self.width, self.vocabulary, self.mask_id = text, text.width, text.vocabulary, text.mask_id

    def __call__(self, words):
        return self.text(words).double()

    def word_features(self, report):
        return self.text.word_features(report).double()

    def sentence_features(self, report):
        return self.text.sentence_features(report).double()


@pytest.mark.parametrize("parts", [4, 8])
@pytest.mark.parametrize("variant", ["paper", "released", "word", "intra-no-cml"])
def test_a_method_in_parts_is_that_of_the_whole_batch(tiny, variant, parts):
    """MG-3D's terms with and without a comparison, on reports of one to five sentences, padded to those of a part."""
    torch.manual_seed(0)
    model = objectives.build(
        "mg3d", encoder=ToyEncoder(), text=Exact(tiny), variant=variant, shape=(32, 32, 32), mask_shared=False
    ).double()
    volume = torch.rand(SIZE, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1)).double()
    whole = Batch(volume, IDS, torch.arange(SIZE) + 7, tokenised(IDS))
    assert_same(step(model, whole, parts), step(model, whole, 1))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_any_method_in_parts_is_that_of_the_whole_batch(parts):
    """Means, comparisons with what is learned and without, and sums of both."""
    torch.manual_seed(0)
    model = Pairs().double()
    wanted = step(model, volumes(), 1)
    assert all(g.norm() > 0 for g in wanted[1].values())
    assert_same(step(model, volumes(), parts), wanted)


def test_dropout_is_the_same_in_both_passes():
    """Against one graph of all parts, each under its own seed."""
    torch.manual_seed(0)
    model, whole, parts, seed = Pairs(dropout=0.4).double(), volumes(), 4, 17
    pairs = []
    for k, batch in enumerate(cut(whole, parts)(0)):
        torch.manual_seed(seed + k * SPREAD)
        pairs.append(model.pair(batch))
    one, two = (torch.cat(x) for x in zip(*pairs, strict=True))
    terms = model.total(one, two, one, two)
    torch.stack(list(terms.values())).sum().backward()
    wanted = {name: value.item() for name, value in terms.items()}, gradients(model)
    assert_same(step(model, whole, parts, seed=seed), wanted)
    with pytest.raises(AssertionError):  # else the test sees no dropout
        assert_same(step(model, whole, parts, seed=seed + 1), wanted)


def test_one_part_is_the_plain_step():
    """To the bit: `gather` and `once` are not touched."""
    torch.manual_seed(0)
    model = Pairs(dropout=0.4)
    torch.manual_seed(5)
    torch.stack(list(model(volumes(dtype=torch.float32)).values())).sum().backward()
    wanted = gradients(model)
    _, found = step(model, volumes(dtype=torch.float32), 1, seed=5)
    assert all(torch.equal(found[name], grad) for name, grad in wanted.items())


def test_what_a_step_costs(tiny):
    """Forward passes and computed comparisons of two steps in four parts, of methods that compare and that do not."""
    model = Pairs().double()
    parts = Parts(model, parts=4, forward=lambda batch, last: model(batch))
    for _ in range(2):
        parts.backward(cut(volumes(), 4), seed=0)
    assert (model.passes, model.compared) == (2 * (3 + 4), 2)
    assert model.gather is Trainable.gather
    assert model.once is Trainable.once
    assert model.only_gathers is False

    toy = Toy()
    calls = []
    toy.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    parts = Parts(toy, parts=4, forward=lambda batch, last: toy(batch))
    for _ in range(2):
        parts.backward(cut(volumes(dtype=torch.float32), 4), seed=0)
    assert calls == [False] + 8 * [True]  # one look, in the first step of a run

    mg3d = objectives.build("mg3d", encoder=ToyEncoder(), text=tiny, shape=(32, 32, 32))
    mg3d.encoder.register_forward_hook(lambda *_: calls.append("encoder"))
    volume = F.interpolate(volumes(dtype=torch.float32).volume, (32, 32, 32))
    step(mg3d, Batch(volume, IDS, torch.arange(SIZE), tokenised(IDS)), 4)
    assert calls.count("encoder") == 3 + 2 * 4  # the masked volume is not encoded in the first pass


class Held:
    """A tensor that is saved for a backward pass; counts the bytes of all that are, and their peak."""

    now = peak = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        Held.now += tensor.nbytes
        Held.peak = max(Held.peak, Held.now)

    def __del__(self) -> None:
        Held.now -= self.tensor.nbytes


def saved(size: int, parts: int) -> int:
    """Peak of the bytes that a step keeps for its backward pass."""
    model = Pairs().double()
    Held.now = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda held: held.tensor):
        step(model, volumes(size), parts)
    return Held.peak


def test_memory_is_that_of_a_part():
    """Eight times the samples in eight parts keep little more: their features, instead of their activations."""
    part, whole = saved(2, 1), saved(16, 1)
    assert whole > 5 * part
    assert saved(16, 8) < part + 0.05 * (whole - part)


def test_parts_are_read_again_and_not_held():
    alive = []

    def read(first: int) -> Iterator[Batch]:
        for batch in cut(volumes(), 8)(first):
            alive.append(weakref.ref(batch))
            assert sum(ref() is not None for ref in alive) <= 2
            yield batch

    model = Pairs().double()
    Parts(model, parts=8, forward=lambda batch, last: model(batch)).backward(read, seed=0)
    assert len(alive) == 7 + 8


def test_running_means_move_once_a_step():
    class Normed(Pairs):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.BatchNorm1d(16)

        def pair(self, batch):
            x = self.norm(self.encoder(batch.volume).pooled)
            return self.one(x), self.two(x)

    torch.manual_seed(0)
    model = Normed()
    twin = Normed()
    twin.load_state_dict(model.state_dict())
    step(model, volumes(dtype=torch.float32), 4)
    for batch in cut(volumes(dtype=torch.float32), 4)(0):
        twin(batch)
    assert model.norm.num_batches_tracked == 4
    assert torch.equal(model.norm.running_mean, twin.norm.running_mean)


def test_training_in_parts_is_training(tmp_path, monkeypatch):
    """Three steps of `fit`: the logged losses and the gradient's norm of the whole batch, and its weights."""
    monkeypatch.setenv("MG3D_HOME", str(tmp_path))

    class Cut(ToyBatches):
        def steps(self, start, stop):
            for number in range(start, stop):
                whole, own = self.batch(number // 4), slice(number % 4 * 2, number % 4 * 2 + 2)
                yield Batch(whole.volume[own], whole.ids[own], whole.seeds[own])

    found = []
    for parts, batches in ((4, Cut(SIZE)), (1, ToyBatches(SIZE))):
        recipe = Recipe(steps=3, accumulate=parts, lr=1e-3, lr_fusion=1e-3)
        torch.manual_seed(0)
        model, run = Pairs(), Run.open(recipe)
        fit(model, run, recipe=recipe, train=batches)
        found.append((model, run.metrics.drop(columns="seconds")))
    (cut_up, lines), (whole, all_lines) = found
    for name in lines:
        assert list(lines[name]) == pytest.approx(list(all_lines[name]), rel=1e-4), name
    for a, b in zip(cut_up.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_stopped_and_continued_is_bit_equal(tmp_path, monkeypatch):
    """A method that compares, with dropout, in two parts: stopped after step 5, and continued from step 3."""
    monkeypatch.setenv("MG3D_HOME", str(tmp_path))
    recipe = Recipe(steps=STEPS, checkpoint=3, accumulate=2, lr=1e-2, lr_fusion=1e-2)

    class Stop(Exception):
        pass

    class Stopping(Pairs):
        def after_step(self):
            if self.passes >= 5 * 3:
                raise Stop

    weights = []
    for kinds in ((Stopping, Pairs), (Pairs,)):
        for kind in kinds:
            torch.manual_seed(0 if kind is kinds[0] else 9)
            model = kind(dropout=0.3)
            run = Run.open(dataclasses.replace(recipe, resume=len(kinds) == 2))
            if kind is Stopping:
                with pytest.raises(Stop):
                    fit(model, run, recipe=recipe, train=ToyBatches())
                assert run.step == 3
            else:
                fit(model, run, recipe=recipe, train=ToyBatches())
                weights.append((model, run.metrics.drop(columns="seconds")))
    (resumed, lines), (through, all_lines) = weights
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), through.parameters(), strict=True))
    assert lines.equals(all_lines)
    assert len(lines) == STEPS


def test_a_method_that_draws_anew_is_stopped():
    with pytest.raises(RuntimeError, match=r"features of a part changed by .*accumulate=1"):
        step(Pairs(shift=0.3).double(), volumes(), 4)


def test_a_method_that_gathers_now_and_then_is_stopped():
    class Moody(Pairs):
        more = ()

        def forward(self, batch):
            terms = super().forward(batch)
            if self.passes in self.more:
                self.gather(terms["mean"][None])
            return terms

    for passes in (2, 3, 5):  # of the first pass's parts 1 to 3, and the second pass's 0 to 3
        model = Moody().double()
        model.more = (passes,)
        with pytest.raises(RuntimeError, match="more features for one part"):
            step(model, volumes(), 4)

    class Late(Toy):
        late = False

        def forward(self, batch):
            return {
                "late": self.gather(super().forward(batch)["mean"][None])[0] if self.late else self.head.weight[0, 0]
            }

    model = Late()
    parts = Parts(model, parts=2, forward=lambda batch, last: model(batch))
    parts.backward(cut(volumes(dtype=torch.float32), 2), seed=0)
    model.late = True
    with pytest.raises(RuntimeError, match="gathered none in the first step"):
        parts.backward(cut(volumes(dtype=torch.float32), 2), seed=0)


def test_once_refuses_what_it_would_not_teach():
    """With a parameter that is no input, only the first part would give it a gradient."""

    class Hidden(Pairs):
        def compare(self, one, two):
            return nce(one, two, self.tau)

    with pytest.raises(RuntimeError, match="once: compare depends on parameters"):
        step(Hidden().double(), volumes(), 4)


def test_a_bad_part_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MG3D_HOME", str(tmp_path))
    recipe = Recipe(steps=4, accumulate=2)
    with pytest.raises(Diverged, match=r"step 2: loss mean is nan on the cases case3-0, case3-1, case3-2, case3-3;"):
        fit(Toy(poison={"case3-1": float("nan")}), Run.open(recipe), recipe=recipe, train=ToyBatches())
