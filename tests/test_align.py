"""Prompts and retrieval: F_I and F_T are MG-3D's own, pairs of prompts are a softmax, and both can be learned."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from texts import REPORTS
from toy import ToyEncoder

from mg3d.data.phantom.labels import LABELS
from mg3d.objectives.mg3d import MG3D, MG3DConfig
from mg3d.tasks import Task
from mg3d.tasks.align import Align, Embedder, Retrieve
from mg3d.tasks.prompts import TEMPLATES, pairs
from mg3d.tasks.tokens import VolumeTokens, take
from mg3d.text import Tokeniser
from mg3d.types import Batch

NAMES = ("Lung nodule", "Pleural effusion", "Emphysema")


def batch(tiny, reports=REPORTS, target=None) -> Batch:
    n = len(reports)
    volume = torch.rand(n, 1, 16, 16, 32, generator=torch.Generator().manual_seed(1))
    report = Tokeniser(tiny.tokenizer)(reports)
    return Batch(volume, tuple(map(str, range(n))), torch.arange(n), report, target)


def embedder(tiny, encoder, **more) -> Embedder:
    torch.manual_seed(3)
    return Embedder(encoder, tiny, width=16, heads=4, **more)


def align(tiny, **more) -> Align:
    torch.manual_seed(0)
    encoder = ToyEncoder()
    return Align(encoder, embedder(tiny, encoder), names=NAMES, tokenise=Tokeniser(tiny.tokenizer), **more)


def retrieve(tiny, **more) -> Retrieve:
    torch.manual_seed(0)
    encoder = ToyEncoder()
    return Retrieve(encoder, embedder(tiny, encoder), **more)


def learn(task: Task, some: Batch, steps: int, lr: float = 5e-3) -> list[float]:
    optimiser, found = torch.optim.AdamW(task.parameters(), lr=lr), []
    for _ in range(steps):
        (loss,) = task(some).values()
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in task.parameters())
        optimiser.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("guidance", ["sentence", "word"])
@pytest.mark.parametrize("level", [-1, -2])
def test_features_are_those_of_the_run_that_they_are_taken_from(tiny, guidance, level):
    torch.manual_seed(7)
    config = MG3DConfig(clip=1.0, guidance=guidance, level=level, width=16, self_heads=4)
    run = MG3D(ToyEncoder(), tiny, config, shape=(16, 16, 32))
    found = embedder(tiny, run.encoder, level=level, guidance=guidance)
    some = batch(tiny)
    f_volume, f_text = run.embed(some)
    assert not torch.allclose(found.report(some.report), f_text)
    found.take(run.state_dict())
    torch.testing.assert_close(found.volume(run.encoder(some.volume)), f_volume)
    torch.testing.assert_close(found.report(some.report), f_text)


def test_weights_are_taken_strictly(tiny):
    run = MG3D(ToyEncoder(), tiny, MG3DConfig(self_heads=4), shape=(16, 16, 32))
    with pytest.raises(ValueError, match=r"from_text.weight has the shape \(16, 32\) there, \(8, 32\)"):
        take(torch.nn.Linear(32, 8), run.state_dict(), prefix="from_text.")
    with pytest.raises(ValueError, match=r"from_coarser.0.weight is not among the weights"):
        take(VolumeTokens(ToyEncoder(), width=16, level=-2), run.state_dict() | finer())


def finer() -> dict[str, torch.Tensor]:
    return {"from_volume.weight": torch.zeros(16, 4)}


def test_a_pair_of_prompts_is_a_softmax(tiny):
    task, some = align(tiny, templates=("vocabfine", "there")).eval(), batch(tiny)
    found = np.stack(task.predict(some))
    assert found.shape == (5, 2, 3)
    volume = task.embedder.volume(task.encoder(some.volume))
    tokenise = Tokeniser(tiny.tokenizer)
    for t, sides in enumerate((("{}.", "not {}."), ("There is {}.", "There is no {}."))):
        for k, name in enumerate(NAMES):
            prompts = tokenise([side.format(name) for side in sides])
            cosine = F.cosine_similarity(volume[:, None], task.embedder.report(prompts)[None], dim=-1)
            p = (cosine / 0.1).softmax(1)[:, 0].detach().numpy()
            assert found[:, t, k] == pytest.approx(p, abs=1e-5)
    assert task.asked == {
        "prompts": {"vocabfine": ["{}.", "not {}."], "there": ["There is {low}.", "There is no {low}."]}
    }
    target = torch.tensor([[1.0, 0, 1]] * 5)
    loss = task(Batch(some.volume, some.ids, some.seeds, None, target))["pairs"].item()
    right = np.where(target.numpy() == 1, found[:, 0], 1 - found[:, 0])
    assert loss == pytest.approx(-np.log(right).mean(), abs=1e-5)


def test_findings_are_learned_from_prompts_and_read_under_other_words(tiny):
    target = torch.tensor([[1.0, 0, 1], [0, 1, 1], [1, 1, 0], [0, 0, 0], [1, 0, 0]])
    task, some = align(tiny), batch(tiny, target=target)
    before = task.score(task.predict(some), list(target.numpy()))
    losses = learn(task, some, 150)
    assert losses[-1] < 0.1 < losses[0]
    line = task.eval().score(task.predict(some), list(target.numpy()))
    assert line["auroc"] == line["auroc of vocabfine"] == 1 > before["auroc"]
    each = [line[f"auroc of {name}"] for name in TEMPLATES]
    assert line["auroc of templates/mean"] == pytest.approx(np.mean(each))
    assert line["auroc of templates/std"] == pytest.approx(np.std(each))
    assert line["auroc of templates/least"] == min(each)
    assert {f"auroc/{name}" for name in NAMES} <= line.keys()
    sure = task.intervals(task.predict(some), list(target.numpy()), cases=some.ids)
    assert sure["auroc"].value == sure["auroc/Emphysema"].value == 1
    state = task.state_dict()
    assert {
        ".".join(name.split(".")[:2]) for name in state
    } == (  # neither the text encoder nor what it says of prompts
        {"encoder.a", "encoder.b", "embedder.tokens", "embedder.from_text", "embedder.pool_text", "temperature"}
    )
    again = align(tiny)
    again.load_state_dict(state)
    assert np.array_equal(again.predict(some), task.predict(some))


def test_a_split_of_one_class_is_said(tiny):
    task, some = align(tiny), batch(tiny)
    with pytest.raises(ValueError, match="undefined for every label"):
        task.score(task.predict(some), [np.zeros(3)] * 5)
    mixed = [np.array([i % 2, 0, 1]) for i in range(5)]
    line = task.score(task.predict(some), mixed)
    assert line["undefined"] == 2
    assert "auroc/Emphysema" not in line
    assert all(np.isfinite(list(line.values())))
    with pytest.raises(ValueError, match="without targets"):
        task(some)


def test_reports_find_their_volumes_once_learned(tiny):
    reports = [*REPORTS[:4], REPORTS[0]]  # the last is another volume with the first one's report
    task, some = retrieve(tiny, ks=(1, 2)), batch(tiny, reports)
    losses = learn(task, some, 120)
    assert losses[-1] < 0.5 < losses[0]
    predictions = task.eval().predict(some)
    assert predictions[0].shape == (2, 16)
    line = task.score(predictions, reports)
    assert line["distinct/cases"] == 4
    assert line["distinct/report_to_volume/recall@1"] == line["distinct/volume_to_report/recall@1"] == 1
    assert line["report_to_volume/recall@1"] <= 0.8  # one report is that of two volumes
    assert line["volume_to_report/recall@1"] == pytest.approx(0.8)  # ties count half
    assert line["distinct/chance/recall@1"] == pytest.approx(1 / 4)
    assert task.metric in line
    sure = task.intervals(predictions, reports, cases=some.ids)
    assert sure["report_to_volume/recall@1"].value == line["report_to_volume/recall@1"]
    assert sure["volume_to_report/mrr"].value == pytest.approx(line["volume_to_report/mrr"])
    with pytest.raises(ValueError, match="a batch without reports"):
        task(Batch(some.volume, some.ids, some.seeds))


def test_retrieval_compares_the_batch_of_all_processes(tiny):
    task, some = retrieve(tiny), batch(tiny)
    alone = task(some)["clip"]
    task.gather = lambda x: torch.cat([x, x.detach() + 1])
    assert task(some)["clip"] > alone
    task.gather = lambda x: x
    task.augment = True  # volumes in other poses and lights
    assert task(some)["clip"] != alone
    assert task.eval()(some)["clip"] == retrieve(tiny).eval()(some)["clip"]


def test_prompts_say_one_thing_and_its_opposite():
    present, absent = pairs(LABELS, "vocabfine")
    assert (present[9], absent[9]) == ("Lung nodule.", "not Lung nodule.")  # CT-VocabFine
    for name in TEMPLATES:
        present, absent = pairs(LABELS, name)
        assert len({*present, *absent}) == 36
        assert all("no" in prompt.lower().split() or "not" in prompt.lower().split() for prompt in absent)
    with pytest.raises(ValueError, match="unknown template 'x'; there are vocabfine"):
        pairs(LABELS, "x")
    with pytest.raises(ValueError, match="no finding to ask for"):
        pairs((), "there")
