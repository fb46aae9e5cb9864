"""The paper's tables as rows and columns, and four of our own.

| table | rows | columns |
|---|---|---|
| I | 14 methods, MG-3D with two encoders | disease classification |
| II | 14 methods | segmentation, prognosis, reports, findings by prompts, retrieval |
| III | guidance, attention and CML, from scratch | lung tumour |
| IV | without SFR, DFA, SSM | lung tumour |
| V | four sizes of the pre-training data | findings by prompts |
| VI | two sizes of the data, two of the encoder | all |
| VII, VIII | foundation models | images; language |
| readings | our reading of the paper, and each point where the released code computes something else | lung tumour |
| learning | from scratch, our reading of the paper, our own weights | findings by probe, tuned, by prompts; retrieval |
| terms | each loss alone, and some together | findings by probe, by prompts |
| scaling | nested sizes of the data, Swin-B and Swin-L | findings by prompts |

    TABLES["III"].jobs(scale="phantom", seeds=(0, 1, 2))

and what else a table can do: mg3d/grid.py.
"""

from collections.abc import Sequence

from mg3d.cells import Column, Row
from mg3d.grid import Table, setting, wide
from mg3d.paper import COLUMNS, PRINTED

__all__ = ["MEASURED", "TABLES", "Table", "setting", "wide"]  # all that a notebook needs

CUBES = "the paper classifies cubes about a suspect spot, this study whole scans"
MEASURED = {  # what the paper's columns are here
    "CC-CCII ACC": Column("cc-ccii", "accuracy"),
    "Luna16 AUC": Column("luna16", "auroc", apart=CUBES),
    "MSD Task 06 Dice": Column("msd06", "dice"),
    "Covid-19-20 Dice": Column("covid19-20", "dice"),
    "ACDC Dice": Column("acdc", "dice"),
    "STOIC-2021 AUC": Column("stoic", "auroc/severe"),
    "BLEU-1": Column("ctrg-report", "bleu1"),
    "BLEU-2": Column("ctrg-report", "bleu2"),
    "BLEU-3": Column("ctrg-report", "bleu3"),
    "BLEU-4": Column("ctrg-report", "bleu4"),
    "CT-RATE AUC": Column("ctrate-vocabfine", "auroc", reads=True),
    "CT-RATE Recall@50": Column("ctrate-retrieval", "report_to_volume/recall@50", reads=True),
}
_METHODS = {
    "MAE3D": "mae3d",
    "Jigsaw": "jigsaw",
    "Rubik++": "rubikpp",
    "PCRLv1": "pcrlv1",
    "PCRLv2": "pcrlv2",
    "SwinUNETR": "swinunetr",
    "SwinMM": "swinmm",
    "M3AE": "m3ae",
    "ARL": "arl",
    "MRM": "mrm",
    "PTunifier": "ptunifier",
    "CT-CLIP": "ctclip",
    "M3D": "m3dclip",
    "Ours": "mg3d",
}
_ENCODERS = {"3D ViT-B": "vit_b", "3D UNet": "unet", "3D Swin-B": "swin_b", "3D Swin-L": "swin_l"}


def _methods(table: str) -> dict[str, Row]:
    """The rows of Tables I and II: "Jigsaw, 3D UNet"."""
    parts = {name: name.split(", ") for name in PRINTED[table]}
    return {name: Row(method=_METHODS[method], encoder=_ENCODERS[encoder]) for name, (method, encoder) in parts.items()}


def _models(table: str, ours: Row) -> dict[str, Row]:
    """The rows of Tables VII and VIII: foundation models, and ours."""
    return {name: ours if name == "Ours" else Row(official=True) for name in PRINTED[table]}


_SCRATCH = Row(method="")
_INTRA = {
    "from scratch": _SCRATCH,
    "word guidance, classical, classical": Row(variant="word"),
    "sentence guidance, classical, classical": Row(variant="classical"),
    "sentence guidance, ours, classical": Row(variant="mlm-classical"),
    "sentence guidance, ours, ours, no CML": Row(variant="intra-no-cml"),
    "sentence guidance, ours, ours": Row(variant="intra"),
}
# the fifth row also lacks CML, so that the fourth is what differs from the last in the attention for MLM alone
_MLM_ALONE = ("sentence guidance, ours, ours", "sentence guidance, ours, classical")
_LOSSES = {
    "no SFR": Row(variant="no-sfr"),
    "no DFA": Row(variant="no-dfa"),
    "no SSM": Row(variant="no-ssm"),
    "all": Row(),
}
_SIZES = {
    "1.4K": Row(data="1.4k", less=0),
    "2.8K": Row(data="2.8k", less=1),
    "10K": Row(data="10k", less=3),
    "47.1K": Row(data="47k"),
}
_LARGE = {
    "CTRG-Chest 1.4K, 3D Swin-B": Row(less=0),
    "CT-RATE 47.1K, 3D Swin-B": Row(data="47k"),
    "CT-RATE 47.1K, 3D Swin-L": Row(data="47k", encoder="swin_l"),
}
_READINGS = {
    "from scratch": _SCRATCH,
    "paper": Row(),
    "Eq. 1, 3: sigmoid gate, no layer around it": Row(variant="released-eq1"),
    "Eq. 2: one mask a batch, hidden voxels alone": Row(variant="released-eq2"),
    "Eq. 5, 6: learned projections, sum over sentences": Row(variant="released-eq5"),
    "Eq. 7-9: one loss on concatenations": Row(variant="released-eq7"),
    "Eq. 11: the pooled volume asks": Row(variant="released-eq11"),
    "Eq. 12: thresholds": Row(variant="released-eq12"),
    "Eq. 13: symmetric, against the fused vector": Row(variant="released-eq13"),
    "optimiser: half the learning rates, no weight decay": Row(halved=True),
    "released": Row(variant="released"),
}
_NESTED = {  # the fourth size of the phantom has no match among the paper's
    f"{part}, {encoder}": Row(data=data, less=less, encoder=encoder)
    for encoder in ("swin_b", "swin_l")
    for part, data, less in (
        ("smallest", "1.4k", 0),
        ("second", "2.8k", 1),
        ("third", "10k", 2),
        ("fourth", "", 3),
        ("whole", "47k", None),
    )
}
_LEARNT = {"from scratch": _SCRATCH, "paper": Row(), "plus": Row(variant="plus")}
_EACH = ("mim", "mlm", "sfr", "cml", "ssm", "dfa", "clip", "local", "witness")  # listed, as tables import no torch
_TERMS = {"from scratch": _SCRATCH} | {f"{term} alone": Row(variant=f"only-{term}") for term in _EACH}
_TERMS |= {
    "mim, clip": Row(variant="mim-clip"),
    "ssm, dfa, clip": Row(variant="between-clip"),
    "clip, witness": Row(variant="clip-witness"),
    "clip, witness, ssm, dfa": Row(variant="clip-witness-between"),
}
_FINDINGS = {
    title: Column("findings", "auroc", given={"probe": probe, "share": share})
    for title, probe, share in (
        ("probe", True, 1.0),
        ("probe, 10 %", True, 0.1),
        ("fine-tuned, 10 %", False, 0.1),
        ("fine-tuned", False, 1.0),
    )
}
_ASKED = {
    "by prompts, zero-shot": Column("ctrate-zeroshot", "auroc", reads=True),
    "report to volume, Recall@5": Column("ctrate-retrieval", "report_to_volume/recall@5", reads=True),
    "report to volume, Recall@50": Column("ctrate-retrieval", "report_to_volume/recall@50", reads=True),
}


Claims = list[tuple[str, str]]


def _chain(rows: Sequence[str]) -> Claims:
    """Each row is said to be better than the one before it."""
    return list(zip(rows[1:], rows, strict=False))


def _best(rows: dict[str, Row], one: str) -> Claims:
    """One row is said to be better than every other."""
    return [(one, other) for other in rows if other != one]


def _printed(name: str, title: str, rows: dict[str, Row], claims: Claims) -> Table:
    """A table of the paper, with its columns."""
    return Table(name, title, rows, {column: MEASURED[column] for column in COLUMNS[name]}, claims)


_I, _II = _methods("I"), _methods("II")
_VII, _VIII = _models("VII", Row(data="47k", encoder="swin_l")), _models("VIII", Row(data="47k"))
_BY_ENCODER = [[name for name in _NESTED if name.endswith(encoder)] for encoder in ("swin_b", "swin_l")]
_TABLES = (
    _printed("I", "Pre-training methods: disease classification", _I, _best(_I, "Ours, 3D Swin-B")),
    _printed("II", "Pre-training methods: other tasks", _II, _best(_II, "Ours, 3D Swin-B")),
    _printed("III", "Learning within a patient", _INTRA, [*_chain(list(_INTRA)), _MLM_ALONE]),
    _printed("IV", "Losses left out", _LOSSES, _best(_LOSSES, "all")),
    _printed("V", "Size of the pre-training data", _SIZES, _chain(list(_SIZES))),
    _printed("VI", "Size of data and model", _LARGE, _chain(list(_LARGE))),
    _printed("VII", "Foundation models: images", _VII, _best(_VII, "Ours")),
    _printed("VIII", "Foundation models: language", _VIII, _best(_VIII, "Ours")),
    Table(
        "readings",
        "Our reading of the paper, and what the released code computes",
        _READINGS,
        {"MSD Task 06 Dice": MEASURED["MSD Task 06 Dice"]},
        _best(_READINGS, "paper"),
    ),
    Table(
        "learning", "What is learnt", _LEARNT, _FINDINGS | _ASKED, [*_chain(list(_LEARNT)), ("plus", "from scratch")]
    ),
    Table(
        "terms",
        "Each loss alone, and some together",
        _TERMS,
        {"probe": _FINDINGS["probe"], "by prompts, zero-shot": _ASKED["by prompts, zero-shot"]},
        [(row, "from scratch") for row in _TERMS if row != "from scratch"],
    ),
    Table(
        "scaling",
        "Nested sizes of the data, two encoders",
        _NESTED,
        {"CT-RATE AUC": MEASURED["CT-RATE AUC"]},
        [claim for rows in _BY_ENCODER for claim in _chain(rows)] + list(zip(*reversed(_BY_ENCODER), strict=True)),
    ),
)
TABLES = {table.name: table for table in _TABLES}
