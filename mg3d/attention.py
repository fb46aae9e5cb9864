"""Cross-modal attention (Eq. 1, 3, 11) and the layers around it.

One's own modality is x [B, X, E], the other one y [B, Y, E]. In the paper's mechanism ("ours") the other modality asks
and one's own answers with its own values. A = softmax_x(W_Q y . W_K x / sqrt(d)) is a map over one's own tokens for
each token of the other modality; it weighs one's own values, and the weighted values are averaged over the other
modality:

    h_i = 1/Y sum_j A[j, i] (W_V x_i) = (mean_j A[j, i]) (W_V x_i)                                  (1), (3)

so the features of the task's own modality stay dominant, and no tensor [X, Y, E] is needed. (The paper prints sqrt(d)
outside of the softmax; we read the usual scaled product, which is also what the released code computes.) The classical
mechanism is h_i = sum_j softmax_j(W_Q x_i . W_K y_j / sqrt(d)) (W_V y_j); Eq. 11 is this one, with sentences as x and
volume tokens as y. Both return their map [B, heads, queries, keys]. Padding never weighs anything.
"""

import math
from typing import Literal, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Mode = Literal["ours", "classical"]
Gate = Literal["softmax", "sigmoid"]


def split_heads(x: Float[Tensor, "B n E"], heads: int) -> Float[Tensor, "B heads n e"]:
    """Each token's channels, dealt to the heads."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError unless the heads divide the width."""
    if width % heads:
        raise ValueError(f"{heads} heads do not divide the width {width}: choose another width or number of heads")


def masked_mean(x: Float[Tensor, "B n E"], real: Bool[Tensor, "B n"] | None = None) -> Float[Tensor, "B E"]:
    """Mean over the real tokens of each sample; 0 where there is none."""
    if real is None:
        return x.mean(1)
    return (x * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)


def sentence_mean(
    features: Float[Tensor, "B L E"], sentence: Int[Tensor, "B L"], sentences: int
) -> Float[Tensor, "B S E"]:
    """F_S from F_T: the mean of the words of each sentence (Sec. III-B.1a); 0 for a sentence without words.

    `sentence` numbers the words from 0; -1 belongs to none. Computed in float32 also under autocast.
    """
    with torch.autocast(features.device.type, enabled=False):
        member = sentence[:, None, :] == torch.arange(sentences, device=sentence.device)[:, None]
        wide = features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
        return member.to(wide.dtype) @ wide / member.sum(-1, keepdim=True).clamp_min(1)


@final
class CrossModalAttention(nn.Module):
    """One's own tokens, explained by the other modality's (see the module's docstring). No residual.

    `normed` puts a LayerNorm before each side: without it the maps start almost uniform. `sharp` multiplies the scores
    under the softmax. `gate="sigmoid"` is the released form of "ours": A = sigmoid(W_Q y . W_K x / sqrt(d)), each
    weight on its own scale. Keys have no bias where a softmax would cancel it. Without `values` the tokens themselves
    are averaged, for those who want the map alone. Raises ValueError if the heads do not divide the width, and for a
    classical sigmoid, which nobody defines.
    """

    def __init__(
        self,
        width: int,
        *,
        mode: Mode = "ours",
        gate: Gate = "softmax",
        heads: int = 1,
        normed: bool = True,
        sharp: float = 1.0,
        values: bool = True,
    ):
        super().__init__()
        check_heads(width, heads)
        self.sharp = sharp
        if mode == "classical" and gate == "sigmoid":
            raise ValueError("gate='sigmoid' is a form of mode='ours': take gate='softmax' with mode='classical'")
        self.mode, self.gate, self.heads = mode, gate, heads
        self.norm_x, self.norm_y = (nn.LayerNorm(width) if normed else nn.Identity() for _ in range(2))
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=gate == "sigmoid")
        value = nn.Linear(width, width)  # drawn in any case, so that what is drawn next is the same for a seed
        self.value = value if values else nn.Identity()

    def forward(
        self,
        x: Float[Tensor, "B X E"],
        y: Float[Tensor, "B Y E"],
        *,
        x_real: Bool[Tensor, "B X"] | None = None,
        y_real: Bool[Tensor, "B Y"] | None = None,
    ) -> tuple[Float[Tensor, "B X E"], Float[Tensor, "B heads queries keys"]]:
        """New features of x, and the map: [B, heads, Y, X] in "ours", [B, heads, X, Y] in "classical"."""
        x, y = self.norm_x(x), self.norm_y(y)
        own, other = (x, y) if self.mode == "ours" else (y, x)
        own_real = x_real if self.mode == "ours" else y_real
        query, key = split_heads(self.query(other), self.heads), split_heads(self.key(own), self.heads)
        scores = query @ key.transpose(-1, -2) * (self.sharp / math.sqrt(key.shape[-1]))
        value = split_heads(self.value(own), self.heads)
        weights = self._weights(scores, own_real)
        if self.mode == "classical":
            out = weights.to(value.dtype) @ value
        else:
            out = self._mean_over_queries(weights, y_real)[..., None].to(value.dtype) * value
        return out.transpose(1, 2).flatten(2), weights

    def asked(
        self, x: Float[Tensor, "B X E"], y: Float[Tensor, "B Y E"]
    ) -> tuple[Float[Tensor, "B X E"], Float[Tensor, "B Y E"]]:
        """Queries of x and keys of y of the classical mechanism, heads side by side: what the map is made of."""
        return self.sharp * self.query(self.norm_x(x)), self.key(self.norm_y(y))

    def _weights(self, scores: Tensor, key_real: Tensor | None) -> Tensor:
        if self.gate == "sigmoid":
            weights = scores.sigmoid()
            return weights if key_real is None else weights * key_real[:, None, None, :]
        if key_real is not None:  # the least number instead of -inf: a sample without any key then gives no NaN
            scores = scores.masked_fill(~key_real[:, None, None, :], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        return weights if key_real is None else weights * key_real[:, None, None, :]

    @staticmethod
    def _mean_over_queries(weights: Tensor, query_real: Tensor | None) -> Tensor:
        if query_real is None:
            return weights.mean(2)
        share = query_real.to(weights.dtype) / query_real.sum(1, keepdim=True).clamp_min(1)
        return torch.einsum("bhqk,bq->bhk", weights, share)


@final
class SelfAttention(nn.Module):
    """Multi-head self-attention without a map. Raises ValueError if the heads do not divide the width."""

    def __init__(self, width: int, *, heads: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B X E"], real: Bool[Tensor, "B X"] | None = None) -> Float[Tensor, "B X E"]:
        """New features of x."""
        query, key, value = (split_heads(t, self.heads) for t in self.qkv(x).chunk(3, -1))
        return self.out(attend(query, key, value, real).transpose(1, 2).flatten(2))


def attend(query: Tensor, key: Tensor, value: Tensor, real: Tensor | None) -> Tensor:
    """Scaled dot product attention [B, heads, n, e] over the real keys; a sample without any gives no NaN."""
    bias = None
    if real is not None:
        bias = torch.zeros_like(real, dtype=query.dtype).masked_fill_(~real, torch.finfo(query.dtype).min)
        bias = bias[:, None, None, :].expand(-1, -1, query.shape[2], -1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


@final
class FusionLayer(nn.Module):
    """Self-attention, cross-modal attention, feed-forward: the Transformer layer of Sec. III-B.1a.

    Each sub-layer is residual with its LayerNorm in front (pre-norm: it trains without a long warm-up). `plain` is the
    released form: the gate alone, without self-attention, feed-forward, residual and norm.
    """

    def __init__(
        self,
        width: int,
        *,
        mode: Mode = "ours",
        gate: Gate = "softmax",
        heads: int = 1,
        self_heads: int = 8,
        plain: bool = False,
    ):
        super().__init__()
        self.plain = plain
        self.cross = CrossModalAttention(width, mode=mode, gate=gate, heads=heads, normed=not plain)
        if not plain:
            self.itself = SelfAttention(width, heads=self_heads)
            self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            self.norm_self, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "B X E"],
        y: Float[Tensor, "B Y E"],
        *,
        x_real: Bool[Tensor, "B X"] | None = None,
        y_real: Bool[Tensor, "B Y"] | None = None,
        more: Float[Tensor, "B X E"] | None = None,
    ) -> tuple[Float[Tensor, "B X E"], Float[Tensor, "B heads queries keys"]]:
        """New features of x, and the map of the cross-modal attention. `more` is added before the feed-forward part."""
        if self.plain:
            return self.cross(x, y, x_real=x_real, y_real=y_real)
        x = x + self.itself(self.norm_self(x), x_real)
        change, weights = self.cross(x, y, x_real=x_real, y_real=y_real)
        x = x + change if more is None else x + change + more
        return x + self.feed(self.norm_feed(x)), weights


@final
class Fusion(nn.Module):
    """Fusion layers, the other modality the same for each; a LayerNorm closes the residual stream."""

    def __init__(
        self,
        width: int,
        *,
        layers: int = 2,
        mode: Mode = "ours",
        gate: Gate = "softmax",
        heads: int = 1,
        self_heads: int = 8,
        plain: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList(
            FusionLayer(width, mode=mode, gate=gate, heads=heads, self_heads=self_heads, plain=plain)
            for _ in range(layers)
        )
        self.norm = nn.Identity() if plain else nn.LayerNorm(width)

    def forward(
        self,
        x: Float[Tensor, "B X E"],
        y: Float[Tensor, "B Y E"],
        *,
        x_real: Bool[Tensor, "B X"] | None = None,
        y_real: Bool[Tensor, "B Y"] | None = None,
    ) -> tuple[Float[Tensor, "B X E"], Float[Tensor, "B layers heads queries keys"]]:
        """Features of x that the other modality has shaped, and the maps of all layers."""
        maps = []
        for layer in self.layers:
            x, weights = layer(x, y, x_real=x_real, y_real=y_real)
            maps.append(weights)
        return self.norm(x), torch.stack(maps, 1)


@final
class AttentionPool(nn.Module):
    """Self-attention pooling (Sec. III-B.2) after CLIP: the mean token asks the tokens and itself; its answer is
    returned.

    Raises ValueError if the heads do not divide the width.
    """

    def __init__(self, width: int, *, heads: int = 8):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B X E"], real: Bool[Tensor, "B X"] | None = None) -> Float[Tensor, "B E"]:
        """One vector a sample; where no token is real, that of a zero token."""
        mean = masked_mean(x, real)[:, None]
        tokens = torch.cat([mean, x], 1)
        query, key, value = (
            split_heads(layer(t), self.heads)
            for layer, t in ((self.query, mean), (self.key, tokens), (self.value, tokens))
        )
        if real is not None:
            real = F.pad(real, (1, 0), value=True)
        return self.out(attend(query, key, value, real).transpose(1, 2).flatten(2))[:, 0]


@final
class Placed(nn.Module):
    """Tokens that know where they lie in their grid: plus a learnt view of sines and cosines of their place.

    Along an axis the grid's middle is 0 and its borders are -1 and 1, whatever the number of cells, in waves of twice
    the grid's length, once, half and a quarter of it.
    """

    WAVES = 4  # an axis

    def __init__(self, width: int):
        super().__init__()
        self.place = nn.Linear(3 * 2 * self.WAVES, width)

    def forward(self, x: Float[Tensor, "B N E"], grid: tuple[int, int, int]) -> Float[Tensor, "B N E"]:
        """The tokens of a grid of N cells, in its order."""
        weight = self.place.weight
        axes = [(torch.arange(n, device=weight.device) + 0.5) * (2 / n) - 1 for n in grid]
        at = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)
        turns = (at[..., None] * 2.0 ** torch.arange(-2, self.WAVES - 2, device=at.device)).flatten(1) * math.tau
        return x + self.place(torch.cat((turns.sin(), turns.cos()), 1).to(weight.dtype))
