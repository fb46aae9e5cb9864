"""Swin-B, forward and backward at full size: ours in float32 and bfloat16 against MONAI's, in one run.

    python bench/swin.py [--repeats 2] [--threads 2] [--shape 128 96 128]

The order is A B C A B C ...; a line gives median and best seconds, their ratios to MONAI's, and the peak memory of a
process that does nothing else. Before anything is timed, both get the same weights and ours must give MONAI's numbers.
Absolute seconds depend on the machine and on its load; the ratios are what the table in the README shows.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

ROWS = ("ours float32", "ours bfloat16", "MONAI float32")


class OldMerging(nn.Module):
    """The merging order of published weights, which MONAI's default has left."""

    def __init__(self, dim: int, norm_layer: type = nn.LayerNorm, spatial_dims: int = 3) -> None:
        super().__init__()
        self.reduction = nn.Linear(8 * dim, 2 * dim, bias=False)
        self.norm = norm_layer(8 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W, C] -> [B, D/2, H/2, W/2, 2C]; even sizes only."""
        from mg3d.encoders.swin import MERGE

        return self.reduction(self.norm(torch.cat([x[:, i::2, j::2, k::2] for i, j, k in MERGE], -1)))


def network(row: str) -> nn.Module:
    """The encoder of a row, with seeded weights."""
    from mg3d.encoders.swin import Swin

    torch.manual_seed(0)
    ours = Swin(48)
    if not row.startswith("MONAI"):
        return ours
    from monai.networks.nets import swin_unetr

    def permute(x: Tensor, pattern: str) -> Tensor:  # all that MONAI's Swin asks of einops
        before, after = (side.split() for side in pattern.split("->"))
        return x.permute([before.index(letter) for letter in after])

    swin_unetr.rearrange = permute
    theirs = swin_unetr.SwinTransformer(1, 48, (7,) * 3, (2,) * 3, (2,) * 4, (3, 6, 12, 24), downsample=OldMerging)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs


def step(row: str, shape: Sequence[int]) -> Callable[[], list[Tensor]]:
    """A function that runs one forward and backward pass of a row and gives its five maps."""
    model, x = network(row), torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(1))

    def run() -> list[Tensor]:
        context = torch.autocast("cpu", dtype=torch.bfloat16) if "bfloat16" in row else nullcontext()
        model.zero_grad()
        with context:
            out = model(x)
        maps = list(getattr(out, "levels", out))
        torch.autograd.backward(maps, [torch.ones_like(m) for m in maps])
        return [m.detach() for m in maps]

    return run


def peak_mb(row: str, arguments: argparse.Namespace) -> float:
    """Peak memory of a fresh process that runs one step of a row, without what the imports take."""
    command = [sys.executable, __file__, "--only", row, "--threads", str(arguments.threads), "--shape"]
    return float(
        subprocess.run([*command, *map(str, arguments.shape)], check=True, capture_output=True, text=True).stdout
    )


def only(row: str, shape: Sequence[int]) -> None:
    """The child's part of `peak_mb`."""
    run = step(row, shape)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=(128, 96, 128), help="multiples of 32")
    parser.add_argument("--only", choices=ROWS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        only(arguments.only, arguments.shape)
        return
    peaks = {row: peak_mb(row, arguments) for row in ROWS}  # first: a child counts what its parent held at its birth
    steps = {row: step(row, arguments.shape) for row in ROWS}
    maps = {row: run() for row, run in steps.items()}  # warms up, too
    for a, b in zip(maps[ROWS[0]], maps[ROWS[2]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    seconds: dict[str, list[float]] = {row: [] for row in ROWS}
    for _ in range(arguments.repeats):
        for row, run in steps.items():
            start = time.perf_counter()
            run()
            seconds[row].append(time.perf_counter() - start)
    print(f"shape {tuple(arguments.shape)}, {arguments.threads} threads, {arguments.repeats} repeats")
    print(f"{'':15}{'median s':>9}{'ratio':>7}{'best s':>9}{'ratio':>7}{'peak MB':>9}")
    times = {row: (statistics.median(seconds[row]), min(seconds[row])) for row in ROWS}
    for row in ROWS:
        (median, best), (slow, fast) = times[row], times[ROWS[2]]
        print(f"{row:15}{median:9.2f}{slow / median:7.2f}{best:9.2f}{fast / best:7.2f}{peaks[row]:9.0f}")


if __name__ == "__main__":
    main()
