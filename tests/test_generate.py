"""Report generation: the search against brute force, pieces kept against all computed anew, and learning by heart."""

import json
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from texts import REPORTS
from torch import nn
from toy import ToyEncoder

from mg3d.metrics import bleu
from mg3d.metrics.text import words
from mg3d.tasks import Task
from mg3d.tasks.generate import BEGIN, END, Generate, constant_report, grams, nearest_reports, tidy, vocabulary
from mg3d.tasks.writer import NOTHING, Kept, Knowledge, Writer, repeats
from mg3d.text import Tokeniser
from mg3d.types import Batch

SHARED = Path(__file__).parents[2] / "shared" / "data"
SHORT = [*REPORTS[:2], "Nodule in the left lung."]


def writer(pieces: int = 6, longest: int = 5, seed: int = 0, **more) -> tuple[Writer, torch.Tensor]:
    torch.manual_seed(seed)
    made = Writer(16, pieces=pieces, longest=longest, heads=2, **more).eval()
    with torch.no_grad():
        made.piece.weight.mul_(8)  # texts differ by more than rounding
    return made, torch.randn(3, 7, 16)


def log_p(model: Writer, memory: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """log P of texts [n, T] that begin with BEGIN, for one memory each; only what a text may say counts."""
    logits = model(memory, text[:, :-1])
    logits = logits.log_softmax(-1)
    each = logits.gather(-1, text[:, 1:, None])[..., 0]
    before = torch.cumsum((text[:, 1:] == END).int(), 1) - (text[:, 1:] == END).int()
    return (each * (before == 0)).sum(1)


@pytest.fixture
def task(tiny) -> Generate:
    torch.manual_seed(0)
    tokenise = Tokeniser(tiny.tokenizer)
    pieces = vocabulary([tokenise(SHORT)])
    decode = tiny.tokenizer.decode
    return Generate(ToyEncoder(), pieces=pieces, decode=decode, width=32, heads=4, longest=64, dropout=0.0, beams=2)


def batch(tiny, reports=SHORT) -> Batch:
    volume = torch.rand(len(reports), 1, 16, 16, 32, generator=torch.Generator().manual_seed(1))
    ids = tuple(map(str, range(len(reports))))
    return Batch(volume, ids, torch.arange(len(reports)), Tokeniser(tiny.tokenizer)(reports))


def test_steps_that_keep_what_was_said_are_the_whole_computed_at_once():
    model, memory = writer(longest=9, layers=2)
    text = torch.randint(1, 6, (3, 9))
    whole = model(memory, text).log_softmax(-1)
    seen = []
    hook = model.piece.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    told, kept = [layer.remember(memory) for layer in model._layers()], [Kept() for _ in model.layers]
    for t in range(1, 10):
        step = model._gain(text[:, None, :t], told, kept)
        torch.testing.assert_close(step[:, 0], whole[:, t - 1])
    hook.remove()
    assert set(seen) == {(3, 1)}  # a step computes one piece


@pytest.mark.parametrize("seed", range(4))
def test_a_wide_search_finds_the_best_of_all_texts(seed):
    model, memory = writer(pieces=6, longest=5, seed=seed)
    texts = [(BEGIN, *t) for t in product(range(2, 6), repeat=4)]
    texts = torch.tensor([t for t in texts if END not in t or set(t[t.index(END) :]) == {END}])
    with torch.no_grad():
        for power in (0.0, 1.0):
            found = model.write(memory, begin=BEGIN, end=END, beams=4**4, power=power)
            for row, one in zip(found, memory, strict=True):
                p = log_p(model, one.expand(len(texts), -1, -1), texts)
                best = texts[(p / (texts != END).sum(1) ** power).argmax()]
                assert row.tolist() == best.tolist()


def test_greedy_takes_the_likeliest_piece_and_a_beam_does_not_depend_on_its_company():
    model, memory = writer(pieces=9, longest=12)
    with torch.no_grad():
        greedy = model.write(memory, begin=BEGIN, end=END)
        text = torch.full((3, 1), BEGIN)
        for _ in range(11):
            logits = model(memory, text)[:, -1]
            logits[:, [NOTHING, BEGIN]] = -torch.inf
            over = (text == END).any(1)
            text = torch.cat([text, torch.where(over, END, logits.argmax(-1))[:, None]], 1)
        assert greedy.tolist() == text.tolist()
        together = model.write(memory, begin=BEGIN, end=END, beams=3)
        alone = torch.cat([model.write(one[None], begin=BEGIN, end=END, beams=3) for one in memory])
    assert together.tolist() == alone.tolist()


def test_no_run_is_said_twice():
    text = torch.tensor([[[1, 3, 4, 5, 3, 4], [1, 3, 4, 5, 4, 3]]])
    assert repeats(text, 3, pieces=6).nonzero().tolist() == [[0, 0, 5]]  # 3 4 5 again
    model, memory = writer(pieces=5, longest=30)
    with torch.no_grad():
        model.bias[END] = -200.0
        for n in (2, 3):
            row = model.write(memory, begin=BEGIN, end=END, beams=2, block=n)[0].tolist()
            said = row[: row.index(END)] if END in row else row
            runs = list(zip(*(said[i:] for i in range(n)), strict=False))
            assert len(runs) == len(set(runs)) > n


def test_pieces_of_the_training_reports_alone(task, tiny):
    some = batch(tiny)
    pieces = task.get_buffer("pieces")
    text = task.shorten(some.report)
    real = some.report.real
    assert (text[~real] == NOTHING).all()
    assert (text[:, 0] == BEGIN).all()
    assert pieces[text][real].tolist() == some.report.words[real].tolist()  # nothing is lost
    assert tiny.tokenizer.decode(text[0]) != ""
    new = task.shorten(Tokeniser(tiny.tokenizer)(["Zygote."]))[0]
    assert new.tolist()[0] == BEGIN
    assert NOTHING in new.tolist()  # "z" was never seen
    assert len(pieces) == 1 + len({i for row in some.report.words.tolist() for i in row} - {some.report.pad})


def test_the_loss_is_a_mean_over_reports_and_knows_no_padding(task, tiny):
    task.eval()
    together = task(batch(tiny))["words"]
    alone = []
    for i in range(3):
        one = Batch(batch(tiny).volume[i : i + 1], ("x",), torch.zeros(1).long(), batch(tiny, SHORT[i : i + 1]).report)
        alone.append(task(one)["words"])
    torch.testing.assert_close(together, torch.stack(alone).mean())
    start = np.log(len(task.get_buffer("pieces")))
    assert 0.5 * start < together.item() < 2 * start
    task.writer.longest = 4  # cut: the mean of the first three pieces
    cut = task(batch(tiny))["words"]
    logits = task.writer(task._memory(batch(tiny)), task.shorten(batch(tiny).report)[:, :-1]).log_softmax(-1)
    right = task.shorten(batch(tiny).report)[:, 1:]
    assert right.shape[1] == 3
    torch.testing.assert_close(cut, -logits.gather(-1, right[..., None]).mean())


@pytest.mark.parametrize("knowledge", ["learned", "none"])
def test_reports_are_learned_by_heart(task, tiny, knowledge):
    torch.manual_seed(0)
    if knowledge == "none":
        task.knowledge = nn.Identity()
    optimiser = torch.optim.AdamW(task.parameters(), lr=3e-3)
    some = batch(tiny)
    for _ in range(60):
        loss = task(some)["words"]
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in task.parameters())
        optimiser.step()
    written = task.eval().predict(some)
    assert written[2] == "Nodule in the left lung."
    line = task.score(written, SHORT)
    assert line["bleu4"] == pytest.approx(1)
    assert line["finding_f1"] == 1
    sure = task.intervals(written, SHORT, cases=some.ids)
    assert sure["bleu4"].value == sure["rouge_l"].value == pytest.approx(1)
    assert set(sure) <= set(line)
    assert task.predict(Batch(some.volume[1:2], ("x",), some.seeds[1:2])) == written[1:2]  # no report is looked at
    swapped = task.predict(Batch(some.volume.flip(0), some.ids, some.seeds))
    assert swapped == written[::-1]


def test_knowledge_adds_answers_that_depend_on_the_volume():
    torch.manual_seed(0)
    base, tokens = Knowledge(16, slots=5, topics=3, heads=2), torch.randn(2, 4, 16)
    out = base(tokens)
    assert out.shape == (2, 7, 16)
    assert torch.equal(out[:, :4], tokens)
    assert not torch.allclose(out[0, 4:], out[1, 4:])


def test_the_contract(task, tiny):
    assert isinstance(task, Task)
    assert task.metric in task.score(SHORT, SHORT)
    with pytest.raises(ValueError, match="this batch has none"):
        task(Batch(batch(tiny).volume, ("a", "b", "c"), torch.arange(3)))
    with pytest.raises(ValueError, match="vocabulary of the training reports"):
        Generate(ToyEncoder(), pieces=(), decode=tiny.tokenizer.decode)
    with pytest.raises(ValueError, match="level=-3"):
        Generate(ToyEncoder(), pieces=(1, 2, 3), decode=tiny.tokenizer.decode, level=-3)
    fine = Generate(ToyEncoder(), pieces=(1, 2, 3), decode=tiny.tokenizer.decode, level=-2, heads=4)
    assert fine._memory(batch(tiny)).shape == (3, 4 * 4 * 8 + 14, 16)


def test_decoded_pieces_read_as_written():
    assert tidy("a ground - glass nodule of 9. 3 mm ( 1 / 2 ). no effusion . t12.") == (
        "A ground-glass nodule of 9.3 mm (1/2). No effusion. T12."
    )


@pytest.mark.skipif(not SHARED.exists(), reason="no real reports beside the clone")
def test_one_report_for_everybody_scores_as_high_as_trained_models_do():
    """CTRG-Chest, findings of the published test set, by our words: BLEU-1..4 60.7 / 50.2 / 43.0 / 37.8 for one report.

    The report of the training text nearest to the test text itself is what no model may look up: 69.5 / 63.5 / 59.3 /
    55.9.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    splits = json.loads((SHARED / "reports" / "ctrg_chest_reports.json").read_text())
    train, test = ([row["report"] for row in splits[name]] for name in ("train", "test"))
    constant = 100 * bleu([constant_report(train)] * len(test), test)
    assert constant == pytest.approx([60.65, 50.23, 43.00, 37.78], abs=0.1)
    weigh = TfidfVectorizer(analyzer=grams, sublinear_tf=True)
    known, asked = weigh.fit_transform(map(words, train)), weigh.transform(map(words, test))
    nearest = [train[int(i)] for i in np.asarray((asked @ known.T).argmax(1)).ravel()]
    assert 100 * bleu(nearest, test) == pytest.approx([69.53, 63.53, 59.25, 55.92], abs=0.1)


class Vector(Counter):
    """Counts with a scalar product."""

    def __mul__(self, other):
        return sum(n * other[word] for word, n in self.items())


def test_baselines_say_what_training_reports_say():
    train = [*REPORTS, "No pleural effusion.", "The heart is enlarged. No pleural effusion. No nodule."]
    counts = [Counter(grams(words(text))) for text in train]
    cosine = [[(a * b) / ((a * a) * (b * b)) ** 0.5 for b in map(Vector, counts)] for a in map(Vector, counts)]
    assert constant_report(train) == train[int(np.argmax(np.mean(cosine, 1)))]
    train = train[:4]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 8)).astype(np.float32)
    assert nearest_reports(3 * x[[2, 0]] + 0.01, train=x, reports=train) == [train[2], train[0]]
    with pytest.raises(ValueError, match="4 rows of training features and 1 reports"):
        nearest_reports(x, train=x, reports=train[:1])
