"""Pre-training methods behind one contract, and the table of them.

A new method is one file and one row of `METHODS`; the tests are parametrised over the table.
"""

import difflib
import importlib
from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from mg3d.encoders import Encoder
from mg3d.types import Report, Trainable


@runtime_checkable
class TextEncoder(Protocol):
    """What an objective needs of a frozen text encoder: eval mode, no dropout, no gradient."""

    width: int
    vocabulary: int
    mask_id: int

    def __call__(self, words: Int[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        """F_T of any ids, masked ones too."""
        ...

    def word_features(self, report: Report) -> Float[Tensor, "B L E"]:
        """F_T of a report."""
        ...

    def sentence_features(self, report: Report) -> Float[Tensor, "B S E"]:
        """A feature of each sentence, encoded by itself (Sec. III-C.1)."""
        ...


class Objective(Trainable, ABC):
    """A pre-training method: it makes its own views from a plain batch and returns its named, weighted losses.

    Built as `Class(encoder, text, config, shape=(D, H, W))`; `text` is a frozen text encoder, or None for a method that
    reads no reports. After training `encoder` is what is kept.
    """

    encoder: Encoder


@dataclass(frozen=True)
class Method:
    """A row of METHODS. Its module is imported when it is first used."""

    build: str  # module:Class; the module's VARIANTS are named configs, the default first
    reference: str
    needs_reports: bool = True

    @property
    def load(self) -> type[Objective]:
        """The class."""
        module, name = self.build.split(":")
        return getattr(importlib.import_module(module), name)

    @property
    def variants(self) -> Mapping[str, Any]:
        """Named configs (frozen dataclasses), the default first."""
        return importlib.import_module(self.build.split(":")[0]).VARIANTS


METHODS = {
    "mg3d": Method("mg3d.objectives.mg3d:MG3D", "Ni et al., MG-3D, arXiv 2412.05876"),
    "ctclip": Method("mg3d.objectives.ctclip:CTCLIP", "Hamamci et al., CT-CLIP, arXiv 2403.17834"),
    "m3ae": Method("mg3d.objectives.m3ae:M3AE", "Chen et al., M3AE, MICCAI 2022"),
    "mrm": Method("mg3d.objectives.mrm:MRM", "Zhou et al., MRM, ICLR 2023"),
    "ptunifier": Method("mg3d.objectives.ptunifier:PTUnifier", "Chen et al., PTUnifier, ICCV 2023"),
    "arl": Method("mg3d.objectives.arl:ARL", "Chen et al., ARL, ACM MM 2022"),
    "m3dclip": Method("mg3d.objectives.m3dclip:M3DCLIP", "Bai et al., M3D, arXiv 2404.00578"),
    "mae3d": Method("mg3d.objectives.mae3d:MAE3D", "Chen et al., SelfMedMAE, ISBI 2023", needs_reports=False),
    "swinunetr": Method("mg3d.objectives.swinunetr:SwinUNETR", "Tang et al., CVPR 2022", needs_reports=False),
    "jigsaw": Method("mg3d.objectives.jigsaw:Jigsaw", "Noroozi and Favaro, ECCV 2016", needs_reports=False),
    "pcrlv1": Method("mg3d.objectives.pcrlv1:PCRLv1", "Zhou et al., PCRL, ICCV 2021", needs_reports=False),
    "pcrlv2": Method("mg3d.objectives.pcrlv2:PCRLv2", "Zhou et al., PCRLv2, TPAMI 2023", needs_reports=False),
    "rubikpp": Method("mg3d.objectives.rubikpp:RubikPlus", "Zhu et al., MedIA 2020", needs_reports=False),
    "swinmm": Method("mg3d.objectives.swinmm:SwinMM", "Wang et al., MICCAI 2023", needs_reports=False),
}


def configured(method: str, variant: str) -> Any:
    """The config that a variant of a method names. Raises ValueError for an unknown name, listing the valid ones."""
    variants = METHODS[known(method, METHODS, "method")].variants
    return variants[known(variant, variants, f"variant of {method}")]


def build(
    method: str,
    *,
    encoder: Encoder,
    text: TextEncoder | None,
    variant: str = "",
    shape: tuple[int, int, int],
    steps: int = 0,
    **overrides: Any,
) -> Objective:
    """An untrained objective for prepared volumes of `shape`; its weights are drawn from torch's global generator.

    `variant` is a name of the method's variants (the first by default), `overrides` are fields of its config. `steps`
    is the length of the run, for a method with a schedule (a field `steps`); 0 leaves that as the variant has it.
    Raises ValueError for an unknown name, listing the valid ones, and for a method that needs reports without a text
    encoder.
    """
    row = METHODS[known(method, METHODS, "method")]
    config = configured(method, variant or next(iter(row.variants)))
    valid = {f.name: f for f in fields(config)}
    for name in overrides:
        known(name, valid, f"field of {type(config).__name__}")
    if steps and "steps" in valid:
        overrides["steps"] = steps
    if row.needs_reports and text is None:
        raise ValueError(f"method {method!r} learns from reports: give it a frozen text encoder")
    return row.load(encoder, text, replace(config, **overrides), shape=shape)


def known(name: str, table: Mapping[str, Any], kind: str) -> str:
    """The name, if it is in the table; else ValueError with the valid names and the nearest one."""
    if name not in table:
        near = difflib.get_close_matches(name, table, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown {kind} {name!r}{hint}; valid: {', '.join(table)}")
    return name
