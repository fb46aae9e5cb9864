"""The two-layer perceptron that ends every Transformer block."""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Perceptron(nn.Module):
    """The two-layer perceptron of a block, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, 4 * width)
        self.linear2 = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "*B E"]) -> Float[Tensor, "*B E"]:
        """linear2(GELU(linear1(x)))."""
        return self.linear2(F.gelu(self.linear1(x)))
