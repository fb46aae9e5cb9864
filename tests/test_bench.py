"""The benches at sizes too small to say anything: they run, print their table, and refuse to time unequal results."""

import io
import json
import math
import re
import subprocess
import sys
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from mg3d import Recipe, cohort, pretrain
from mg3d.objectives import METHODS
from mg3d.recipe import SCALES
from mg3d.tables import TABLES
from mg3d.train import words

BENCH = Path(__file__).parents[1] / "bench"
STEP = ["--shape", "32", "32", "64", "--layers", "1", "--width", "32", "--repeats", "1", "--threads", "1"]
DATA = ["--size", "100", "100", "50", "--shape", "22", "22", "22", "--batch", "2", "--repeats", "1"]
RETRIEVAL = ["--items", "300", "--width", "16", "--repeats", "2", "--threads", "1"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def bench(monkeypatch):
    """Import a bench by name; its children run in this process, where nothing has to be imported again."""
    monkeypatch.syspath_prepend(str(BENCH))

    def here(file, *words):
        out = io.StringIO()
        with redirect_stdout(out):
            import_module(Path(file).stem).main(list(map(str, words)))
        return json.loads(out.getvalue().splitlines()[-1])

    def load(name):
        module = import_module(name)
        assert Path(module.__file__) == BENCH / f"{name}.py"
        if hasattr(module, "fresh") and name != "measure":
            monkeypatch.setattr(module, "fresh", here)
        return module

    threads = torch.get_num_threads()
    yield load
    torch.set_num_threads(threads)


def cells(out: str) -> dict[str, list[str]]:
    """The lines of the table of goals, by their first cell."""
    rows = [[c.strip() for c in line.strip("| \n").split("|")] for line in out.splitlines() if line.startswith("| ")]
    assert all(len(row) == 5 and re.fullmatch(r"`python bench/\w+\.py`", row[4]) for row in rows), out
    assert all(row[3] in ("yes", "no", "") and re.search(r"\d", row[2]) for row in rows)
    return {row[0]: row for row in rows}


def test_step_runs_and_the_peer_has_our_losses(bench, capsys, monkeypatch):
    step = bench("step")
    monkeypatch.setattr(step, "radbert", cache(step.radbert))  # what each child makes alike
    step.main(STEP)
    out = capsys.readouterr().out
    assert set(cells(out)) == {
        "MG-3D step, batch 2, ours fp32",
        "its peak memory, ours fp32",
        "MG-3D step, batch 2, ours bf16",
        "its peak memory, ours bf16",
        "text of a step, ours fp32",
        "text of a step, ours bf16",
        "SSM of 64 patients",
        "reading a batch",
    }
    ours, half, peer = (
        np.array(re.search(rf"{row} +([\d. ]+)", out).group(1).split(), float)
        for row in ("ours fp32", "ours bf16", "peer fp32")
    )
    assert len(ours) == 7  # six losses and the gradient
    assert (ours > 0).all()
    np.testing.assert_allclose(ours[:6], peer[:6], rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(ours[:6], half[:6], rtol=0.05)
    assert not np.array_equal(ours, half)  # or bf16 was not on


@pytest.mark.parametrize("term", ["mim", "mlm", "sfr", "cml", "ssm", "dfa", "gradient"])
def test_step_is_not_timed_when_a_loss_differs(bench, term):
    step = bench("step")
    same = dict.fromkeys([*step.TERMS, "gradient"], 0.5)
    found = {row: dict(same) for row in step.ROWS}
    step.check(found)
    found["peer fp32"][term] *= 1.002
    with pytest.raises(AssertionError):
        step.check(found)


def test_the_peers_pair_loop_equals_our_ssm(bench):
    from mg3d import losses

    generator = torch.Generator().manual_seed(0)
    seen, told = torch.randn(2, 4, 5, 8, generator=generator)
    real = torch.arange(5) < torch.tensor([5, 2, 1, 4])[:, None]
    torch.testing.assert_close(bench("composed").ssm(seen, told, real), losses.ssm(seen, told, real))


def test_data_runs(bench, capsys):
    bench("data").main(DATA)
    assert set(cells(capsys.readouterr().out)) == {
        "preparation from .nii.gz, one core",
        "its speed",
        "cached batch of 2",
    }


@pytest.mark.parametrize("part", ["preparation", "cached"])
def test_data_is_not_timed_when_results_differ(bench, part, monkeypatch):
    data = bench("data")
    if part == "preparation":
        window = data.Spec(shape=(22, 22, 22), window_hu=(-1000.0, 600.0))
        right = data.monai_steps
        monkeypatch.setattr(data, "monai_steps", lambda size, spec: right(size, window))
    else:
        right = data.Loader.all
        monkeypatch.setattr(data.Loader, "all", lambda self: list(right(self))[::-1])
    with pytest.raises(AssertionError, match="differ"):
        data.main(DATA)


def test_a_volume_of_ones_own_can_be_measured(bench, tmp_path, capsys):
    data = bench("data")
    path = data.scan((100, 100, 50), tmp_path / "own.nii.gz")
    data.main([*DATA, "--volume", str(path)])
    assert "own.nii.gz: " in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(SystemExit, match="truncated"):
        data.preparation(path, data.Spec(), tmp_path, 1)


def test_retrieval_runs_and_refuses_a_wrong_order(bench, capsys, monkeypatch):
    retrieval = bench("retrieval")
    retrieval.main(RETRIEVAL)
    assert set(cells(capsys.readouterr().out)) == {"search among 300 x 16, one query", "ranks of as many queries"}
    right = retrieval.Gallery.search
    monkeypatch.setattr(retrieval.Gallery, "search", lambda *words: tuple(x[::-1] for x in right(*words)))
    with pytest.raises(AssertionError):
        retrieval.main(RETRIEVAL)


def test_start_runs(bench, capsys, monkeypatch):
    start = bench("start")
    monkeypatch.setattr(start, "ROWS", dict.fromkeys(start.ROWS, "pass") | {"mg3d": "import mg3d"})
    start.main(["--repeats", "1"])
    assert set(cells(capsys.readouterr().out)) == {"`import mg3d`", "and the names that notebooks use"}


def test_turns_alternate_and_give_medians(bench, monkeypatch):
    measure = bench("measure")
    order, clock = [], iter([0, 1, 1, 5, 5, 8, 8, 10, 10, 12, 12, 30])  # a: 1, 3, 2; b: 4, 2, 18
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    found = measure.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == list("ababab")
    assert found == {"a": 2, "b": 4}


def test_a_child_tells_its_own_peak_or_how_it_ended(bench, tmp_path):
    measure = bench("measure")
    child = tmp_path / "child.py"
    child.write_text(
        f"import sys; sys.path[:0] = [{str(BENCH)!r}]\nfrom measure import peak_mb\n"
        "held = bytearray(int(sys.argv[1]) << 20)\nprint('noise')\nprint(peak_mb())\n"
    )
    small, large = measure.fresh(str(child), 1), measure.fresh(str(child), 101)
    assert 95 < large - small < 105
    with pytest.raises(RuntimeError, match=r"child\.py x ended with 1"):
        measure.fresh(str(child), "x")


def test_one_command_collects_the_lines(tmp_path):
    for name in ("__main__.py", "measure.py"):
        (tmp_path / name).write_bytes((BENCH / name).read_bytes())
    (tmp_path / "good.py").write_text("print('details')\nprint('| a | b | 1 | yes | c |')\n")
    (tmp_path / "bad.py").write_text("raise SystemExit(3)\n")
    done = subprocess.run(
        [sys.executable, str(tmp_path), "good", "bad"], capture_output=True, text=True, check=True, cwd=BENCH.parent
    )
    body = done.stdout.split("| what | goal | measured | met | command |")[1]
    assert "| a | b | 1 | yes | c |" in body
    assert "| bad |  | ended with 3, see above | no |" in body


def test_swin_runs(bench, capsys, monkeypatch):
    swin = bench("swin")
    swin.main(["--shape", "32", "32", "32", "--repeats", "1", "--threads", "1"])
    found = cells("\n".join(line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")))
    assert len(found) == len(swin.GOALS)
    monkeypatch.setattr(swin, "step", lambda row, shape: lambda: [torch.full((1,), float(row.startswith("ours")))])
    with pytest.raises(AssertionError):
        swin.main(["--shape", "32", "32", "32", "--repeats", "1", "--threads", "1"])


def test_accumulate_runs(bench, capsys, monkeypatch):
    accumulate = bench("accumulate")
    monkeypatch.setattr(accumulate, "fresh", import_module("measure").fresh)  # a peak is a process's own
    accumulate.main(["--batch", "32", "--part", "2", "--threads", "1"])
    printed = capsys.readouterr().out
    found = cells("\n".join(line for line in printed.splitlines() if "bench" in line))
    assert len(found) == 3
    assert found["gradient of 4 patients in parts of 2"][3] == "yes"


def test_every_pairing_of_tables_i_and_ii_is_asked(bench, minilm):
    rivals = bench("rivals_learn")
    rows = [row for name in ("I", "II") for row in TABLES[name].rows.values()]
    asked = {(q.method, q.encoder) for q in rivals.QUESTIONS}
    assert asked == {(row.method, row.encoder) for row in rows if row.method != "mg3d"}
    assert {method for method, _ in asked} == set(METHODS) - {"mg3d"}
    assert minilm.vocabulary == rivals.WORDS


@pytest.mark.usefixtures("minilm")
def test_rivals_are_asked_and_told_when_they_have_not_learnt(bench, capsys, monkeypatch, tmp_path):
    """Two steps teach nobody: each question has a line, its shares come from its losses, and each counts as missed."""
    rivals = bench("rivals_learn")
    monkeypatch.setenv("MG3D_HOME", str(tmp_path))
    monkeypatch.setitem(SCALES, "demo", replace(SCALES["demo"], volumes=8, valid=4, test=0, batch=4, shrink=16))
    few = [q for q in rivals.QUESTIONS if (q.method, q.encoder) != ("pcrlv1", "swin_b")]
    monkeypatch.setattr(rivals, "QUESTIONS", few)
    monkeypatch.setattr(rivals, "DRAWS", 2)
    assert rivals.main(["swinunetr", "pcrlv1", "--steps", "2"]) == 2
    rows = [[c.strip() for c in line.strip("| \n").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [row[:4] for row in rows[2:]] == [
        ["`pcrlv1`", "unet", "2", "0.0005"],
        ["`swinunetr`", "swin_b", "2", "0.0005"],
    ]
    for row in rows[2:]:
        chance, others = float(row[5]), float(row[8])
        assert others == pytest.approx(chance * (1 - float(row[9].rstrip(" %")) / 100), rel=0.02)
        assert row[11] == "no"
    assert rows[3][5:7] == ["1.386", ""]  # of turns nothing is alike for all
    assert 0 < float(rows[2][6]) < float(rows[2][5])
    with pytest.raises(SystemExit):
        rivals.main(["swinunet"])


@pytest.mark.usefixtures("minilm")
def test_what_is_alike_for_all_is_the_mean_of_others_and_how_often_a_word_stands(bench, monkeypatch, tmp_path):
    rivals = bench("rivals_learn")
    monkeypatch.setenv("MG3D_HOME", str(tmp_path))
    monkeypatch.setitem(SCALES, "demo", replace(SCALES["demo"], volumes=8, valid=4, test=0, batch=4, shrink=16))
    run = pretrain(Recipe(scale="demo", method="ctclip", encoder="vit_b", steps=1))
    monkeypatch.setattr(rivals, "targets", lambda _, batch: batch.volume)
    monkeypatch.setattr(rivals, "DRAWS", 2)
    trained = rivals.Trained(run)
    learnt, others = (torch.cat([b.volume for b in trained.patients(split).all()]) for split in ("train", "valid"))
    assert (len(learnt), len(others)) == (8, 4)
    assert trained.others["valid_clip"] == pytest.approx(run.last["valid_clip"], rel=1e-4)  # it draws nothing
    grey, alike = trained.of_voxels()
    assert grey == pytest.approx((others - others.mean()).square().mean().item(), rel=1e-4)
    assert alike == pytest.approx((others - learnt.mean(0)).square().mean().item(), rel=1e-4)
    said = " ".join(e.case.report for e in cohort(run.recipe).prepared.entries if e.case.split == "valid")
    few = Counter(words(run.recipe)[0].tokenizer(said, add_special_tokens=False)["input_ids"])
    entropy = sum(-n / few.total() * math.log(n / few.total()) for n in few.values())
    assert trained.of_words() == pytest.approx(entropy, rel=0.01)
