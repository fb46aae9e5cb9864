"""Numbers that judge features without any label."""

import numpy as np
from numpy.typing import ArrayLike


def effective_rank(features: ArrayLike) -> float:
    """How many directions the features of n samples really use: exp of the entropy of their normalised singular values.

    `features` is [n, E]. After Roy and Vetterli, "The effective rank", EUSIPCO 2007; between 1 and min(n - 1, E). The
    mean over the samples is taken away first, so that features which have collapsed to one point plus noise don't count
    it; features that are all equal give 0. Raises ValueError unless there are two samples of finite features.
    """
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"features of shape {x.shape}: the effective rank needs [n, E] with two samples or more")
    if not np.isfinite(x).all():
        raise ValueError("features with NaN or infinity have no rank: find the step where they appeared")
    spread = x - x.mean(0)
    values = np.linalg.svd(spread, compute_uv=False)
    tiny = np.finfo(np.float64).eps * max(x.shape) * np.abs(x).max()
    values = values[values > tiny]
    if not len(values):
        return 0.0
    share = values / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
