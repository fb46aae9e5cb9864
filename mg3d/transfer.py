"""What a fine-tuning is made of: `Transfer` (flat scalars), and `STUDIES`, the clinical studies by name.

    Transfer(study="findings", init="run:mg3d-plus-swin_b-phantom-1234abcd", scale="phantom", share=0.1, seed=1)

As with a recipe, the same transfer has the same `id`, lands in the same folder, is skipped when done and continued when
it was cut off. A linear probe, few-shot and full fine-tuning are one study with other fields. At the scales of the
phantom each study runs on a stand-in (mg3d/data/cohorts/phantom.py), at scale=real on its own cohort.
"""

from dataclasses import asdict, dataclass
from typing import Any

from mg3d.recipe import SCALES, SMALLER, Filled, Plan, one_of

REAL = "real"  # the scale of a study's own cohort


@dataclass(frozen=True)
class Budget:
    """How long a study trains and how fast it learns."""

    steps: int
    batch: int
    lr: float  # encoder
    lr_head: float  # everything else


@dataclass(frozen=True)
class Study:
    """One clinical question."""

    title: str
    task: str  # a row of mg3d.heads.HEADS
    cohort: str  # a row of mg3d.data.cohorts.COHORTS; "" = a pre-training corpus with labels
    metric: str  # the paper's, or ours where the paper has none
    budget: Budget  # at scale "real": of the released code, where it says so, in steps
    folder: str = ""  # of the cohort in MG3D_HOME/data; "" = the cohort's name
    among: str = ""  # label whose positives are scored by themselves too


STUDIES = {
    "cc-ccii": Study(
        "pneumonia: normal, common or COVID-19", "classify", "cc-ccii", "accuracy", Budget(90_500, 4, 3e-4, 3e-4)
    ),
    "luna16": Study(
        "lung nodules: a scan with or without", "classify", "luna16", "auroc", Budget(20_000, 4, 1.5e-4, 1.5e-4)
    ),
    "msd06": Study("lung tumour, outlined", "segment", "msd06", "dice", Budget(25_500, 8, 1e-4, 1e-4)),
    "covid19-20": Study("pneumonia, outlined", "segment", "covid19-20", "dice", Budget(75_500, 6, 7.5e-5, 7.5e-5)),
    "acdc": Study(
        "ventricles and myocardium in MRI, outlined", "segment", "acdc", "dice", Budget(24_000, 4, 3e-4, 3e-4)
    ),
    "stoic": Study(
        "COVID-19 and its severity a month later",
        "classify",
        "stoic",
        "auroc/severe",
        Budget(32_000, 2, 5e-5, 5e-5),
        among="covid",
    ),
    "ctrg-report": Study(
        "a report for each volume", "generate", "ctrg-report", "bleu4", Budget(21_660, 2, 5e-5, 1e-4), folder="ctrg"
    ),
    "ctrate-vocabfine": Study(
        "18 findings by prompts, learnt (CT-VocabFine)",
        "align",
        "ctrate-vocabfine",
        "auroc",
        Budget(10_000, 8, 1e-5, 1e-4),
        folder="ctrate",
    ),
    "ctrate-zeroshot": Study(
        "18 findings by prompts, of a pre-trained run as it is",
        "align",
        "ctrate-vocabfine",
        "auroc",
        Budget(0, 8, 0.0, 0.0),
        folder="ctrate",
    ),
    "ctrate-retrieval": Study(
        "the volume that a report belongs to, of a pre-trained run as it is",
        "retrieve",
        "ctrate-retrieval",
        "report_to_volume/recall@50",
        Budget(0, 8, 0.0, 0.0),
        folder="ctrate",
    ),
    "findings": Study(  # ours: what the phantom's encoders are compared by
        "the 18 findings of CT-RATE, a linear head on the volume alone",
        "classify",
        "",
        "auroc",
        Budget(10_000, 16, 2e-5, 1e-3),
    ),
}

BUDGETS = {  # scale, task: what a study on the phantom gets, if it trains at all
    ("demo", "classify"): Budget(40, 8, 5e-4, 5e-3),
    ("demo", "segment"): Budget(40, 2, 1e-3, 2e-3),
    ("demo", "generate"): Budget(40, 8, 5e-4, 2e-3),
    ("demo", "align"): Budget(40, 8, 5e-4, 2e-3),
    ("phantom", "classify"): Budget(400, 16, 3e-4, 3e-3),
    ("phantom", "segment"): Budget(300, 2, 5e-4, 1e-3),
    ("phantom", "generate"): Budget(1500, 16, 3e-4, 1e-3),
    ("phantom", "align"): Budget(600, 16, 3e-4, 1e-3),
}
PROBE = Budget(200, 0, 0.0, 1e-3)  # of pooled features: a step costs milliseconds, and sees every case


@dataclass(frozen=True)
class Transfer(Plan):
    """One fine-tuning as flat scalars. 0 or "" means: what the study has at that scale.

    Raises ValueError for a bad value, naming the field and what is allowed.
    """

    study: str = "findings"  # a row of STUDIES
    init: str = "scratch"  # scratch | run:<id of a pre-training run>
    encoder: str = ""  # a row of encoders.ENCODERS; "" = that of the run, from scratch swin_b
    text: str = ""  # frozen text encoder, for studies of language; "" = that of the run, from scratch minilm
    scale: str = "demo"  # a row of SCALES (demo, phantom: the study on synthetic volumes) | real: its own cohort
    data: str = ""  # folder of the cohort; "" = MG3D_HOME/data/<cohort>
    share: float = 1.0  # of the training patients; for one seed, a smaller share's are among a larger one's
    augment: bool = True  # training volumes in seeded other poses and lights (mg3d.views.jittered); never a probe's
    probe: bool = False  # True: the encoder stays as it is, and the head alone learns
    steps: int = 0  # optimiser steps
    batch: int = 0  # volumes in a step
    accumulate: int = 1  # parts that a step is taken in
    lr: float = 0.0  # learning rate of the encoder
    lr_head: float = 0.0  # of everything else
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of the steps that the learning rate rises, then it falls to 0; both linear
    clip: float = 1.0  # largest norm of the gradient
    patience: int = 0  # validations (ten in a run) without a better score after which it ends; 0: it never ends early
    precision: str = "auto"  # auto | fp32 | bf16; auto is bf16 on a GPU, fp32 on a CPU
    seed: int = 0  # draws the share, the head (and the encoder from scratch), the order; a real cohort's split
    # what follows changes how a run is carried out, not what comes out of it: no part of the id
    checkpoint: int = 0  # steps between checkpoints; 0 = a twentieth of the run, at most 500
    resume: bool = True  # False: start again, the old run is put aside

    FILE = "transfer.json"

    def __post_init__(self) -> None:
        one_of("study", self.study, STUDIES)
        one_of("scale", self.scale, (*SCALES, REAL))
        if self.scale == REAL and not self.row.cohort:
            raise ValueError(
                f"scale={self.scale!r}: study {self.study!r} has no cohort of its own; take a row of SCALES"
            )
        if self.init != "scratch" and not (self.init.startswith("run:") and self.run):
            raise ValueError(f"init={self.init!r}: expected scratch, or run: and the id of a pre-training run")
        whole = self.scale.partition("-")[0]
        if whole in SMALLER and whole != self.scale:
            raise ValueError(
                f"scale={self.scale!r} is a size of pre-training alone; studies have the cases of {whole!r}"
            )
        if self.filled.steps and not self.filled.lr:
            raise ValueError(f"study {self.study!r} trains nothing unless asked: with steps, give lr and lr_head too")
        if not 0 < self.share <= 1:
            raise ValueError(f"share={self.share}: a share of the training patients is above 0, and 1 at most")
        self.check(
            not_negative=("steps", "batch", "lr", "lr_head", "weight_decay", "patience", "checkpoint", "seed"),
            at_least_1=("accumulate",),
            parts=self.accumulate,
        )

    @property
    def run(self) -> str:
        """The id of the pre-training run that the encoder comes from, "" for none."""
        return self.init.partition("run:")[2].strip()

    @property
    def row(self) -> Study:
        """The row of STUDIES."""
        return STUDIES[self.study]

    @property
    def budget(self) -> Budget:
        """What the study gets at this scale."""
        budget = self.row.budget
        if budget.steps:
            budget = BUDGETS.get((self.scale, self.row.task), budget)
        if self.probe and self.row.task == "classify":
            return Budget(PROBE.steps, budget.batch, budget.lr, PROBE.lr_head)
        return budget

    @property
    def filled(self) -> Filled:
        """Steps, batch and learning rates with the study's where the transfer says 0."""
        pick = {n: getattr(self, n) or getattr(self.budget, n) for n in ("steps", "batch", "lr", "lr_head")}
        checkpoint = self.checkpoint or max(1, min(pick["steps"] // 20, 500))
        return Filled(pick["steps"], pick["batch"], pick["lr"], pick["lr_head"], checkpoint)

    @property
    def id(self) -> str:
        """Readable name plus a hash of all that changes the outcome, the rows of its scale and study included."""
        content = {k: v for k, v in asdict(self).items() if k not in ("checkpoint", "resume", "encoder", "text")}
        whole = {k: v for k, v in asdict(self.filled).items() if k != "checkpoint"}
        rows: list[Any] = [asdict(SCALES[self.scale]) if self.scale in SCALES else self.scale, asdict(self.row)]
        encoder, text = ("", "") if self.run else (self.encoder or "swin_b", self.text or "minilm")
        start = self.run.rsplit("-", 1)[-1] if self.run else f"{self.init}-{encoder}"
        how = "probe" if self.probe else "full"
        return f"{self.study}-{start}-{how}-{self.scale}-{self.digest(content | whole, encoder, text, rows)}"
