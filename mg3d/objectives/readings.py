"""How we read the paper: MG-3D's loss weights and every choice that its text leaves open, as one table of fields.

The first value of each field is our reading of the paper; the others are what the released code computes, or a row of
an ablation. `VARIANTS` names sets of them.
"""

from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

from mg3d.attention import Gate, Mode
from mg3d.views import check_shares

TERMS = ("mim", "mlm", "sfr", "cml", "ssm", "dfa")
OURS = ("clip", "local", "witness")  # terms of our own, which neither the paper nor its code has


@dataclass(frozen=True)
class MG3DConfig:
    """Weights and readings. A term of weight 0 is not computed, and what only it needs is not built.

    Raises ValueError for a value that does not exist, listing those that do.
    """

    # Weights of Eq. 10 and 14: lambda_alpha = 1, lambda_beta = lambda_gamma = 0.1 (Sec. IV-B)
    mim: float = 1.0
    mlm: float = 1.0
    sfr: float = 0.1
    cml: float = 0.1
    ssm: float = 0.1
    dfa: float = 0.1

    # Ours, off in the paper's reading. "clip": F_I with F_T, the pair that zero-shot scores and retrieval use and no
    # term of the paper compares. "local": H_S with its own sentence among all of the batch. "witness": what a sentence
    # finds in its own volume, with what it finds in the others of the batch, and with what others find in this one
    clip: float = 0.0
    local: float = 0.0
    witness: float = 0.0
    tau_text: float = 0.05  # equal sentences are no negatives: targets are a softmax of text cosines / this
    jitter: bool = False  # training volumes in seeded other poses and lights, so that none is learnt by heart

    # Eq. 1, 3: what asks the volume, who asks whom, how the map is scaled
    guidance: Literal["sentence", "word"] = "sentence"
    mim_attention: Mode = "ours"
    mlm_attention: Mode = "ours"
    gate: Gate = "softmax"
    plain: bool = False  # True: fusion layers without self-attention, feed-forward, residual and norm (released)
    layers: int = 2
    heads: int = 1  # of the cross-modal attention: its maps stay one a layer
    self_heads: int = 8  # of self-attention and attention pooling
    width: int = 0  # of the fusion; 0 = the encoder's last width
    level: int = -1  # of the pyramid, whose cells are the tokens; -2 is twice as fine, with the coarser cells added

    # Eq. 2: what is hidden, and where the error counts
    mask_cube: int = 16  # voxels a side
    mask_ratio: float = 0.5
    mask_shared: bool = False  # one mask for the batch (released)
    mim_region: Literal["volume", "hidden"] = "volume"

    # Eq. 4: whole words hidden
    word_ratio: float = 0.15

    # Eq. 5, 6: "features" compares S_REC with F_S itself, a constant, mean over sentences; "heads" two learned
    # projections to 8 channels, sum over sentences (released)
    sfr_space: Literal["features", "heads"] = "features"

    # Eq. 7 to 9: "two" losses, F_I with H_I and F_T with H_T, or one on the "joint" concatenations (released)
    cml_form: Literal["two", "joint"] = "two"
    tau: float = 0.1

    # Eq. 11: sentences ask the volume tokens. With one "pooled" key all sentences of a patient would get the same
    # vector. The pooled "volume" asks the sentences in the released code
    query: Literal["sentence", "volume"] = "sentence"
    # "local" tokens lack the coarser cells, which tell at every place of the whole chest: with those a map need not
    # point. "placed" ones are local and know where they lie, so that a sentence can ask for a side or a lobe
    keys: Literal["tokens", "pooled", "local", "placed"] = "tokens"
    sharp: float = 1.0  # factor of the scores under Eq. 11's softmax: at 1 its maps start, and long stay, almost even

    # Eq. 12, 13
    ssm_thresholds: bool = False  # text cosines from 0.9 up, and those to 0.6 as 0; the middle is free (released)
    dfa_form: Literal["plain", "fused"] = "plain"  # "fused": with H_I instead of F_I, both directions (released)

    def __post_init__(self) -> None:
        for field in fields(self):
            value, valid = getattr(self, field.name), get_args(field.type)
            if valid and value not in valid:
                raise ValueError(f"{field.name}={value!r}; valid: {', '.join(valid)}")
        for name in (*TERMS, *OURS):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} is a loss weight: take 0 or more")
        if not any(getattr(self, name) for name in (*TERMS, *OURS)):
            raise ValueError(f"every weight is 0: nothing to learn from; give one of {', '.join(TERMS)} a weight")
        if self.witness and (self.query != "sentence" or self.keys == "pooled"):
            raise ValueError(
                "witness asks volume tokens by sentences: take query='sentence' and no pooled keys with it"
            )
        if self.level > -1:
            raise ValueError(f"level={self.level} counts from the coarsest map: take -1, -2, ...")
        check_shares(self, "mask_ratio", "word_ratio")
        for name in ("layers", "heads", "self_heads", "mask_cube", "tau", "tau_text", "sharp"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: take a number above 0")


PAPER = MG3DConfig()
INTRA = replace(PAPER, ssm=0.0, dfa=0.0)  # the rows of Table III have no inter-patient losses

# What teaches most on the phantom: docs/devlog.md says what was tried
PLUS = replace(PAPER, **dict.fromkeys(TERMS, 0.0), clip=1.0, witness=1.0, level=-4, keys="placed", sharp=6.0)

VARIANTS = {
    "paper": PAPER,
    # What the released code computes. Left out: its poolers and heads before the losses, the update of the guiding side
    # between its two layers, and text features from the embedding layer alone (here from the whole frozen encoder).
    "released": replace(
        PAPER,
        gate="sigmoid",
        plain=True,
        mask_shared=True,
        mim_region="hidden",
        sfr_space="heads",
        cml_form="joint",
        query="volume",
        ssm_thresholds=True,
        dfa_form="fused",
    ),
    # `released`, one reading at a time
    "released-eq1": replace(PAPER, gate="sigmoid", plain=True),
    "released-eq2": replace(PAPER, mask_shared=True, mim_region="hidden"),
    "released-eq5": replace(PAPER, sfr_space="heads"),
    "released-eq7": replace(PAPER, cml_form="joint"),
    "released-eq11": replace(PAPER, query="volume"),
    "released-eq12": replace(PAPER, ssm_thresholds=True),
    "released-eq13": replace(PAPER, dfa_form="fused"),
    # Table III, from its second row on. Its MLM column includes SFR.
    "word": replace(INTRA, guidance="word", mim_attention="classical", mlm_attention="classical"),
    "classical": replace(INTRA, mim_attention="classical", mlm_attention="classical"),
    "mlm-classical": replace(INTRA, mlm_attention="classical"),
    "intra-no-cml": replace(INTRA, cml=0.0),
    "intra": INTRA,
    # Table IV
    "no-sfr": replace(PAPER, sfr=0.0),
    "no-dfa": replace(PAPER, dfa=0.0),
    "no-ssm": replace(PAPER, ssm=0.0),
    # Not in the paper: the other terms left out, and Eq. 11 to the letter
    "no-mim": replace(PAPER, mim=0.0),
    "no-mlm": replace(PAPER, mlm=0.0),
    "no-cml": replace(PAPER, cml=0.0),
    "pooled": replace(PAPER, keys="pooled"),
    # Ours: tokens at a fourth of the stride, since a map can point no finer than its tokens, and the two terms
    "fine": replace(PAPER, level=-3),
    "clip": replace(PAPER, clip=0.1),
    "local": replace(PAPER, local=0.1),
    "plus": PLUS,
    "plus-local": replace(PLUS, keys="local"),  # cells that don't know their place
    "plus-tokens": replace(PLUS, keys="tokens"),  # all that the paper's tokens know, the whole chest among it
    "plus-between": replace(PLUS, ssm=0.1, dfa=0.1),  # and the paper's two terms between patients
    "plus-specific": replace(PLUS, ssm=0.1, dfa=0.1, local=0.1, keys="tokens"),  # better features, blunter maps
}

# Terms alone and together, at a stride that the self-attention of Eq. 1 and 3 can afford, with the paper's keys: local
# ones would leave the coarser stages of the encoder, which a probe reads, without a gradient
_FINE = replace(PLUS, level=-3, keys="tokens")
VARIANTS |= {f"only-{t}": replace(_FINE, **(dict.fromkeys(OURS, 0.0) | {t: 1.0})) for t in (*TERMS, *OURS)}
VARIANTS |= {
    "mim-clip": replace(_FINE, mim=1.0, witness=0.0),
    "between-clip": replace(_FINE, ssm=1.0, dfa=1.0, witness=0.0),
    "clip-witness": _FINE,
    "clip-witness-between": replace(_FINE, ssm=0.1, dfa=0.1),
}
