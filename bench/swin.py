"""Swin-B, forward and backward at full size: ours in float32 and bfloat16 against MONAI's, in one run.

    python bench/swin.py [--repeats 2] [--threads 2] [--shape 128 96 128]

Peak memory is that of a process that makes one step, less what it held before. Before anything is timed, both get the
same weights and ours must give MONAI's numbers. Absolute seconds depend on the machine and on its load; ratios count.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from measure import Line, arguments, fresh, in_turns, machine, peak_mb, table
from torch import Tensor, nn

ROWS = ("ours float32", "ours bfloat16", "MONAI float32")
GOALS = {"ours float32": 2.5, "ours bfloat16": 4.5}  # times as fast as MONAI


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


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=2, shape=(128, 96, 128))
    parser.add_argument("--shape", type=int, nargs=3, help="multiples of 32")
    parser.add_argument("--only", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    if options.only:
        run, before = step(options.only, options.shape), peak_mb()
        run()
        print(json.dumps(peak_mb() - before))
        return
    print(f"shape {tuple(options.shape)}, {machine(options.threads)}", flush=True)
    shared = ("--threads", options.threads, "--shape", *options.shape)
    peaks = {row: fresh(__file__, "--only", row, *shared) for row in ROWS}
    steps = {row: step(row, options.shape) for row in ROWS}
    maps = {row: run() for row, run in steps.items()}  # warms up, too
    for a, b in zip(maps[ROWS[0]], maps[ROWS[2]], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    seconds, peer = in_turns(steps, options.repeats), ROWS[2]
    size, lines = "x".join(map(str, options.shape)), []
    for row, goal in GOALS.items():
        ratio = seconds[peer] / seconds[row]
        memory = f"{peaks[row]:,.0f} MB, {peaks[peer]:,.0f} MB"
        shown = f"{ratio:.2f}x ({seconds[row]:.1f} s, {seconds[peer]:.1f} s; {memory})"
        lines.append(Line(f"Swin-B forward and backward, 1x1x{size}, {row}", f"≥ {goal}x {peer}", shown, ratio >= goal))
    table(lines, __file__)


if __name__ == "__main__":
    main()
