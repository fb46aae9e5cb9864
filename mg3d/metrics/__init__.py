"""Numbers that judge a model: arrays in, floats out.

features        effective rank
maps            pointing game, attention mass, AUPRC of attention maps against masks, with their chance
classification  AUROC, average precision, accuracy, F1, sensitivity at fixed false positives; calibration
segmentation    Dice, HD95, NSD of label maps
retrieval       ranks, recall at k, median rank, MRR without an N x N matrix; search in a gallery
resampling      bootstrap intervals over cases, over seeds and cases; paired tests
text            BLEU, ROUGE-L, METEOR of reports
findings        which of the 18 findings a report says are there, and the F1 of it
rows            tables of scores: means of groups, differences of pairs
"""

from mg3d.metrics.classification import (
    Macro,
    accuracy,
    auroc,
    average_precision,
    brier,
    calibration_error,
    f1,
    macro,
    macro_interval,
    multiclass,
    multilabel,
    sensitivity_at,
)
from mg3d.metrics.features import effective_rank
from mg3d.metrics.findings import FINDINGS, finding_scores, read_findings
from mg3d.metrics.maps import attention_mass, judge, map_auprc, mask_share, near, pointing_game, spread
from mg3d.metrics.resampling import (
    Interval,
    bootstrap,
    grouped_means,
    mean_interval,
    mean_of_defined,
    over_seeds,
    paired_interval,
    paired_test,
    resampled,
    runs_and_cases,
    seeds_and_cases,
    weighted_means,
)
from mg3d.metrics.retrieval import Gallery, Ranks, chance, one_of_each, ranks, retrieval
from mg3d.metrics.rows import contrast, means
from mg3d.metrics.segmentation import dice, hd95, nsd, surface_distances
from mg3d.metrics.text import bleu, bleu_interval, meteor_exact, report_scores, rouge_l

__all__ = [
    "FINDINGS",
    "Gallery",
    "Interval",
    "Macro",
    "Ranks",
    "accuracy",
    "attention_mass",
    "auroc",
    "average_precision",
    "bleu",
    "bleu_interval",
    "bootstrap",
    "brier",
    "calibration_error",
    "chance",
    "contrast",
    "dice",
    "effective_rank",
    "f1",
    "finding_scores",
    "grouped_means",
    "hd95",
    "judge",
    "macro",
    "macro_interval",
    "map_auprc",
    "mask_share",
    "mean_interval",
    "mean_of_defined",
    "means",
    "meteor_exact",
    "multiclass",
    "multilabel",
    "near",
    "nsd",
    "one_of_each",
    "over_seeds",
    "paired_interval",
    "paired_test",
    "pointing_game",
    "ranks",
    "read_findings",
    "report_scores",
    "resampled",
    "retrieval",
    "rouge_l",
    "runs_and_cases",
    "seeds_and_cases",
    "sensitivity_at",
    "spread",
    "surface_distances",
    "weighted_means",
]
