"""MG-3D: volumes and reports explain each other, within a patient and between patients (Eq. 1 to 15).

    L = mim L_MIM + mlm L_MLM + sfr L_SFR + cml L_CML                       within a patient   (10)
      + ssm L_SSM + dfa L_DFA                                               between patients   (14), (15)
     (+ clip L_CLIP + local L_LOCAL + witness L_WITNESS                     ours, weight 0 in the paper's reading)

Symbols as in the paper: I volume tokens, T words, S sentences; F_* features of one modality, H_* features that the
other modality has shaped, a bar for a pooled one. The volume is encoded twice a step, whole and masked; the frozen text
encoder runs once, on the masked words, since features of unmasked text are constants that it keeps.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mg3d import losses
from mg3d.attention import AttentionPool, CrossModalAttention, Fusion, Mode, Placed, sentence_mean
from mg3d.decoders import ReportDecoder, VoxelDecoder
from mg3d.encoders import Encoder, voxels
from mg3d.objectives import Objective, TextEncoder
from mg3d.objectives.readings import OURS, TERMS, VARIANTS, MG3DConfig
from mg3d.types import Batch, Losses, Report
from mg3d.views import block_mask, jittered, mask_words

__all__ = ["MG3D", "OURS", "TERMS", "VARIANTS", "MG3DConfig"]


class Seen(NamedTuple):
    """What a volume shows."""

    tokens: Float[Tensor, "B N E"]  # F_I at the width of the fusion: each cell of a level, and those it lies in
    local: Float[Tensor, "B N E"]  # the cell alone: what can be seen around its place
    grid: tuple[int, int, int]  # of the N tokens


@dataclass(frozen=True)
class Told:
    """What an unmasked report says."""

    report: Report
    sentences: Float[Tensor, "B S F"]  # F_S as the text encoder gives it: a constant
    clues: Float[Tensor, "B Q E"]  # sentences or words, at the width of the fusion: what guides the volume
    real: Bool[Tensor, "B Q"]  # which of the clues exist


@final
class MG3D(Objective):
    """The method of the paper; `config` holds the weights and readings.

    Raises ValueError when volumes of `shape` give a single token: a map over one token is constant, and teaches
    nothing.
    """

    text: TextEncoder

    def __init__(
        self,
        encoder: Encoder,
        text: TextEncoder,
        config: MG3DConfig = VARIANTS["paper"],
        *,
        shape: tuple[int, int, int],
    ):
        super().__init__()
        c = self.config = config
        if c.level < -len(encoder.strides):
            raise ValueError(f"level={c.level}, but the encoder has {len(encoder.strides)} levels: take a coarser one")
        stride = encoder.strides[c.level]
        if math.prod(math.ceil(side / stride) for side in shape) < 2:
            raise ValueError(f"shape={shape} is one token at stride {stride}: take larger volumes or a finer encoder")
        self.encoder = encoder
        object.__setattr__(self, "text", text)  # frozen: neither a submodule nor in the state
        width = c.width or encoder.widths[-1]
        self.from_volume, *coarser = (nn.Linear(w, width) for w in encoder.widths[c.level :])
        self.from_coarser = nn.ModuleList(coarser)
        self.from_text = nn.Linear(text.width, width)
        self.needs_volume_fusion = bool(c.mim or c.cml or (c.dfa and c.dfa_form == "fused"))
        if self.needs_volume_fusion:
            self.volume_fusion = self._fusion(width, mode=c.mim_attention)
        if c.mlm or c.sfr or c.cml:
            self.text_fusion = self._fusion(width, mode=c.mlm_attention)
        if c.mim:
            self.voxel_decoder = VoxelDecoder(width, stride=stride)
        if c.mlm:
            self.report_decoder = ReportDecoder(width, vocabulary=text.vocabulary)
        if c.sfr:
            self._build_sfr(width)
        if c.cml or c.clip:
            self.pool_text = AttentionPool(width, heads=c.self_heads)
        if c.cml:
            self.pool_fused_text = AttentionPool(width, heads=c.self_heads)
        self.needs_specific = bool(c.ssm or c.dfa or c.local or c.witness)
        if self.needs_specific:  # Eq. 11, no residual: else a sentence could pass as its visual feature
            if c.query == "sentence":
                how = {"heads": c.heads, "sharp": c.sharp, "values": bool(c.ssm or c.dfa or c.local)}
                self.specific = CrossModalAttention(width, mode="classical", **how)
                if c.keys == "placed":
                    self.placed = Placed(width)
            else:
                self.specific = Fusion(width, layers=c.layers, gate=c.gate, heads=c.heads, plain=True)
        if c.dfa:
            self.pool_specific = AttentionPool(width, heads=c.self_heads)

    def _fusion(self, width: int, *, mode: Mode) -> Fusion:
        c = self.config
        gate = "softmax" if mode == "classical" else c.gate
        return Fusion(
            width, layers=c.layers, mode=mode, gate=gate, heads=c.heads, self_heads=c.self_heads, plain=c.plain
        )

    def _build_sfr(self, width: int) -> None:
        """S_REC goes back to the width of the text, or both sides to 8 channels."""
        if self.config.sfr_space == "features":
            self.to_text = nn.Linear(width, self.text.width)
            self.to_target = nn.Identity()
        else:
            self.to_text, self.to_target = (
                nn.Sequential(nn.Linear(w, w // 2), nn.ReLU(), nn.Linear(w // 2, 8)) for w in (width, self.text.width)
            )

    def forward(self, batch: Batch) -> Losses:
        """The terms with a weight, weighted, in the order of Eq. 15, then ours; ValueError without reports."""
        c, told = self.config, self._told(batch)
        if c.jitter and self.training:
            batch = jittered(batch)
        terms: Losses = {}
        if c.mim and not self.only_gathers:
            terms["mim"] = self._volume_term(batch, told)
        compares = c.cml or c.clip or self.needs_specific
        if c.mlm or c.sfr or compares:
            seen = self._seen(batch)
            if (c.mlm or c.sfr) and not self.only_gathers:
                terms |= self._word_terms(batch, told, seen.tokens)
            if compares:
                terms |= self._global_terms(told, seen)
        return {name: getattr(c, name) * terms[name] for name in (*TERMS, *OURS) if name in terms}

    @torch.no_grad()
    def maps(self, batch: Batch) -> tuple[Float[Tensor, "B layers heads S N"], tuple[int, int, int]]:
        """Where each sentence looks: the maps of the volume's fusion layers on unmasked input, and last that of Eq. 11,
        of those that the variant has; and the grid of the N tokens.

        With softmax over the volume tokens ("ours", Eq. 11) each row sums to 1; in the classical mechanism each column
        does. Maps of words are averaged over a sentence. Rows of sentences that don't exist mean nothing. Raises
        ValueError if the variant attends to no volume token.
        """
        c, told = self.config, self._told(batch)
        seen = self._seen(batch)
        layers: list[Tensor] = []
        if self.needs_volume_fusion:
            _, maps = self.volume_fusion(seen.tokens, told.clues, y_real=told.real)
            if c.mim_attention == "classical":
                maps = maps.transpose(-1, -2)
            if c.guidance == "word":
                flat = maps.movedim(3, 1).flatten(2)
                pooled = sentence_mean(flat, told.report.sentence, told.sentences.shape[1])
                maps = pooled.unflatten(2, (*maps.shape[1:3], -1)).movedim(1, 3)
            layers.append(maps)
        if self.needs_specific and c.query == "sentence" and c.keys != "pooled":
            layers.append(self._specific(told, seen)[1][:, None])
        if not layers:
            raise ValueError("this variant has no attention from text to volume tokens: give mim, cml or ssm a weight")
        return torch.cat(layers, 1).float(), seen.grid

    @torch.no_grad()
    def embed(self, batch: Batch) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B E"]]:
        """F_I and F_T, each of its own modality alone: what zero-shot scores and retrieval compare.

        Raises ValueError for a variant that pools no text (neither cml nor clip has a weight).
        """
        if not (self.config.cml or self.config.clip):
            raise ValueError("this variant has no feature of a whole report: give cml or clip a weight")
        told = self._told(batch)
        return self._seen(batch).tokens.mean(1).float(), self.pool_text(told.clues, told.real).float()

    def _seen(self, batch: Batch, mask: Bool[Tensor, "B d h w"] | None = None) -> Seen:
        """The volume's tokens."""
        first, *coarser = self.encoder(batch.volume, mask=mask).levels[self.config.level :]
        d, h, w = first.shape[2:]
        x = local = self.from_volume(first.movedim(1, -1))
        for layer, cells in zip(self.from_coarser, coarser, strict=True):
            above = layer(cells.movedim(1, -1)).movedim(-1, 1)
            x = x + F.interpolate(above, size=(d, h, w), mode="nearest").movedim(1, -1)
        return Seen(x.flatten(1, 3), local.flatten(1, 3), (d, h, w))

    def _told(self, batch: Batch) -> Told:
        """What the unmasked report says, at the width of the fusion."""
        report = batch.report
        if report is None:
            raise ValueError("MG-3D learns from reports: this batch has none; take a corpus with reports")
        with torch.no_grad():
            words = self.text.word_features(report)
            sentences = sentence_mean(words, report.sentence, report.alone.shape[1])
        if self.config.guidance == "word":
            return Told(report, sentences, self.from_text(words), report.sentence >= 0)
        return Told(report, sentences, self.from_text(sentences), report.sentences)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> tuple[Float[Tensor, "B 1 D H W"], Bool[Tensor, "B 1 D H W"]]:
        """I_REC of Eq. 2, and which voxels were hidden from it. Raises ValueError for a variant without MIM."""
        if not self.config.mim:
            raise ValueError("this variant rebuilds no volume: give mim a weight")
        return self._rebuilt(batch, self._told(batch))

    def _rebuilt(self, batch: Batch, told: Told) -> tuple[Float[Tensor, "B 1 D H W"], Bool[Tensor, "B 1 D H W"]]:
        """Eq. 1: the volume from what is left of it and what the report says, and which voxels were hidden."""
        c = self.config
        d, h, w = batch.volume.shape[2:]
        mask = block_mask(batch.seeds, (d, h, w), cube=c.mask_cube, ratio=c.mask_ratio, shared=c.mask_shared)
        seen = self._seen(batch, mask)
        fused, _ = self.volume_fusion(seen.tokens, told.clues, y_real=told.real)
        return self.voxel_decoder(fused, grid=seen.grid, size=(d, h, w)), voxels(mask, (d, h, w))

    def _volume_term(self, batch: Batch, told: Told) -> Float[Tensor, ""]:
        """Eq. 2."""
        rebuilt, hidden = self._rebuilt(batch, told)
        return losses.mim(rebuilt, batch.volume, hidden if self.config.mim_region == "hidden" else None)

    def _word_terms(self, batch: Batch, told: Told, volume: Float[Tensor, "B N E"]) -> Losses:
        """Eq. 3 to 6: recover the hidden words, and the features of their sentences, with the help of the volume."""
        c, report = self.config, told.report
        terms: Losses = {}
        masked, labels = mask_words(
            report, batch.seeds, mask_id=self.text.mask_id, vocabulary=self.text.vocabulary, ratio=c.word_ratio
        )
        with torch.no_grad():
            words = self.text(masked)
        fused, _ = self.text_fusion(self.from_text(words), volume, x_real=report.real)
        if c.mlm:
            terms["mlm"] = losses.mlm(self.report_decoder(fused, labels != -100), labels)
        if c.sfr:
            rebuilt = self.to_text(sentence_mean(fused, report.sentence, report.alone.shape[1]))
            target, total = self.to_target(told.sentences), c.sfr_space == "heads"
            terms["sfr"] = losses.sfr(rebuilt, target, report.sentences, total=total)
        return terms

    def _global_terms(self, told: Told, seen: Seen) -> Losses:
        """Eq. 7 to 13: what compares patients, over the batch of all processes and parts."""
        c, real, volume = self.config, told.report.sentences, seen.tokens
        terms: Losses = {}
        f_volume = self.gather(volume.mean(1))
        h_volume = f_volume
        if c.cml or (c.dfa and c.dfa_form == "fused"):
            h_volume = self.gather(self.volume_fusion(volume, told.clues, y_real=told.real)[0].mean(1))
        if c.cml or c.clip:
            f_text = self.gather(self.pool_text(told.clues, told.real))
        if c.clip:
            terms["clip"] = self.once(losses.clip, f_volume, f_text, tau=c.tau)
        if c.cml:
            fused, _ = self.text_fusion(told.clues, volume, x_real=told.real)
            h_text = self.gather(self.pool_fused_text(fused, told.real))
            features = h_volume, f_volume, h_text, f_text
            terms["cml"] = self.once(losses.cml, *features, tau=c.tau, joint=c.cml_form == "joint")
        if not self.needs_specific:
            return terms
        if c.ssm or c.local or c.witness:
            textual, exists = self.gather(self.text.sentence_features(told.report)), self.gather(real)
        if c.ssm or c.local or c.dfa:
            specific, _ = self._specific(told, seen)
        if c.ssm or c.local:
            visual = self.gather(specific)
        if c.ssm:
            terms["ssm"] = self.once(losses.ssm, visual, textual, exists, thresholds=c.ssm_thresholds)
        if c.local:
            own = self.gather(self.from_text(told.sentences))
            terms["local"] = self.once(losses.local, visual, own, textual, exists, tau=c.tau, tau_text=c.tau_text)
        if c.witness:
            assert isinstance(self.specific, CrossModalAttention)  # the config takes no other query with it
            asked = (self.gather(x) for x in self.specific.asked(self._asking(told), self._places(seen)))
            terms["witness"] = self.once(losses.witness, *asked, textual, exists, heads=c.heads, tau_text=c.tau_text)
        if c.dfa:
            whole = self.gather(self.pool_specific(specific, real))
            fused_form = c.dfa_form == "fused"
            volumes = h_volume if fused_form else f_volume
            terms["dfa"] = self.once(losses.dfa, whole, volumes, tau=c.tau, symmetric=fused_form)
        return terms

    def _specific(
        self, told: Told, seen: Seen
    ) -> tuple[Float[Tensor, "B S E"], Float[Tensor, "B *layers queries keys"]]:
        """H_S of Eq. 11, the volume as each sentence sees it, and the map, of one layer if sentences ask."""
        return self.specific(self._asking(told), self._places(seen), x_real=told.report.sentences)

    def _places(self, seen: Seen) -> Float[Tensor, "B keys E"]:
        """What the sentences of Eq. 11 look at."""
        c = self.config
        if c.query == "volume" or c.keys == "pooled":
            return seen.tokens.mean(1, keepdim=True)
        if c.keys == "placed":
            return self.placed(seen.local, seen.grid)
        return seen.local if c.keys == "local" else seen.tokens

    def _asking(self, told: Told) -> Float[Tensor, "B S E"]:
        """The sentences at the width of the fusion."""
        return self.from_text(told.sentences) if self.config.guidance == "word" else told.clues
