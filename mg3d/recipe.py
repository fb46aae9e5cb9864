"""What a run is made of: `Recipe` (flat scalars), and `SCALES`, the table of how much data and how large a model.

A recipe is the whole identity of a pre-training run: the same recipe has the same `id`, so it lands in the same folder,
is skipped when done and continued when it was cut off. `Plan` is what it shares with mg3d.transfer.Transfer, the
identity of a fine-tuning: the strict way from words to fields, and what the training loop reads.
"""

import ast
import difflib
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

AnyPlan = TypeVar("AnyPlan", bound="Plan")


@dataclass(frozen=True)
class Scale:
    """One size of the experiment: which volumes, how many steps, how large an input, how much smaller a model."""

    corpus: str  # a name of mg3d.data.corpora.CORPORA
    volumes: int  # training volumes, 0 = all; nested: a smaller scale's volumes are among a larger one's
    valid: int  # validation volumes, 0 = all
    steps: int
    batch: int  # over all processes
    shape: tuple[int, int, int]  # D, H, W of a prepared volume
    shrink: int = 1  # divides every width of the encoder
    lr: float = 2e-5  # encoder
    lr_fusion: float = 1e-4  # everything else that learns
    test: int = 0  # held-out volumes that the phantom cohort makes; real corpora bring their own


_PAPER = (128, 96, 128)
SCALES = {
    # name             corpus     volumes valid    steps batch  shape        shrink
    "demo": Scale("phantom", 48, 16, 40, 8, (64, 48, 64), shrink=4, lr=5e-4, lr_fusion=1e-3, test=16),
    "phantom": Scale("phantom", 1600, 200, 1_000, 16, (48, 36, 48), shrink=4, lr=5e-4, lr_fusion=1e-3, test=400),
    "ctrg": Scale("ctrg", 1443, 0, 300_000, 16, _PAPER),  # Tables I-IV and VI
    "1.4k": Scale("ctrate", 1443, 256, 100_000, 16, _PAPER),  # Table V: subsets of CT-RATE
    "2.8k": Scale("ctrate", 2886, 256, 100_000, 16, _PAPER),
    "10k": Scale("ctrate", 10_000, 256, 100_000, 16, _PAPER),
    "47k": Scale("ctrate", 0, 256, 100_000, 16, _PAPER),  # all 47,149
    "folder": Scale("folder", 0, 0, 1_000, 4, _PAPER),  # your own volumes and one CSV: data=<the CSV>
}
# nested sizes that the scaling law is drawn by, beside the whole
SMALLER = {"demo": (12, 18, 24, 36), "phantom": (100, 200, 400, 800)}
SCALES |= {
    f"{s}-{n}": replace(SCALES[s], volumes=n, valid=SCALES[s].valid // 4, test=0)
    for s, sizes in SMALLER.items()
    for n in sizes
}


@dataclass(frozen=True)
class Filled:
    """The numbers of a plan that may come from its scale."""

    steps: int
    batch: int
    lr: float
    lr_fusion: float  # of all that is not the encoder
    checkpoint: int


class Plan(ABC):
    """A frozen dataclass of flat scalars that says all of a run. A subclass adds its fields, with these among them."""

    FILE: ClassVar[str]  # what it is called in the folder of its run
    weight_decay: float
    warmup: float
    clip: float
    precision: str
    accumulate: int
    seed: int
    resume: bool

    @property
    @abstractmethod
    def filled(self) -> Filled:
        """Steps, batch and learning rates with the scale's where the plan says 0."""

    @property
    @abstractmethod
    def id(self) -> str:
        """A readable name plus a hash of all that changes the outcome."""

    @property
    def changed(self) -> dict[str, Any]:
        """The fields that are not the default: what says the plan in the fewest words."""
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}  # pyright: ignore[reportArgumentType]
        return {name: value for name, (value, default) in values.items() if value != default}

    @classmethod
    def from_notebook(cls: type[AnyPlan], namespace: Mapping[str, Any]) -> AnyPlan:
        """The plan that a notebook's parameters cell, and the cell papermill injects, spell out.

        Strict where papermill only warns: an unknown name or a bad value raises ValueError and lists the valid ones.
        Values are brought to the field's type ("false" -> False, "1e-4" -> 0.0001), since papermill passes strings.
        """
        return cls.parse(_assigned(namespace, cls))

    @classmethod
    def parse(cls: type[AnyPlan], values: Mapping[str, Any]) -> AnyPlan:
        """A plan from names and values of any type, e.g. of a command line; the same checks as `from_notebook`."""
        return cls(**{name: cls.value(name, given) for name, given in values.items()})

    @classmethod
    def value(cls, name: str, given: Any) -> Any:
        """One field's value from a value of any type; what a plan would say of it beside its others is not asked."""
        types = _types(cls)
        one_of("parameter", name, types)
        return _coerce(name, given, types[name])

    @classmethod
    def from_shell(cls: type[AnyPlan], arguments: Sequence[str]) -> AnyPlan:
        """The plan of a command line: `field=value ...`, or `@file.json`. SystemExit for a word that is neither."""
        if len(arguments) == 1 and arguments[0].startswith("@"):
            return cls.parse(json.loads(Path(arguments[0][1:]).read_text()))
        if wrong := [a for a in arguments if "=" not in a]:
            raise SystemExit(f"expected field=value, got {wrong[0]!r}; the fields are those of mg3d.{cls.__name__}")
        return cls.parse(dict(a.split("=", 1) for a in arguments))

    def check(self, *, not_negative: Sequence[str], at_least_1: Sequence[str], parts: int) -> None:
        """Raise ValueError for a number out of its range, and for a batch that does not divide into `parts`."""
        one_of("precision", self.precision, ("auto", "fp32", "bf16"))
        for name in not_negative:
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        for name in at_least_1:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if not 0 <= self.warmup < 1 or self.clip <= 0:
            raise ValueError(f"warmup={self.warmup}, clip={self.clip}: warmup lies in [0, 1), clip above 0")
        if self.filled.batch % parts:
            raise ValueError(f"batch={self.filled.batch} does not divide into {self._parts()} parts")

    def _parts(self) -> str:
        """What cuts a batch into parts, in words."""
        return f"accumulate={self.accumulate}"

    def digest(self, *content: Any) -> str:
        """Eight hex digits of what shapes the outcome."""
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


CARRIED_OUT = ("gpus", "recompute", "checkpoint", "resume")  # fields of a recipe that change nothing of its outcome


@dataclass(frozen=True)
class Recipe(Plan):
    """One pre-training run as flat scalars, the defaults those of the paper (Sec. IV-B). 0 or "" means: the scale's.

    Raises ValueError for a bad value, naming the field and what is allowed.
    """

    method: str = "mg3d"  # a row of objectives.METHODS
    encoder: str = "swin_b"  # a row of encoders.ENCODERS
    text: str = "minilm"  # a row of encoders.text.TEXT, a hub id, or a local folder
    scale: str = "demo"  # a row of SCALES
    variant: str = "paper"  # a variant of the method
    data: str = ""  # folder of the corpus (scale=folder: its CSV); "" = MG3D_HOME/data/<corpus>
    steps: int = 0  # optimiser steps
    batch: int = 0  # volumes in a step, over all processes
    accumulate: int = 1  # parts that a process cuts its share of the batch into (negatives come from the whole batch)
    lr: float = 0.0  # learning rate of the volume encoder
    lr_fusion: float = 0.0  # of everything else that learns
    weight_decay: float = 0.01
    warmup: float = 0.1  # share of the steps that the learning rate rises, then it falls to 0; both linear
    clip: float = 1.0  # largest norm of the gradient
    precision: str = "auto"  # auto | fp32 | bf16; auto is bf16 on a GPU, fp32 on a CPU
    max_words: int = 512  # longest report in tokens; whole sentences beyond it are dropped, and counted by the audit
    seed: int = 0
    # what follows changes how a run is carried out, not what comes out of it: no part of the id
    gpus: int = 1  # processes; more than one starts torchrun
    recompute: bool = False  # gradient checkpointing of the encoder: a third more time, a fraction of the memory
    checkpoint: int = 0  # steps between checkpoints; 0 = a twentieth of the run, at most 500
    resume: bool = True  # False: start again, the old run is put aside

    FILE = "recipe.json"

    def __post_init__(self) -> None:
        one_of("scale", self.scale, SCALES)
        self.check(
            not_negative=("steps", "batch", "lr", "lr_fusion", "weight_decay", "checkpoint", "seed"),
            at_least_1=("accumulate", "gpus", "max_words"),
            parts=self.gpus * self.accumulate,
        )

    @property
    def size(self) -> Scale:
        """The row of SCALES."""
        return SCALES[self.scale]

    @property
    def filled(self) -> Filled:
        """Steps, batch and learning rates with the scale's where the recipe says 0."""
        pick = {n: getattr(self, n) or getattr(self.size, n) for n in ("steps", "batch", "lr", "lr_fusion")}
        steps = pick["steps"]
        return Filled(**pick, checkpoint=self.checkpoint or max(1, min(steps // 20, 500)))

    @property
    def id(self) -> str:
        """Readable name plus a hash of all that changes the outcome, the scale's row and its numbers included."""
        content = {k: v for k, v in asdict(self).items() if k not in CARRIED_OUT}
        whole = {k: v for k, v in asdict(self.filled).items() if k != "checkpoint"}
        digest = self.digest(content | whole, asdict(self.size))
        return f"{self.method}-{self.variant}-{self.encoder}-{self.scale}-{digest}"

    def _parts(self) -> str:
        return f"gpus={self.gpus} times accumulate={self.accumulate}"


def one_of(what: str, value: str, valid: Mapping[str, Any] | Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `valid`, with the nearest name and the whole list."""
    if value not in valid:
        near = difflib.get_close_matches(str(value), list(valid), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"unknown {what} {value!r}{hint}; valid: {', '.join(valid)}")


def _coerce(name: str, value: Any, kind: Any) -> Any:
    """Bring a value to a field's type, or raise ValueError naming the field."""
    if type(value) is kind:
        return value
    if kind is bool:
        words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
        if (word := str(value).strip().lower()) in words:
            return words[word]
    elif kind is int:
        with_point = float(value) if re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", str(value).strip().lower()) else None
        if with_point is not None and with_point == int(with_point):
            return int(with_point)
    elif kind is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif kind is str and not isinstance(value, bool) and isinstance(value, (int, float)):
        return str(value)
    raise ValueError(f"{name}={value!r}: expected {kind.__name__}")


def _types(plan: type[Plan]) -> dict[str, Any]:
    """Name and type of each field."""
    return {f.name: f.type for f in fields(plan)}  # pyright: ignore[reportArgumentType]  (every plan is a dataclass)


def _assigned(namespace: Mapping[str, Any], plan: type[Plan]) -> dict[str, Any]:
    """What the cells that begin with "# Parameters" assign; the names alone where there is no notebook history."""
    history = namespace.get("In")
    if not history:
        known = _types(plan)
        return {k: v for k, v in namespace.items() if k in known}
    names: dict[str, None] = {}
    for source in history:
        if re.match(r"\s*# ?parameters", source, re.IGNORECASE):
            for node in ast.parse(source).body:
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                names.update({t.id: None for t in targets if isinstance(t, ast.Name)})
    return {name: namespace[name] for name in names if name in namespace}
