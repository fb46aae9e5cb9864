"""Several processes, one batch: ranks, a gather with exact gradients, and the start of torchrun.

The same `pretrain(recipe)` runs at any world size. `recipe.batch` counts over all processes; rank r takes the r-th
slice. A loss that is a mean over samples is averaged by DistributedDataParallel; a contrastive loss sees the gathered
batch, so each rank computes the same global loss. There the gradient of a rank's slice is the sum over all ranks'
copies of the loss, and DDP's mean over ranks brings it back to the gradient of one process with the whole batch.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from mg3d.recipe import Recipe

# rank 0 prepares a corpus while the others wait: hours for 50,000 volumes
PATIENCE = timedelta(hours=12)
LAST_TENSORS = 0.2  # seconds


def rank() -> int:
    """Number of this process, 0 when there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def expected() -> int:
    """Number of processes that torchrun (or srun with the same variables) announced; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def device() -> torch.device:
    """The accelerator of this process, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    return torch.device("cpu")


@contextmanager
def processes() -> Iterator[None]:
    """Join the other processes of torchrun for the length of the block; nothing when there is one process."""
    if expected() == 1 or dist.is_initialized():
        yield
        return
    here = device()
    if here.type == "cuda":
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if here.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()
        # gloo's threads want the interpreter's lock to let go of the last tensors; if it shuts down before they had
        # it, the process aborts ("terminate called without an active exception", pytorch issue 190489)
        gc.collect()
        time.sleep(LAST_TENSORS)


@contextmanager
def first() -> Iterator[bool]:
    """Rank 0 goes first, the others follow when it is through and find its work done. Yields True on rank 0.

    When rank 0 fails, the others fail too instead of waiting for ever.
    """
    if world() == 1:
        yield True
        return
    failed = torch.zeros(1, device=device())
    if rank() == 0:
        try:
            yield True
        except BaseException:
            failed += 1
            raise
        finally:
            dist.broadcast(failed, src=0)
    else:
        dist.broadcast(failed, src=0)
        if failed.item():
            raise RuntimeError("rank 0 failed while the other ranks waited: see its message")
        yield False


class _Gather(torch.autograd.Function):
    """all_gather along the batch; backward sums the gradients that all ranks hold for this rank's slice."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def gather(x: Tensor) -> Tensor:
    """Concatenate `x` [B, ...] over the ranks, in order of rank, with exact gradients.

    Dimension 1 may differ between ranks (the padded number of sentences): it is padded with zeros to the largest.
    """
    if world() == 1:
        return x
    kind = x.dtype
    if kind == torch.bool:
        x = x.to(torch.uint8)
    if x.dim() > 1:
        longest = torch.tensor([x.shape[1]], device=x.device)
        dist.all_reduce(longest, dist.ReduceOp.MAX)
        x = lengthened(x, int(longest))
    return _Gather.apply(x).to(kind)


def lengthened(x: Tensor, length: int) -> Tensor:
    """x, padded with zeros along dimension 1."""
    return F.pad(x, (0, 0) * (x.dim() - 2) + (0, length - x.shape[1]))


def mean(values: dict[str, float]) -> dict[str, float]:
    """The mean of each value over the ranks."""
    if world() == 1:
        return values
    total = torch.tensor(list(values.values()), dtype=torch.float64, device=device())
    dist.all_reduce(total)
    return dict(zip(values, (total / world()).tolist(), strict=True))


def launch(recipe: "Recipe") -> None:
    """Run a recipe under torchrun with `recipe.gpus` processes on this machine; CalledProcessError when it fails.

    A notebook calls this through `pretrain`: processes are started, never forked from a kernel that may hold a GPU.
    Their output is printed as it comes.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.json"
        file.write_text(json.dumps(asdict(recipe)))
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={recipe.gpus}"]
        command += ["-m", "mg3d.train", f"@{file}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
