"""The losses of the paper, Eq. 2 to 13, as pure functions, each named as there.

    L_MIM  = 1/B sum_b |I - I_REC|^2                                                (2)   mim
    L_MLM  = -1/B sum_b log p(T_REC | I, T_M)                                       (4)   mlm
    L_SFR  = 1/B sum_b |Sim(F_S, S_REC) - 1|_1                                      (6)   sfr
    L_CML  = L_T->I + L_I->T                                                        (9)   cml
    L_SSM  = 2/(B(B-1)) sum_{i<j} |Sim(F_S^i, F_S^j) - Sim(H_S^i, H_S^j)|_1         (12)  ssm
    L_DFA  = -sum_i log exp(H_S^i.F_I^i/tau) / sum_j exp(H_S^j.F_I^i/tau)           (13)  dfa
    L_CLIP = the mean of F_I -> F_T and F_T -> F_I, each as in (13)                 ours  clip
    L_LOCAL = KL(softmax(Sim(F_s, F_t) / tau_text) || softmax(Sim(H_s, E_t) / tau)) ours  local

Sim is the cosine (Eq. 5). Norms are means over their entries, and sums over patients are means, so that the weights of
Sec. IV-B hold at any volume size, report length and batch size. All is computed in float32 at least, also under
autocast. CML, SSM and DFA compare patients: give them the features of the whole batch, gathered from all processes.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

SAME, APART = 0.9, 0.6  # the released SSM: sentences above are alike, those up to the second are unlike
STRIPES = 8  # at least, that SSM cuts its symmetric matrix into: the more, the less of it is computed twice
STRIPE = 2**20  # entries of one at most: 4 MB, which a processor's cache holds


Loss = TypeVar("Loss", bound=Callable[..., Tensor])


def in_float32(loss: Loss) -> Loss:
    """Compute a loss without autocast, half-precision inputs raised to float32: cosines and logs need the digits."""

    def raised(x: Any) -> Any:
        half = isinstance(x, Tensor) and x.dtype in (torch.bfloat16, torch.float16)
        return x.float() if half else x

    @functools.wraps(loss)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        first = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        with torch.autocast(first.device.type, enabled=False):
            return loss(*map(raised, args), **{k: raised(v) for k, v in kwargs.items()})

    return cast(Loss, wrapper)


def cosines(a: Float[Tensor, "*n E"], b: Float[Tensor, "*n E"]) -> Float[Tensor, "*n"]:
    """Sim(a, b) of Eq. 5, row by row; 0 where a row is zero."""
    return (F.normalize(a, dim=-1) * F.normalize(b, dim=-1)).sum(-1)


@in_float32
def mim(
    reconstruction: Float[Tensor, "B 1 D H W"],
    volume: Float[Tensor, "B 1 D H W"],
    hidden: Bool[Tensor, "B 1 D H W"] | None = None,
) -> Float[Tensor, ""]:
    """Eq. 2: mean squared error over all voxels; with `hidden` over the hidden voxels only, as the released code does.

    Either way a mean over the voxels of a volume, then over volumes.
    """
    error = (reconstruction - volume).square()
    if hidden is None:
        return error.mean()
    count = hidden.flatten(1).sum(1).clamp_min(1)
    return ((error * hidden).flatten(1).sum(1) / count).mean()


@in_float32
def mlm(logits: Float[Tensor, "M V"], labels: Int[Tensor, "B L"]) -> Float[Tensor, ""]:
    """Eq. 4: cross-entropy of the M hidden words (those of `labels` that are not -100, in order), logits over V ids.

    A mean over the hidden words of a report, then over reports, so that the losses of equal parts of a batch, on
    several processes or accumulated, average to the loss of the whole. (The mean over all hidden words would not.)
    """
    asked = labels != -100
    owner = asked.nonzero()[:, 0]
    each = F.cross_entropy(logits, labels[asked].long(), reduction="none")
    return (each / asked.sum(1)[owner]).sum() / len(labels)


@in_float32
def sfr(
    reconstructed: Float[Tensor, "B S E"],
    target: Float[Tensor, "B S E"],
    real: Bool[Tensor, "B S"],
    *,
    total: bool = False,
) -> Float[Tensor, ""]:
    """Eq. 5 and 6: 1 - cosine of each sentence feature with its reconstruction, `real` marks the sentences that exist.

    A mean over the sentences of a report, with `total` their sum (as released), then a mean over reports.
    """
    each = ((1 - cosines(reconstructed, target)) * real).sum(1)
    return (each if total else each / real.sum(1).clamp_min(1)).mean()


@in_float32
def info_nce(anchor: Float[Tensor, "B E"], candidates: Float[Tensor, "B E"], *, tau: float) -> Float[Tensor, ""]:
    """-mean_i log exp(a_i.c_i/tau) / sum_j exp(a_i.c_j/tau), both sides normalised. With one patient it is 0."""
    logits = F.normalize(anchor, dim=-1) @ F.normalize(candidates, dim=-1).T / tau
    return F.cross_entropy(logits, torch.arange(len(anchor), device=anchor.device))


def cml(
    h_volume: Float[Tensor, "B E"],
    f_volume: Float[Tensor, "B E"],
    h_text: Float[Tensor, "B E"],
    f_text: Float[Tensor, "B E"],
    *,
    tau: float,
    joint: bool = False,
) -> Float[Tensor, ""]:
    """Eq. 7 to 9: H_I finds its F_I among the batch's, and H_T its F_T; the sum of both.

    `joint` is the released form: one loss on the concatenations [F_T, F_I] and [H_T, H_I], the mean of both directions.
    """
    if joint:
        single, fused = torch.cat([f_text, f_volume], -1), torch.cat([h_text, h_volume], -1)
        return (info_nce(fused, single, tau=tau) + info_nce(single, fused, tau=tau)) / 2
    return info_nce(h_volume, f_volume, tau=tau) + info_nce(h_text, f_text, tau=tau)


@in_float32
def ssm(
    visual: Float[Tensor, "B S E"],
    textual: Float[Tensor, "B S F"],
    real: Bool[Tensor, "B S"],
    *,
    thresholds: bool = False,
) -> Float[Tensor, ""]:
    """Eq. 12: the cosines of the sentence-specific visual features H_S, between patients, should be those of the text.

    L1 between the two similarity matrices: a mean over the sentence pairs of two patients, then over all pairs of
    patients. `textual` are the frozen features of each sentence by itself, of any width, constants without a gradient;
    `real` marks the sentences that exist. With one patient it is 0, with a gradient of 0.

    `thresholds` is the released form: text cosines from 0.9 up are regressed as they are, those up to 0.6 to 0, the
    middle counts as right.

    Time: two (B*S)^2 matrix products, the gradient included, over the sentences that exist. Memory: a few rows of one.
    """
    owner = real.nonzero()[:, 0]
    share = 1 / real.sum(1)[owner].to(visual.dtype)  # a patient's sentences weigh 1 together
    some = real.any(1).sum()
    return _Mismatch.apply(visual[real], textual[real], share, owner, thresholds) / (some * (some - 1)).clamp_min(1)


class _Mismatch(torch.autograd.Function):
    """sum_ij w_i w_j |Sim(x_i, x_j) - Sim(y_i, y_j)| over the rows i, j of different owners, with its gradient for x.

    The matrix is symmetric: rows are taken in stripes that begin at the diagonal, and what lies right of a stripe's
    square counts twice. A stripe's signs give its share of the gradient at once, so nothing of it is kept: with
    a = x / |x| it is g_i = 2 w_i sum_j sign_ij w_j a_j for a, and (g - (g.a) a) / |x| for x.
    """

    @staticmethod
    def forward(ctx, x: Tensor, y: Tensor, w: Tensor, owner: Tensor, thresholds: bool) -> Tensor:
        n, learns = len(x), ctx.needs_input_grad[0]
        length = x.norm(dim=-1, keepdim=True).clamp_min(1e-12)  # as in F.normalize
        a, b = x / length, F.normalize(y, dim=-1)
        total, grad, weighted = x.new_zeros(()), torch.zeros_like(x), a * w[:, None]
        height = max(1, min(-(-n // STRIPES), STRIPE // max(n, 1)))
        for first in range(0, n, height):
            rows, right = slice(first, first + height), slice(first, n)
            error = _errors(a[rows], b[rows], a[right], b[right], thresholds)
            error.masked_fill_(owner[rows, None] == owner[right], 0)
            square = len(error)
            each = error.abs() @ torch.cat([w[rows], 2 * w[first + square :]])
            total += each @ w[rows]
            if learns:
                sign = error.sign_()
                grad[rows].addmm_(sign, weighted[right])
                grad[first + square :].addmm_(sign[:, square:].T, weighted[rows])
        if learns:
            along = torch.einsum("ie,ie->i", grad, a)[:, None]
            grad.addcmul_(a, along, value=-1).mul_(2 * w[:, None] / length)
        ctx.save_for_backward(grad)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        return upstream * grad, None, None, None, None


def _errors(a: Tensor, b: Tensor, a_right: Tensor, b_right: Tensor, thresholds: bool) -> Float[Tensor, "rows right"]:
    """Cosines of a minus those of b that they should be; 0 where any will do."""
    wanted = b @ b_right.T
    if not thresholds:
        return wanted.addmm_(a, a_right.T, beta=-1)
    same, apart = wanted >= SAME, wanted <= APART
    return wanted.mul_(same).addmm_(a, a_right.T, beta=-1).mul_(same | apart)


def dfa(
    aggregated: Float[Tensor, "B E"], volume: Float[Tensor, "B E"], *, tau: float, symmetric: bool = False
) -> Float[Tensor, ""]:
    """Eq. 13: F_I finds its own aggregate of the H_S among the batch's.

    `symmetric` is the released form: the mean of both directions.
    """
    forward = info_nce(volume, aggregated, tau=tau)
    return (forward + info_nce(aggregated, volume, tau=tau)) / 2 if symmetric else forward


def clip(volume: Float[Tensor, "B E"], text: Float[Tensor, "B E"], *, tau: float) -> Float[Tensor, ""]:
    """The volume finds its report among the batch's, and the report its volume (Radford et al., CLIP, ICML 2021)."""
    return (info_nce(volume, text, tau=tau) + info_nce(text, volume, tau=tau)) / 2


@in_float32
def local(
    visual: Float[Tensor, "B S E"],
    own: Float[Tensor, "B S E"],
    textual: Float[Tensor, "B S F"],
    real: Bool[Tensor, "B S"],
    *,
    tau: float,
    tau_text: float,
) -> Float[Tensor, ""]:
    """What the volume shows for a sentence (H_S) should tell that sentence among all of the batch, and the reverse.

    `own` are the sentences in the space of H_S. Sentences that mean the same are no negatives: the target of a row is
    softmax(cosine / tau_text) of the frozen `textual` features, and the loss the divergence from it, 0 at best. A mean
    over the sentences of a report, over reports, and over both directions.
    """
    v, t, meaning = (F.normalize(x[real], dim=-1) for x in (visual, own, textual))
    target, logits = (meaning @ meaning.T / tau_text).log_softmax(-1), v @ t.T / tau
    return (_divergence(logits, target, real) + _divergence(logits.T, target, real)) / 2


def _divergence(logits: Float[Tensor, "rows K"], target: Float[Tensor, "rows K"], real: Bool[Tensor, "B S"]) -> Tensor:
    """KL(target, softmax of the logits), a row for each real sentence: a mean over a report's, then over reports."""
    owner = real.nonzero()[:, 0]
    share = 1 / (real.sum(1)[owner] * real.any(1).sum())
    apart = F.kl_div(logits.log_softmax(-1), target, reduction="none", log_target=True)
    return (apart.sum(-1) * share).sum()


@in_float32
def witness(
    query: Float[Tensor, "B S E"],
    key: Float[Tensor, "B N E"],
    textual: Float[Tensor, "B S F"],
    real: Bool[Tensor, "B S"],
    *,
    heads: int,
    tau_text: float,
) -> Float[Tensor, ""]:
    """A sentence should find more of what it speaks of in its own patient's volume than in the others', and a volume
    should show more of what its own report says than of the other reports' sentences.

    What sentence s finds in volume j is z[s, j] = log mean_n exp(q_s . k_n / sqrt(e)), of the queries and keys of
    Eq. 11: the logarithm of the number that its softmax divides by, so that a token's share in it is the map itself.
    `local` can be had by looking at one place a kind of sentence, whatever is there; here the question is the same for
    all volumes, and only what they show can answer it. Nor is one map for all sentences enough, which volumes would
    answer alike. What means the same is no negative: with t[s, j] the largest cosine of s with the sentences of volume
    j's report, frozen `textual` features, over tau_text, targets are the softmax of t over volumes, and over sentences;
    the loss is the divergence from them. A mean over the sentences of a report, over reports, and over both directions.
    """
    asks, keys = (x.unflatten(-1, (heads, -1)) for x in (query[real], key))
    scores = torch.einsum("she,jnhe->hsjn", asks / math.sqrt(asks.shape[-1]), keys)
    found = (scores.logsumexp(-1) - math.log(key.shape[1])).mean(0)
    meaning = F.normalize(textual, dim=-1)
    told = torch.einsum("sf,jtf->sjt", meaning[real], meaning).masked_fill(~real, -2).amax(-1) / tau_text
    shown = F.kl_div(found.log_softmax(0), told.log_softmax(0), reduction="none", log_target=True).sum(0).mean()
    return (_divergence(found, told.log_softmax(-1), real) + shown) / 2
