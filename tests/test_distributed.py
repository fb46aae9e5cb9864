"""Two processes are one process with the double batch, also where each takes its share in parts."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def run(processes: int, *arguments: str, timeout: float = 180) -> str:
    """Run a command under torchrun; its output, checked for success."""
    command = [*TORCHRUN, f"--nproc-per-node={processes}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=HERE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """Losses and gradients of one process that takes the batch whole, by variant."""

    @functools.cache
    def found(variant: str):
        out = tmp_path_factory.mktemp("one") / f"{variant}.pt"
        run(1, "distributed_worker.py", variant, str(out))
        return torch.load(out, weights_only=True)

    return found


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_two_processes_have_the_gradients_of_one(tmp_path, one_process, variant, parts):
    """Contrastive and inter-patient losses included: sentences are padded differently in ranks and parts on purpose."""
    out = tmp_path / "two.pt"
    run(2, "distributed_worker.py", variant, str(out), str(parts))
    one, two = one_process(variant), torch.load(out, weights_only=True)
    assert one["losses"].keys() == two["losses"].keys()
    for name, value in one["losses"].items():
        assert two["losses"][name] == pytest.approx(value, rel=1e-5), name
    largest = max(g.abs().max() for g in one["grads"].values())
    for name, grad in one["grads"].items():
        torch.testing.assert_close(two["grads"][name], grad, rtol=1e-4, atol=1e-6 * float(largest), msg=lambda m: m)


FAILS_ON_RANK_0 = """
from mg3d import distributed
with distributed.processes(), distributed.first() as first:
    if first:
        raise KeyError("the corpus is gone")
"""


def test_when_rank_0_fails_the_others_do_not_wait(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(FAILS_ON_RANK_0)
    done = subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", str(script)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "the corpus is gone" in done.stderr
