"""The training loop: schedule, parameter groups, stops on bad losses, and continuation bit for bit after kill -9."""

import dataclasses
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy import STEPS, Toy, ToyBatches

from mg3d.fit import Diverged, fit, parameter_groups, schedule, validate
from mg3d.recipe import Recipe
from mg3d.runs import Run

TOY = Path(__file__).parent / "toy.py"
RECIPE = Recipe(steps=STEPS, checkpoint=3, lr=1e-2, lr_fusion=1e-2)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MG3D_HOME", str(tmp_path))
    return tmp_path


def trained(recipe=RECIPE, **options) -> tuple[Toy, Run]:
    torch.manual_seed(0)
    model, run = Toy(), Run.open(recipe)
    fit(model, run, recipe=recipe, train=ToyBatches(), valid=ToyBatches(), **options)
    return model, run


def test_schedule_rises_and_falls_in_straight_lines():
    factors = [schedule(s, steps=10, warmup=0.2) for s in range(10)]
    assert factors == pytest.approx([0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert schedule(0, steps=5, warmup=0.0) == 1  # no warm-up: full speed at once


def test_two_learning_rates_and_no_decay_on_vectors():
    model = Toy()
    groups = parameter_groups(model, Recipe(lr=1e-3, lr_fusion=1e-2))
    found = {id(p): (g["peak"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(found) == len(list(model.parameters()))
    assert found[id(model.encoder.a.weight)] == (1e-3, 0.01)
    assert found[id(model.encoder.a.bias)] == (1e-3, 0.0)
    assert found[id(model.head.weight)] == (1e-2, 0.01)
    assert found[id(model.head.bias)] == (1e-2, 0.0)


def test_the_loop_learns_and_logs(home):
    long = dataclasses.replace(RECIPE, steps=60)
    model, run = trained(long)
    metrics = run.metrics
    assert list(metrics["step"]) == list(range(1, 61))
    assert metrics["mean"].iloc[-5:].mean() < metrics["mean"].iloc[:5].mean() / 2
    assert metrics["valid_mean"].notna().sum() == 10
    assert metrics["rank"].dropna().between(1, 16).all()
    assert metrics["lr"].max() == pytest.approx(1e-2)
    assert model.steps_seen == 60


def test_a_step_is_adamw_with_clipping(home):
    """The first step against torch's own AdamW, clipped by hand, on the same batch."""
    recipe = Recipe(steps=1, lr=1e-2, lr_fusion=1e-2, warmup=0.0, clip=0.05)
    torch.manual_seed(0)
    model, twin = Toy(), Toy()
    model.dropout.p = twin.dropout.p = 0.0
    twin.load_state_dict(model.state_dict())
    fit(model, Run.open(recipe), recipe=recipe, train=ToyBatches())
    decay = [p for p in twin.parameters() if p.dim() > 1]
    plain = [p for p in twin.parameters() if p.dim() == 1]
    optimiser = torch.optim.AdamW([{"params": decay}, {"params": plain, "weight_decay": 0.0}], lr=1e-2)
    twin(ToyBatches().batch(0))["mean"].backward()
    norm = torch.cat([p.grad.flatten() for p in twin.parameters()]).norm()
    assert norm > recipe.clip  # else the test would not see the clipping
    for p in twin.parameters():
        p.grad *= recipe.clip / (norm + 1e-6)
    optimiser.step()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_accumulation_has_the_gradient_of_the_whole_batch(home):
    """Two parts of four samples give the weights of one batch of eight (the toy's loss is a mean over samples)."""

    class Joined(ToyBatches):
        def batch(self, step):
            a, b = super().batch(2 * step), super().batch(2 * step + 1)
            return dataclasses.replace(
                a,
                volume=torch.cat([a.volume, b.volume]),
                ids=a.ids + b.ids,
                seeds=torch.cat([a.seeds, b.seeds]),
            )

    weights = []
    for recipe, batches in ((Recipe(steps=3, accumulate=2), ToyBatches()), (Recipe(steps=3), Joined())):
        torch.manual_seed(0)
        model = Toy()
        model.dropout.p = 0.0
        fit(model, Run.open(recipe), recipe=recipe, train=batches)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_a_bad_loss_stops_with_step_loss_and_cases(home, value):
    model = Toy(poison={"case5-2": value})
    run = Run.open(RECIPE)
    with pytest.raises(Diverged, match=r"step 6: loss mean is .*case5-2"):
        fit(model, run, recipe=RECIPE, train=ToyBatches())
    assert run.step == 3  # what was good is kept
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_bad_gradient_stops_too(home):
    class Broken(Toy):
        def forward(self, batch):
            losses = super().forward(batch)
            weight = self.head.weight
            return {"mean": losses["mean"] + (weight * 0).sqrt().sum()}  # 0 with an infinite slope

    with pytest.raises(Diverged, match=r"step 1: the gradient's norm is (nan|inf)"):
        fit(Broken(), Run.open(RECIPE), recipe=RECIPE, train=ToyBatches())


def test_validation_leaves_no_trace(home):
    model = Toy()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = (validate(model, ToyBatches(), recipe=RECIPE) for _ in range(2))
    assert first == second
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_stopped_and_continued_is_bit_equal(home):
    class Stop(Exception):
        pass

    class Interrupted(ToyBatches):
        def steps(self, start, stop):
            for number, batch in enumerate(super().steps(start, stop)):
                if number == 5:
                    raise Stop
                yield batch

    torch.manual_seed(0)
    with pytest.raises(Stop):
        fit(Toy(), Run.open(RECIPE), recipe=RECIPE, train=Interrupted(), valid=ToyBatches())
    torch.manual_seed(99)  # another process would start from other weights
    resumed, run = Toy(), Run.open(RECIPE)
    fit(resumed, run, recipe=RECIPE, train=ToyBatches(), valid=ToyBatches())
    through, whole = trained(dataclasses.replace(RECIPE, resume=False))
    for a, b in zip(resumed.parameters(), through.parameters(), strict=True):
        assert torch.equal(a, b)
    drop = ["seconds"]
    assert run.metrics.drop(columns=drop).equals(whole.metrics.drop(columns=drop))


def test_a_run_killed_before_it_was_put_away_says_its_last_metrics_again(home):
    _, run = trained(RECIPE)  # its last checkpoint is there, its end was not noted
    again = fit(Toy(), run, recipe=RECIPE, train=ToyBatches(), valid=ToyBatches())
    assert again == run.metrics.iloc[-1].dropna().to_dict()
    assert again["step"] == RECIPE.filled.steps


@pytest.mark.parametrize("steps", [1, 9, 10, 15, 19, 25])
def test_at_most_ten_validations(home, steps):
    recipe = dataclasses.replace(RECIPE, steps=steps)
    run = Run.open(recipe)
    fit(Toy(), run, recipe=recipe, train=ToyBatches(), valid=ToyBatches())
    seen = run.metrics.dropna()["step"]
    assert 1 <= len(seen) <= 10
    assert seen.iloc[-1] == steps


@pytest.mark.parametrize(("size", "expected"), [(4, [12, 24, 36, 48, 60]), (20, [60]), (400, [60])])
def test_volumes_validated_are_a_quarter_of_those_trained_on(home, size, expected):
    """60 steps of 4 are 240 volumes: 60 may be validated, 12 a time five times, 60 a time once; the last always is."""
    recipe = dataclasses.replace(RECIPE, steps=60, batch=4)
    run = Run.open(recipe)
    fit(Toy(), run, recipe=recipe, train=ToyBatches(), valid=ToyBatches(size))
    assert list(run.metrics.dropna()["step"]) == expected


def run_toy(home: Path, seconds: float) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, str(TOY), str(home), str(seconds)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    process.stdout.readline()  # "started": imports are behind it, so kills fall into the training
    return process


def test_kill_9_at_random_moments_is_bit_equal(tmp_path):
    reference = run_toy(tmp_path / "whole", 0.0)
    assert reference.wait(timeout=60) == 0
    reference.stdout.close()
    seed = random.randrange(10**6)
    print(f"kill times from seed {seed}")
    chance = random.Random(seed)
    kills = 0
    for _ in range(4):
        process = run_toy(tmp_path / "killed", 0.15)
        time.sleep(chance.uniform(0.1, 1.0))
        process.send_signal(signal.SIGKILL)
        kills += process.wait(timeout=60) == -signal.SIGKILL
        process.stdout.close()
    assert kills >= 1
    last = run_toy(tmp_path / "killed", 0.0)
    assert last.wait(timeout=60) == 0
    last.stdout.close()
    a, b = (next((tmp_path / name / "runs").glob("mg3d-*")) for name in ("whole", "killed"))
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    assert list(Run(a).metrics["step"]) == list(Run(b).metrics["step"]) == list(range(1, STEPS + 1))
    assert Run(a).metrics["mean"].equals(Run(b).metrics["mean"])
