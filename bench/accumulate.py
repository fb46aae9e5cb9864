"""A batch of 1,024 patients that are compared with each other, in the memory of a batch of 8: steps in parts.

    python bench/accumulate.py [--batch 1024] [--part 8] [--threads 2]

MG-3D's variant `paper`, what compares patients at full weight, with a small convolutional encoder, volumes of 32^3
voxels and reports of 6 to 10 sentences, so that the whole batch, the plain form, can be measured beside its parts. Each
row makes one step, forward and backward, in a process of its own; memory is the peak of the process, less what it held
before the step.

    in parts    two passes over 128 parts; CML, SSM and DFA see all patients
    batches     one pass over the same parts, each a batch of 8 by itself: the memory and the time of such batches
    whole       the plain batch

Gradients are compared in float64, for an eighth of the batch: in float32 that of the whole batch is as far from the
exact one as that of the parts, some 1e-5 of its norm, since little is left of the large sums in a contrastive loss.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from measure import Line, arguments, fresh, machine, peak_mb, phantom_report, table
from torch import Tensor, nn

from mg3d import objectives
from mg3d.accumulate import Parts
from mg3d.encoders import Encoder, hide
from mg3d.encoders.text import FrozenText, load_text
from mg3d.text import Tokeniser
from mg3d.types import Batch, Pyramid, Report

SHAPE = (32, 32, 32)
ROWS = ("in parts", "batches", "whole")
WEIGHTS = {"cml": 1.0, "ssm": 1.0, "dfa": 1.0}
CLOSE = 1e-5  # of the gradient's norm
NEAR = 1.5  # times the memory: the features of all patients, and the stripes of SSM, come on top


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
    return [" ".join(phantom_report(i + 1)[: 6 + i % 5]) for i in numbers]


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


class Exact:
    """A text encoder whose features are float64."""

    def __init__(self, text: FrozenText) -> None:
        self.text, self.width, self.vocabulary, self.mask_id = text, text.width, text.vocabulary, text.mask_id

    def __call__(self, words: Tensor) -> Tensor:
        """F_T of ids."""
        return self.text(words).double()

    def word_features(self, report: Report) -> Tensor:
        """F_T of a report."""
        return self.text.word_features(report).double()

    def sentence_features(self, report: Report) -> Tensor:
        """A feature of each sentence by itself."""
        return self.text.sentence_features(report).double()


def gradient(batch: int, parts: int) -> Tensor:
    """The gradient of a step in float64, all parameters in one vector."""
    text = load_text("tiny")
    read = reader(batch, parts, text)
    torch.manual_seed(0)
    model = objectives.build("mg3d", encoder=Small(), text=Exact(text), shape=SHAPE, **WEIGHTS).double()

    def doubled(first: int) -> Iterator[Batch]:
        return (replace(part, volume=part.volume.double()) for part in read(first))

    Parts(model, parts=parts, forward=lambda each, _last: model(each)).backward(doubled, seed=0)
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def only(row: str, batch: int, part: int) -> dict[str, float]:
    """One step of a row: seconds and MB."""
    text = load_text("tiny")
    torch.manual_seed(0)
    model = objectives.build("mg3d", encoder=Small(), text=text, shape=SHAPE, **WEIGHTS)
    count = 1 if row == "whole" else batch // part
    read = reader(batch, count, text)
    reports(range(1))  # imports what it needs
    if row == "batches":
        before, start = peak_mb(), time.perf_counter()
        for each in read(0):
            (torch.stack(list(model(each).values())).sum() / count).backward()
    else:
        parts = Parts(model, parts=count, forward=lambda each, _last: model(each))
        before, start = peak_mb(), time.perf_counter()
        parts.backward(read, seed=0)
    return {"seconds": time.perf_counter() - start, "mb": peak_mb() - before}


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--part", type=int, default=8, help="patients in a part; divides the batch")
    parser.add_argument("--only", metavar="ROW", help="one row, as JSON")
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    if options.only:
        print(json.dumps(only(options.only, options.batch, options.part)))
        return
    print(machine(options.threads))
    shared = ("--batch", options.batch, "--part", options.part, "--threads", options.threads)
    found = {}
    for row in ROWS:
        found[row] = fresh(__file__, *shared, "--only", row)
        print(f"{row:10}{found[row]['mb']:8,.0f} MB{found[row]['seconds']:8.1f} s", flush=True)
    eighth = options.batch // 8
    parts, plain = (gradient(eighth, n) for n in (eighth // options.part, 1))
    apart = float((parts - plain).norm() / plain.norm())
    mb, seconds = ({row: value[unit] for row, value in found.items()} for unit in ("mb", "seconds"))
    ratio, size = mb["in parts"] / mb["batches"], f"in parts of {options.part}"
    memory = f"{ratio:.2f}x ({mb['in parts']:.0f} MB, {mb['batches']:.0f} MB; the whole {mb['whole']:,.0f} MB)"
    shown = (
        f"{seconds['in parts'] / seconds['batches']:.2f}x ({seconds['in parts']:.0f} s; whole {seconds['whole']:.0f} s)"
    )
    lines = [
        Line(f"gradient of {eighth} patients {size}", "that of the whole, 1e-5", f"{apart:.0e} apart", apart < CLOSE),
        Line(f"memory of {options.batch:,} patients {size}", f"of batches of {options.part}", memory, ratio < NEAR),
        Line(f"time of {options.batch:,} patients {size}", "", shown, None),
    ]
    table(lines, __file__)


if __name__ == "__main__":
    main()
