"""One rank of a test: `torchrun ... distributed_worker.py <variant> <out> [parts]` saves the gradients of a batch.

Its four samples are cut into the parts of a step, each part into the shares of the ranks.
"""

import sys
from collections.abc import Iterator

import torch
from toy import ToyEncoder

from mg3d import distributed, objectives
from mg3d.accumulate import Parts
from mg3d.encoders.text import load_text
from mg3d.fit import runner
from mg3d.recipe import Recipe
from mg3d.text import Tokeniser
from mg3d.types import Batch

REPORTS = (
    "No pleural effusion. A nodule of 6 mm in the right upper lobe. Heart size is normal.",
    "Consolidation in the left lower lobe. Trachea is open.",
    "Pleural effusion on the right. Emphysema in both lungs. No nodule. Bones are normal. The aorta is calcified.",
    "Lungs are clear. The heart is enlarged.",
)


def main(variant: str, out: str, parts: str = "1") -> None:
    """Gradients of the whole batch, each rank holding its slice of it."""
    torch.set_num_threads(1)
    with distributed.processes():
        rank, world = distributed.rank(), distributed.world()
        text = load_text("tiny")
        torch.manual_seed(0)
        model = objectives.build(
            "mg3d",
            encoder=ToyEncoder(),
            text=text,
            variant=variant,
            shape=(32, 32, 32),
            mask_shared=False,  # the released code draws one mask a process: no two of them are one by definition
        )
        model.gather = distributed.gather
        volumes = torch.rand(4, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
        count = int(parts)
        size = 4 // (world * count)

        def read(first: int) -> Iterator[Batch]:
            for part in range(first, count):
                start = (part * world + rank) * size
                share = slice(start, start + size)
                report = Tokeniser(text.tokenizer, max_words=64)(REPORTS[share])
                yield Batch(volumes[share], tuple("abcd"[share]), torch.arange(4)[share] + 7, report)

        forward = runner(model, Recipe(precision="fp32"), torch.device("cpu"))
        found = Parts(model, parts=count, forward=forward).backward(read, seed=0)
        means = {name: sum(terms[name].item() for terms, _ in found) / count for name in found[0][0]}
        values = distributed.mean(means)
        if rank == 0:
            grads = {n: p.grad for n, p in model.named_parameters()}
            torch.save({"losses": values, "grads": grads}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
