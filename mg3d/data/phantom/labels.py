"""Which of the 18 abnormalities a phantom patient has: CT-RATE's prevalences and correlations by a Gaussian copula.

Label i is present where a standard normal z_i exceeds a_i = Phi^-1(1 - p_i); z ~ N(0, R). For two labels

    P(i and j) = p_i p_j + integral_0^R_ij phi2(a_i, a_j; r) dr        (Plackett 1954)
    phi_ij     = (P(i and j) - p_i p_j) / sqrt(p_i (1 - p_i) p_j (1 - p_j))

grows with R_ij, so bisection finds the latent correlation that reproduces a wanted phi coefficient.
"""

from functools import cache
from statistics import NormalDist

import numpy as np

PREVALENCE = {  # share of 1,000 CT-RATE reports, in the order of its label files
    "Medical material": 0.154,
    "Arterial wall calcification": 0.287,
    "Cardiomegaly": 0.115,
    "Pericardial effusion": 0.078,
    "Coronary artery wall calcification": 0.222,
    "Hiatal hernia": 0.156,
    "Lymphadenopathy": 0.337,
    "Emphysema": 0.240,
    "Atelectasis": 0.281,
    "Lung nodule": 0.453,
    "Lung opacity": 0.307,
    "Pulmonary fibrotic sequela": 0.284,
    "Pleural effusion": 0.150,
    "Mosaic attenuation pattern": 0.090,
    "Peribronchial thickening": 0.095,
    "Consolidation": 0.160,
    "Bronchiectasis": 0.100,
    "Interlobular septal thickening": 0.082,
}
LABELS = tuple(PREVALENCE)

# phi of the two 0/1 columns of CT-RATE (first six rows: 1,000 reports; the rest: 800 of them): the strongest pairs, and
# those beside them without which R would not be positive definite.
PHI = {
    ("Coronary artery wall calcification", "Arterial wall calcification"): 0.68,
    ("Cardiomegaly", "Arterial wall calcification"): 0.35,
    ("Pleural effusion", "Atelectasis"): 0.32,
    ("Consolidation", "Lung opacity"): 0.31,
    ("Bronchiectasis", "Peribronchial thickening"): 0.31,
    ("Pleural effusion", "Pericardial effusion"): 0.30,
    ("Interlobular septal thickening", "Pleural effusion"): 0.31,
    ("Pleural effusion", "Medical material"): 0.30,
    ("Consolidation", "Pleural effusion"): 0.30,
    ("Coronary artery wall calcification", "Cardiomegaly"): 0.29,
    ("Mosaic attenuation pattern", "Cardiomegaly"): 0.28,
    ("Emphysema", "Arterial wall calcification"): 0.26,
    ("Atelectasis", "Pericardial effusion"): 0.26,
    ("Atelectasis", "Arterial wall calcification"): 0.26,
    ("Interlobular septal thickening", "Lung opacity"): 0.26,
    ("Pleural effusion", "Cardiomegaly"): 0.24,
    ("Atelectasis", "Cardiomegaly"): 0.24,
    ("Atelectasis", "Coronary artery wall calcification"): 0.24,
    ("Emphysema", "Coronary artery wall calcification"): 0.22,
    ("Lymphadenopathy", "Coronary artery wall calcification"): 0.22,
    ("Lymphadenopathy", "Arterial wall calcification"): 0.22,
    ("Hiatal hernia", "Arterial wall calcification"): 0.22,
    ("Pericardial effusion", "Cardiomegaly"): 0.22,
    ("Hiatal hernia", "Coronary artery wall calcification"): 0.22,
    ("Mosaic attenuation pattern", "Coronary artery wall calcification"): 0.22,
    ("Mosaic attenuation pattern", "Arterial wall calcification"): 0.18,
    ("Peribronchial thickening", "Coronary artery wall calcification"): 0.20,
    ("Peribronchial thickening", "Arterial wall calcification"): 0.18,
    ("Pericardial effusion", "Coronary artery wall calcification"): 0.17,
    ("Pericardial effusion", "Arterial wall calcification"): 0.17,
    ("Lymphadenopathy", "Cardiomegaly"): 0.20,
    ("Pleural effusion", "Lung opacity"): 0.20,
    ("Consolidation", "Medical material"): 0.20,
    ("Interlobular septal thickening", "Medical material"): 0.20,
    ("Interlobular septal thickening", "Cardiomegaly"): 0.16,
    ("Interlobular septal thickening", "Consolidation"): 0.13,
    ("Interlobular septal thickening", "Pericardial effusion"): 0.14,
    ("Consolidation", "Lymphadenopathy"): 0.20,
    ("Atelectasis", "Medical material"): 0.18,
    ("Lung opacity", "Lymphadenopathy"): 0.16,
    ("Pericardial effusion", "Medical material"): 0.16,
}
PHI_ELSEWHERE = 0.07  # about the mean of the remaining pairs
UNRELATED = "Lung nodule"  # goes with nothing in particular: phi 0 to every other label

SPLITS = ("train", "valid", "test")
NODES = 24  # of the Gauss-Legendre rule; the integrand is smooth for |R| < 0.97


def case_seed(number: int, *, split: str, seed: int) -> int:
    """The seed of one case, a pure function of (cohort seed, split, number): 63 bits, however long the cohort is."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; valid: {', '.join(SPLITS)}")
    if number < 1 or seed < 0:
        raise ValueError(f"number {number} must be at least 1 and seed {seed} at least 0")
    return int(np.random.SeedSequence((seed, SPLITS.index(split), number)).generate_state(1, np.uint64)[0] >> 1)


def stream(case: int, name: str) -> np.random.Generator:
    """An independent random stream of a case, one a purpose ("labels", "patient", "words" ...)."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((case, *name.encode()))))


def joint(a: np.ndarray, b: np.ndarray, r: np.ndarray) -> np.ndarray:
    """P(z_1 > a, z_2 > b) - P(z_1 > a) P(z_2 > b) of standard normals with correlation r (Plackett's integral)."""
    x, weight = np.polynomial.legendre.leggauss(NODES)
    t = r[..., None] * (x + 1) / 2
    a, b = a[..., None], b[..., None]
    s = 1 - t * t
    density = np.exp(-(a * a - 2 * t * a * b + b * b) / (2 * s)) / (2 * np.pi * np.sqrt(s))
    return r / 2 * (density * weight).sum(-1)


@cache
def copula() -> tuple[np.ndarray, np.ndarray]:
    """Thresholds a [18] and the lower Cholesky factor [18, 18] of the latent correlations R (cached)."""
    p = np.array(list(PREVALENCE.values()))
    a = np.array([NormalDist().inv_cdf(1 - x) for x in p])
    phi = np.full((len(p), len(p)), PHI_ELSEWHERE)
    phi[LABELS.index(UNRELATED)] = phi[:, LABELS.index(UNRELATED)] = 0
    for (one, two), value in PHI.items():
        i, j = LABELS.index(one), LABELS.index(two)
        phi[i, j] = phi[j, i] = value
    sd = np.sqrt(p * (1 - p))
    wanted = phi * np.outer(sd, sd)
    low, high = np.full_like(phi, -0.97), np.full_like(phi, 0.97)
    for _ in range(50):
        middle = (low + high) / 2
        below = joint(a[:, None], a[None, :], middle) < wanted
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    latent = (low + high) / 2
    np.fill_diagonal(latent, 1)
    return a, np.linalg.cholesky(latent)  # raises if a changed table is no correlation matrix


def present(case: int, thresholds: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Labels [18] (bool) of one case. Summed row by row: BLAS may round differently when cases come in bulk."""
    return (stream(case, "labels").standard_normal(len(thresholds)) * factor).sum(-1) > thresholds


def draw_labels(n: int, seed: int, *, split: str = "train") -> np.ndarray:
    """Labels [n, 18] (bool) of cases 1..n of a split; the first rows are the same for every n, and those of `draw`."""
    thresholds, factor = copula()
    return np.stack([present(case_seed(i, split=split, seed=seed), thresholds, factor) for i in range(1, n + 1)])
