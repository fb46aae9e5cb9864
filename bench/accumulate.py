"""A batch of 1,024 patients that are compared with each other, in the memory of a batch of 8: steps in parts.

    python bench/accumulate.py [--batch 1024] [--part 8] [--threads 2]

MG-3D's variant `paper`, what compares patients at full weight, with a small convolutional encoder, volumes of 32^3
voxels and reports of 6 to 10 sentences, so that the whole batch, the plain form, can be measured beside its parts. Each
row makes one step, forward and backward, in a process of its own; memory is the peak of the process, less what it held
before the step. The gradients of the whole batch and of the batch in parts are compared.

    batch of 8          what the memory should be
    1,024 in parts      two passes over 128 parts; CML, SSM and DFA see all patients
    1,024 as parts      one pass, a part compares its own patients alone: what the second pass costs
    1,024 whole
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from measure import Line, arguments, fresh, machine, peak_mb, table
from torch import Tensor, nn

from mg3d import objectives
from mg3d.accumulate import Parts
from mg3d.encoders import Encoder, hide
from mg3d.encoders.text import FrozenText, load_text
from mg3d.text import Tokeniser
from mg3d.types import Batch, Pyramid

SHAPE = (32, 32, 32)
ROWS = ("batch of a part", "in parts", "as parts alone", "whole")
CLOSE = 1e-5  # of the gradient's norm
NEAR = 1.5  # times the memory: features of all patients, and the stripes of SSM, come on top


class Small(Encoder):
    """Three strided convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.widths, self.strides = (16, 32, 64), (2, 4, 8)
        sides = zip((1, *self.widths), self.widths, strict=False)
        self.stages = nn.ModuleList(nn.Conv3d(a, b, 2, 2) for a, b in sides)

    def forward(self, volume: Tensor, mask: Tensor | None = None) -> Pyramid:
        """[B, 1, D, H, W] -> maps at strides 2, 4 and 8."""
        x, levels = hide(volume, mask), []
        for stage in self.stages:
            x = nn.functional.gelu(stage(x))
            levels.append(x)
        return Pyramid(tuple(levels))


def reports(numbers: range) -> list[str]:
    """The first 6 to 10 sentences of phantom reports."""
    from mg3d.data.phantom.plan import draw
    from mg3d.data.phantom.report import write

    return [" ".join(s.text for s in write(draw(i + 1, split="train", seed=0))[: 6 + i % 5]) for i in numbers]


def reader(batch: int, parts: int, text: FrozenText) -> Callable[[int], Iterator[Batch]]:
    """What gives a step's parts from the k-th on, made anew for each pass as a loader reads them anew."""
    tokenise = Tokeniser(text.tokenizer, max_words=512)
    size = batch // parts

    def read(first: int) -> Iterator[Batch]:
        for part in range(first, parts):
            numbers = range(part * size, (part + 1) * size)
            volumes = [torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(i)) + i / batch for i in numbers]
            yield Batch(
                torch.stack(volumes), tuple(map(str, numbers)), torch.tensor(numbers), tokenise(reports(numbers))
            )

    return read


def only(row: str, batch: int, part: int, threads: int, out: str) -> dict[str, float]:
    """One step of a row: seconds and MB; its gradient goes to the file `out`."""
    torch.set_num_threads(threads)
    text = load_text("tiny")
    torch.manual_seed(0)
    model = objectives.build("mg3d", encoder=Small(), text=text, shape=SHAPE, cml=1.0, ssm=1.0, dfa=1.0)
    batch = part if row == ROWS[0] else batch
    count = batch // part if row in ROWS[1:3] else 1
    read = reader(batch, count, text)
    reports(range(1))  # imports what it needs
    if row == ROWS[2]:
        before, start = peak_mb(), time.perf_counter()
        for each in read(0):
            (torch.stack(list(model(each).values())).sum() / count).backward()
    else:
        parts = Parts(model, parts=count, forward=lambda each, _last: model(each))
        before, start = peak_mb(), time.perf_counter()
        parts.backward(read, seed=0)
    found = {"seconds": time.perf_counter() - start, "mb": peak_mb() - before}
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.save(gradient, out)
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--part", type=int, default=8, help="patients in a part; divides the batch")
    parser.add_argument("--only", nargs=2, metavar=("ROW", "FILE"), help="one row, as JSON")
    options = parser.parse_args(words)
    if options.only:
        row, out = options.only
        print(json.dumps(only(row, options.batch, options.part, options.threads, out)))
        return
    print(machine(options.threads))
    shared = ("--batch", options.batch, "--part", options.part, "--threads", options.threads)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for row in ROWS:
            file = Path(folder) / row
            found[row] = fresh(__file__, *shared, "--only", row, file)
            found[row]["gradient"] = torch.load(file)
            print(f"{row:16}{found[row]['mb']:8.0f} MB{found[row]['seconds']:8.1f} s", flush=True)
    small, parts, alone, whole = (found[row] for row in ROWS)
    apart, shown = (
        float((x["gradient"] - whole["gradient"]).norm() / whole["gradient"].norm()) for x in (parts, alone)
    )
    print(f"the gradient of parts that compare within themselves is {shown:.1%} off")
    size, ratio = f"batch {options.batch:,} in parts of {options.part}", parts["mb"] / small["mb"]
    memory = f"{ratio:.2f}x ({parts['mb']:.0f} MB, {small['mb']:.0f} MB; the whole {whole['mb']:,.0f} MB)"
    seconds = [f"{x['seconds']:.0f} s" for x in (parts, whole, alone)]
    lines = [
        Line(f"{size}: gradient", "that of the whole, to 1e-5", f"{apart:.1e} of its norm apart", apart < CLOSE),
        Line(f"{size}: memory", f"that of batch {options.part}", memory, ratio < NEAR),
        Line(f"{size}: time", "", "{} (whole {}, parts that see only themselves {})".format(*seconds), None),
    ]
    table(lines, __file__)


if __name__ == "__main__":
    main()
