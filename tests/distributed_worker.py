"""One rank of a test: `torchrun ... distributed_worker.py <variant> <out>` saves the gradients of a batch of four."""

import sys

import torch
from torch.nn.parallel import DistributedDataParallel
from toy import ToyEncoder

from mg3d import distributed, objectives
from mg3d.encoders.text import load_text
from mg3d.text import Tokeniser
from mg3d.types import Batch

REPORTS = (
    "No pleural effusion. A nodule of 6 mm in the right upper lobe. Heart size is normal.",
    "Consolidation in the left lower lobe. Trachea is open.",
    "Pleural effusion on the right. Emphysema in both lungs. No nodule. Bones are normal. The aorta is calcified.",
    "Lungs are clear. The heart is enlarged.",
)


def main(variant: str, out: str) -> None:
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
        share = slice(rank * 4 // world, (rank + 1) * 4 // world)
        report = Tokeniser(text.tokenizer, max_words=64)(REPORTS[share])
        batch = Batch(volumes[share], tuple("abcd"[share]), torch.arange(4)[share] + 7, report)
        wrapped = DistributedDataParallel(model) if world > 1 else model
        losses = wrapped(batch)
        torch.stack(list(losses.values())).sum().backward()
        values = distributed.mean({k: v.item() for k, v in losses.items()})
        if rank == 0:
            grads = {n: p.grad for n, p in model.named_parameters()}
            torch.save({"losses": values, "grads": grads}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
