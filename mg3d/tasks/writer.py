"""Volume tokens in, report out: a transformer that is told what to write of by the tokens and by a base of knowledge.

Learning is teacher-forced, all pieces of a report at once. Writing goes piece by piece, for all reports of a batch and
all their beams together, and keeps the keys and values of what is written: a step computes one piece.
"""

from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mg3d.attention import CrossModalAttention, check_heads, split_heads

NOTHING = 0  # id of padding and of pieces that training never saw


@final
class Knowledge(nn.Module):
    """A learned base of knowledge that the volume asks (after Yang et al., M2KT, 2023, as the released code has it).

    The pooled volume gives a number for each of the topics (the released code's 14 findings, which no label teaches).
    A topic's number moves its query; its answer is attention over the base's slots. The answers are further tokens.
    The released base is a constant, updated with the target report in training alone, which no test has; ours is
    learned, and the same in both.
    """

    def __init__(self, width: int, *, slots: int = 60, topics: int = 14, heads: int = 8):
        super().__init__()
        self.topics = nn.Linear(width, topics)
        self.query, self.direction = (nn.Parameter(torch.randn(topics, width)) for _ in range(2))
        self.base = nn.Parameter(torch.randn(slots, width))
        self.answer = CrossModalAttention(width, mode="classical", heads=heads)

    def forward(self, tokens: Float[Tensor, "B N E"]) -> Float[Tensor, "B K E"]:
        """The tokens, and an answer a topic."""
        numbers = self.topics(tokens.mean(1))
        asked = self.query + numbers[..., None] * self.direction
        answers, _ = self.answer(asked, self.base.expand(len(tokens), -1, -1))
        return torch.cat([tokens, answers], 1)


@final
class Kept:
    """Keys and values of what R texts say so far, in one layer: [R, heads, longest, e]."""

    def __init__(self) -> None:
        self.length = 0
        self._both: list[Tensor] = []

    def add(self, key: Tensor, value: Tensor, *, longest: int) -> tuple[Tensor, Tensor]:
        """One more piece [R, heads, 1, e]; returns all of them."""
        if not self._both:
            rows, heads, _, width = key.shape
            self._both = [key.new_empty(rows, heads, longest, width) for _ in range(2)]
        for table, new in zip(self._both, (key, value), strict=True):
            table[:, :, self.length] = new[:, :, 0]
        self.length += 1
        key, value = (table[:, :, : self.length] for table in self._both)
        return key, value

    def choose(self, rows: Int[Tensor, " R"]) -> None:
        """Go on from these texts."""
        for table in self._both:
            table[:, :, : self.length] = table[rows, :, : self.length]


@final
class Layer(nn.Module):
    """Causal self-attention, attention to the memory, feed-forward; residual, each with its LayerNorm in front.

    Raises ValueError if the heads do not divide the width.
    """

    def __init__(self, width: int, *, heads: int, dropout: float):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.norm_self, self.norm_cross, self.norm_feed = (nn.LayerNorm(width) for _ in range(3))
        self.itself, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.query, self.memory, self.answer = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.drop = nn.Dropout(dropout)

    def remember(self, memory: Float[Tensor, "B K E"]) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory: once for all pieces."""
        key, value = (split_heads(x, self.heads) for x in self.memory(memory).chunk(2, -1))
        return key, value

    def forward(self, x: Float[Tensor, "B T E"], told: tuple[Tensor, Tensor]) -> Float[Tensor, "B T E"]:
        """All pieces of B texts; each sees those before it."""
        query, key, value = self._split(x)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._rest(x, seen.transpose(1, 2).flatten(2), told)

    def step(
        self, x: Float[Tensor, "B beams E"], told: tuple[Tensor, Tensor], kept: Kept, *, longest: int
    ) -> Float[Tensor, "B beams E"]:
        """The last piece of each beam of B texts, which sees what was kept of the ones before it."""
        query, key, value = (t.transpose(1, 2).flatten(0, 1).unsqueeze(2) for t in self._split(x))
        key, value = kept.add(key, value, longest=longest)
        seen = F.scaled_dot_product_attention(query, key, value)  # [B beams, heads, 1, e]
        return self._rest(x, seen.flatten(1).view(x.shape), told)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (split_heads(t, self.heads) for t in self.itself(self.norm_self(x)).chunk(3, -1))
        return query, key, value

    def _rest(self, x: Tensor, seen: Tensor, told: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.drop(self.out(seen))
        query = split_heads(self.query(self.norm_cross(x)), self.heads)
        found = F.scaled_dot_product_attention(query, *told).transpose(1, 2).flatten(2)
        x = x + self.drop(self.answer(found))
        return x + self.drop(self.feed(self.norm_feed(x)))


@final
class Writer(nn.Module):
    """Writes texts of at most `longest` pieces (the first one included, which begins each) from a memory [B, K, E].

    Ids go from 0, NOTHING, to `pieces` - 1. What is read and what is written share their embeddings, which are drawn so
    small that the memory is heard from the first steps on: on phantom reports, told their labels, 200 steps gave a test
    loss of 1.21, and 1.49 with torch's own draw and weights of their own.
    """

    def __init__(self, width: int, *, pieces: int, longest: int, layers: int = 1, heads: int = 8, dropout: float = 0.1):
        super().__init__()
        self.longest = longest
        self.piece = nn.Embedding(pieces, width, padding_idx=NOTHING)
        self.place = nn.Embedding(longest, width)
        self.layers = nn.ModuleList(Layer(width, heads=heads, dropout=dropout) for _ in range(layers))
        self.norm, self.bias = nn.LayerNorm(width), nn.Parameter(torch.zeros(pieces))
        self.drop = nn.Dropout(dropout)
        with torch.no_grad():
            for table in (self.piece.weight, self.place.weight):
                table.mul_(width**-0.5)

    def forward(self, memory: Float[Tensor, "B K E"], text: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Logits of the piece after each one."""
        x = self.drop(self.piece(text) + self.place.weight[: text.shape[1]])
        for layer in self._layers():
            x = layer(x, layer.remember(memory))
        return self._next(x)

    @torch.no_grad()
    def write(
        self,
        memory: Float[Tensor, "B K E"],
        *,
        begin: int,
        end: int,
        beams: int = 1,
        block: int = 0,
        power: float = 1.0,
    ) -> Int[Tensor, "B T"]:
        """The most likely text of each sample that a search with `beams` finds, from `begin` to `end`.

        Texts are compared by log P / pieces^power. No text says `block` pieces in a row twice (0: it may). What follows
        `end` is `end`; a text of `longest` pieces may lack it.
        """
        samples, longest = len(memory), self.longest
        told = [layer.remember(memory) for layer in self._layers()]
        kept = [Kept() for _ in told]
        text = torch.full((samples, beams, longest), end, device=memory.device)
        text[..., 0] = begin
        score = torch.full((samples, beams), -torch.inf, device=memory.device)
        score[:, 0] = 0.0  # all beams are the same at first: one of them counts
        done = torch.zeros(samples, beams, dtype=torch.bool, device=memory.device)
        first = beams * torch.arange(samples, device=memory.device)[:, None]
        for t in range(1, longest):
            gain = self._gain(text[..., :t], told, kept)
            gain[..., [NOTHING, begin]] = -torch.inf
            if block and t >= block:
                gain.masked_fill_(repeats(text[..., :t], block, pieces=gain.shape[-1]), -torch.inf)
            gain.masked_fill_(done[..., None], -torch.inf)
            gain[..., end].masked_fill_(done, 0.0)
            score, place = (score[..., None] + gain).flatten(1).topk(beams)
            parent = place // gain.shape[-1]
            text = text.gather(1, parent[..., None].expand_as(text))
            text[..., t] = place % gain.shape[-1]
            done = text[..., t] == end
            if done.all():
                break
            if beams > 1:
                for table in kept:
                    table.choose((first + parent).flatten())
        pieces = (text != end).sum(-1)  # the one that ends it stands for the one that begins it
        best = (score / pieces**power).argmax(1)
        return text[torch.arange(samples, device=text.device), best]

    def _gain(
        self, text: Int[Tensor, "B beams t"], told: list[tuple[Tensor, Tensor]], kept: list[Kept]
    ) -> Float[Tensor, "B beams V"]:
        """log P of each piece after a text of which all but the last piece is kept."""
        x = self.piece(text[..., -1]) + self.place.weight[text.shape[-1] - 1]
        for layer, memory, table in zip(self._layers(), told, kept, strict=True):
            x = layer.step(x, memory, table, longest=self.longest)
        return self._next(x).float().log_softmax(-1)

    def _next(self, x: Tensor) -> Tensor:
        return F.linear(self.norm(x), self.piece.weight, self.bias)

    def _layers(self) -> list[Layer]:
        return [layer for layer in self.layers if isinstance(layer, Layer)]


def repeats(text: Int[Tensor, "B beams t"], n: int, *, pieces: int) -> Bool[Tensor, "B beams V"]:
    """Which pieces would make the last n pieces of a text a run that it has already."""
    runs = text.unfold(-1, n, 1)
    last = text[..., text.shape[-1] - n + 1 :]
    again = (runs[..., :-1] == last[..., None, :]).all(-1)
    found = torch.zeros(*text.shape[:-1], pieces, device=text.device)
    return found.scatter_add_(-1, runs[..., -1], again.float()) > 0
