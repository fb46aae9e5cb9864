"""Where each sentence of a report looks: the cross-modal attention of a run, one map a sentence.

    found = attend(run, "test_3_a_1")
    found.sentences[4], found.maps[4]      text, and float32 [D, H, W] on the prepared volume's grid
    found.to_source()                      the same in the voxel frame of the input file

The objective gives a weight to each volume token, on whatever grid its `maps` work. Each sentence's weights are divided
by their sum, interpolated between the tokens' centres (trilinear, constant beyond the outermost ones) and divided by
their sum again, so that every map is a distribution over the voxels, whichever mechanism, layer or head it is from.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from mg3d import distributed, paths, train
from mg3d.data import BadVolume, corpora, store
from mg3d.data.frame import taps, to_source
from mg3d.data.listing import few
from mg3d.data.prepare import prepare_case
from mg3d.data.store import Entry
from mg3d.recipe import Recipe
from mg3d.runs import DamagedRun, Run
from mg3d.text import Tokeniser, split
from mg3d.types import Batch, Case

BATCH = 8  # volumes that are encoded at a time


@runtime_checkable
class Attends(Protocol):
    """What `attend` needs of an objective."""

    def maps(self, batch: Batch) -> tuple[Float[Tensor, "B layers heads S N"], tuple[int, int, int]]:
        """Weights of the N volume tokens for each sentence, and the grid of the tokens (d slowest)."""
        ...


@final
@dataclass(frozen=True)
class Attention:
    """The maps of one case. The voxels are computed when they are first asked for; until then it is small."""

    entry: Entry  # the case and its prepared volume
    sentences: tuple[str, ...]  # what the model read: those that `max_words` dropped are missing
    tokens: Float[np.ndarray, "S d h w"]  # each map on the tokens' grid, sum 1
    stride: int | None  # voxels a token; None: the grid spans the volume, whatever its size

    @property
    def case(self) -> Case:
        """The case whose volume and report were read."""
        return self.entry.case

    @cached_property
    def record(self) -> dict[str, Any]:
        """The volume's sidecar: among others `affine` (prepared voxels to RAS mm) and `spacing_mm`."""
        return self.entry.record

    @property
    def grid(self) -> tuple[int, int, int]:
        """d, h, w of the tokens."""
        d, h, w = self.tokens.shape[1:]
        return d, h, w

    @property
    def shape(self) -> tuple[int, int, int]:
        """D, H, W of the prepared volume."""
        d, h, w = self.record["spec"]["shape"]
        return d, h, w

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Of the prepared volume, for its axes D, H, W."""
        d, h, w = (float(mm) for mm in self.record["spacing_mm"])
        return d, h, w

    @cached_property
    def volume(self) -> Float[np.ndarray, "D H W"]:
        """The prepared volume, float32, the window from 0 to 1."""
        return self.entry.load().astype(np.float32)

    @cached_property
    def maps(self) -> Float[np.ndarray, "S D H W"]:
        """One map a sentence on the grid of the prepared volume, float32, each of sum 1."""
        return upsample(self.tokens, self.shape, stride=self.stride)

    def to_source(self) -> Float[np.ndarray, "S I J K"]:
        """The maps in the voxel frame of the input file: linear between prepared voxels, 0 outside the crop.

        The values stay shares of a prepared voxel, so that maps can be compared; their sum is that no more.
        """
        return to_source(self.maps, self.record)


def attend(
    run: Run | Path | str, case: Case | str, *, layer: int = -1, head: int | None = None, untrained: bool = False
) -> Attention:
    """The maps of one case: a `Case` with a volume and a report, or the id of one in the run's corpus.

    `run` is a Run, its folder or its id. `layer` counts the fusion layers, from the end where negative; `head` picks
    one head, None is their mean. `untrained` gives the same objective with the weights it had before its first step: a
    control. Raises ValueError for a run without maps of sentences, an unknown case (with the nearest names), a layer or
    a head that does not exist; FileNotFoundError where there is no such run; DamagedRun for one without weights;
    BadVolume where the volume cannot be read.
    """
    return next(attend_all(run, [case], layer=layer, head=head, untrained=untrained))


def attend_all(
    run: Run | Path | str,
    cases: Sequence[Case | str],
    *,
    layer: int = -1,
    head: int | None = None,
    untrained: bool = False,
    batch: int = BATCH,
) -> Iterator[Attention]:
    """`attend` for many cases, in order, `batch` of them at a time; the model is loaded once. Raises what it raises."""
    found = opened(run)
    model, entries, tokenise, batches = shown(found, cases, untrained=untrained, batch=batch)
    if not hasattr(model, "maps"):
        raise ValueError(
            f"{found.path.name}: method {found.recipe.method!r} reads no sentences, so it has no maps of them"
        )
    place = iter(entries)
    for some in batches:
        weights, real, grid = look(model, some, layer=layer, head=head)
        stride = stride_of(tuple(some.volume.shape[2:]), grid, model.encoder.strides)
        for maps, exists, entry in zip(weights.cpu().numpy(), real.cpu().numpy(), place, strict=False):
            yield Attention(entry, read(entry.case.report, tokenise), maps[exists].reshape(-1, *grid), stride)


def shown(
    run: Run, cases: Sequence[Case | str], *, untrained: bool, batch: int = BATCH
) -> tuple[Any, list[Entry], Tokeniser, Iterator[Batch]]:
    """A run's objective, in eval mode on its device, and cases in batches for it, with what these are made of.

    Raises DamagedRun for a run that is not done, and what a case is refused for.
    """
    from mg3d.data.loader import Loader

    text, tokenise = train.words(run.recipe)
    device = distributed.device()
    model = _model(run, text, untrained=untrained).to(device)
    entries = _entries(run.recipe, cases)
    train.fill(text, tokenise, (entry.case for entry in entries), progress=False)
    loader = Loader(entries, tokenise=tokenise, batch=batch, seed=0)
    return model, entries, tokenise, (some.to(device) for some in loader.all())


def look(
    model: Attends, batch: Batch, *, layer: int = -1, head: int | None = None
) -> tuple[Float[Tensor, "B S N"], Tensor, tuple[int, int, int]]:
    """The weights of the volume tokens for each sentence of a batch, of sum 1, which sentences exist, and the grid.

    Raises ValueError for a layer or a head that the model does not have, and for a batch without reports.
    """
    if batch.report is None:
        raise ValueError("sentences look at volumes: this batch has no reports")
    maps, grid = model.maps(batch)
    for name, number, count in (("layer", layer, maps.shape[1]), ("head", head, maps.shape[2])):
        if number is not None and not -count <= number < count:
            raise ValueError(f"{name}={number}: this run has {count}, numbered from 0 on, or from -1 back")
    chosen = maps[:, layer].mean(1) if head is None else maps[:, layer, head]
    weights = chosen / chosen.sum(-1, keepdim=True).clamp_min(torch.finfo(chosen.dtype).tiny)
    return weights, batch.report.sentences, grid


def upsample(
    tokens: Float[np.ndarray, "S d h w"], shape: tuple[int, int, int], *, stride: int | None = None
) -> Float[np.ndarray, "S D H W"]:
    """Maps of tokens on the grid of the voxels, float32, each of sum 1.

    Trilinear between the centres of the tokens (align_corners=False), one matrix an axis, so that the sums are known
    beforehand. Tokens are `stride` voxels a side, the last ones may reach beyond the volume; None: they share it out
    evenly. A map without any weight stays 0.
    """
    d, h, w = (
        taps((np.arange(voxels) + 0.5) * scale - 0.5, scale=scale, size=n)
        for voxels, n in zip(shape, tokens.shape[1:], strict=True)
        for scale in (1 / stride if stride else n / voxels,)
    )
    total = np.einsum("sdhw,d,h,w->s", tokens, d.sum(0), h.sum(0), w.sum(0))
    shares = tokens / np.maximum(total, np.finfo(np.float32).tiny).reshape(-1, 1, 1, 1)
    coarse = np.einsum("Dd,Hh,sdhw->sDHw", d, h, shares, optimize=True).astype(np.float32)
    return coarse @ w.T.astype(np.float32)


def covered(
    masks: Bool[np.ndarray, "S D H W"], grid: tuple[int, int, int], *, stride: int | None = None
) -> Float[np.ndarray, "S d h w"]:
    """The share of each token's cell, of what of it lies in the volume, that a mask covers, float32."""
    if not len(masks):
        return np.empty((0, *grid), np.float32)
    inside = torch.from_numpy(masks)[:, None].float()
    if stride is None:
        return F.adaptive_avg_pool3d(inside, grid)[:, 0].numpy()
    return F.avg_pool3d(inside, stride, ceil_mode=True, count_include_pad=False)[:, 0].numpy()


def stride_of(shape: tuple[int, ...], grid: tuple[int, int, int], strides: Iterable[int]) -> int | None:
    """The stride whose cells make this grid of this volume, or None; a level has ceil(size / stride) cells a side."""
    fits = (s for s in strides if tuple(ceil(n / s) for n in shape) == grid)
    return next(fits, None)


def read(report: str, tokenise: Tokeniser) -> tuple[str, ...]:
    """The sentences that the model reads of a report: those with a token, up to `max_words`."""
    sentences = split(report)
    ids = tokenise.tokenizer(sentences, add_special_tokens=False, verbose=False)["input_ids"]
    kept = int(tokenise([report]).sentences.sum())
    return tuple(sentence for sentence, some in zip(sentences, ids, strict=True) if some)[:kept]


def opened(run: Run | Path | str) -> Run:
    """A run from its handle, its folder or its id. FileNotFoundError, with the nearest ids, where there is none."""
    if isinstance(run, Run):
        place = run.path
    else:
        place = next((p for p in (paths.runs() / run, Path(run).expanduser()) if (p / "recipe.json").is_file()), None)
    if place is None or not (place / "recipe.json").is_file():
        there = [p.parent.name for p in paths.runs().glob("*/recipe.json")]
        near = difflib.get_close_matches(Path(str(run)).name, there, n=3) or there
        raise FileNotFoundError(f"no run {run} (no recipe.json there); {paths.runs()} holds: {few(near) or 'none'}")
    return Run(place)


def _model(run: Run, text: Any, *, untrained: bool) -> Any:
    """The objective of a run. DamagedRun for one that is not done."""
    if untrained:
        return train.objective(run.recipe, text).eval()
    if not run.done:
        raise DamagedRun(
            f"{run.path}: the run is at step {run.step} of {run.recipe.filled.steps} and has no weights yet; finish it "
            "with pretrain(run.recipe), or look at untrained=True"
        )
    return train.load(run, text=text)


def _entries(recipe: Recipe, cases: Sequence[Case | str]) -> list[Entry]:
    """The prepared volumes of cases; those that are none yet are prepared."""
    if any(isinstance(case, str) for case in cases):
        place = train.where(recipe)
        known = {case.id: case for case in corpora.cases(recipe.size.corpus, place).cases}
        for name in cases:
            if isinstance(name, str) and name not in known:
                near = difflib.get_close_matches(name, known, n=3)
                raise ValueError(f"no case {name!r} in {place}; there are {len(known)}: {few(near or known)}")
        return [_entry(known[case] if isinstance(case, str) else case, recipe) for case in cases]
    return [_entry(case, recipe) for case in cases if isinstance(case, Case)]


def _entry(case: Case, recipe: Recipe) -> Entry:
    if not split(case.report):
        raise ValueError(f"case {case.id} has no report: there is no sentence that could look at its volume")
    spec, folder = train.spec(recipe), train.kept(recipe)
    entry = store.find(case, spec, folder) if case.volume.exists() else None
    found = entry or prepare_case(case, spec=spec, folder=folder)
    if not isinstance(found, Entry):
        raise BadVolume(found.reason, found.path, found.detail)
    return found
