"""The peer of the whole step: MG-3D put together from MONAI's and Hugging Face's parts, as the released code does.

What differs from ours, by what the released code computes (`mg3d.objectives.mg3d` computes the same losses):

    volumes     MONAI's Swin, its default classes, once for the masked volume and once for the whole one
    text        a BERT-base run three times: on masked words for MLM, on whole reports for MIM and again for CML and DFA
    sentences   features gathered by a loop over patients and sentences
    words       the vocabulary's logits of every word, hidden or not
    voxels      the last 1x1x1 convolution after the last doubling, with 48 channels at full size
    SSM         a loop over pairs of patients

Kinder to the peer than the released code: no dropout in the text encoder; features of sentences encoded alone (Eq. 12)
come ready (there they come from the embedding layer, which costs next to nothing); fusion and pooling are ours; and
each pass runs backward before the next one begins, where two graphs at once would double the memory.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from swin import network
from torch import Tensor, nn

from mg3d import losses
from mg3d.encoders import hide
from mg3d.objectives.mg3d import MG3D
from mg3d.types import Batch, Losses, Report
from mg3d.views import block_mask, mask_words


class Composed(nn.Module):
    """The composed step with the weights of `ours`, whose encoder it replaces; `bert` is a Hugging Face BertModel.

    `encodings` is 2, or 3 to encode the whole volume once more for the losses between patients.
    """

    def __init__(self, ours: MG3D, bert: Any, *, alone: Tensor, encodings: int = 2) -> None:
        super().__init__()
        swin = network("MONAI float32")
        swin.load_state_dict(ours.encoder.state_dict(), strict=True)
        for i in range(1, 5):
            swin.get_submodule(f"layers{i}.0.downsample").register_forward_pre_hook(even)
        ours.encoder = swin
        self.ours, self.alone, self.encodings = ours, alone, encodings
        object.__setattr__(self, "bert", bert)  # frozen, shared with the other rows

    def passes(self, batch: Batch) -> Iterator[Losses]:
        """Weighted losses, pass by pass; the graph of one is free before the next begins."""
        for terms in (self.volume_pass, self.report_passes):
            yield {name: getattr(self.ours.config, name) * loss for name, loss in terms(batch).items()}

    @torch.no_grad()
    def words(self, ids: Tensor, report: Report) -> Tensor:
        """One run of BERT."""
        hidden = self.bert(input_ids=ids, attention_mask=report.real.long()).last_hidden_state
        return hidden.masked_fill(~report.real[..., None], 0)

    def tokens(self, volume: Tensor) -> Tensor:
        """One run of Swin."""
        return self.ours.from_volume(self.ours.encoder(volume)[-1].flatten(2).transpose(1, 2))

    def volume_pass(self, batch: Batch) -> Losses:
        """MIM (Eq. 2)."""
        c, ours, report = self.ours.config, self.ours, batch.report
        assert report is not None
        clues = ours.from_text(sentences(self.words(report.words, report), report))
        size = tuple(batch.volume.shape[2:])
        mask = block_mask(batch.seeds, size, cube=c.mask_cube, ratio=c.mask_ratio)
        grid = tuple(-(-n // 32) for n in size)
        fused, _ = ours.volume_fusion(self.tokens(hide(batch.volume, mask)), clues, y_real=report.sentences)
        x = fused.transpose(1, 2).unflatten(2, grid)
        for block in (*ours.voxel_decoder.first, ours.voxel_decoder.last):
            x = F.leaky_relu(F.instance_norm(block.convolution(x)), 0.01)
            x = F.interpolate(x, scale_factor=2, mode="trilinear")
        d, h, w = size
        return {"mim": F.mse_loss(ours.voxel_decoder.voxel(x)[:, :, :d, :h, :w], batch.volume)}

    def report_passes(self, batch: Batch) -> Losses:
        """MLM and SFR (Eq. 4, 6), then CML, SSM and DFA (Eq. 9, 12, 13) on the same volume tokens."""
        c, ours, report = self.ours.config, self.ours, batch.report
        assert report is not None
        volume = self.tokens(batch.volume)
        masked, labels = mask_words(
            report, batch.seeds, mask_id=ours.text.mask_id, vocabulary=ours.text.vocabulary, ratio=c.word_ratio
        )
        fused, _ = ours.text_fusion(ours.from_text(self.words(masked, report)), volume, x_real=report.real)
        logits = ours.report_decoder(fused, torch.ones_like(labels, dtype=torch.bool)).view(*labels.shape, -1)
        terms = {"mlm": losses.mlm(logits[labels != -100], labels)}

        told = sentences(self.words(report.words, report), report)
        real = report.sentences
        terms["sfr"] = losses.sfr(ours.to_text(sentences(fused, report)), told, real)
        if self.encodings == 3:
            volume = self.tokens(batch.volume)
        clues, f_volume = ours.from_text(told), volume.mean(1)
        h_volume = ours.volume_fusion(volume, clues, y_real=real)[0].mean(1)
        h_text = ours.pool_fused_text(ours.text_fusion(clues, volume, x_real=real)[0], real)
        terms["cml"] = losses.cml(h_volume, f_volume, h_text, ours.pool_text(clues, real), tau=c.tau)
        specific, _ = ours.specific(clues, volume, x_real=real)
        terms["ssm"] = ssm(specific, self.alone, real)
        terms["dfa"] = losses.dfa(ours.pool_specific(specific, real), f_volume, tau=c.tau)
        return terms


def even(merging: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """Append a cell of zeros to each odd axis of [B, D, H, W, E], as ours does before it merges cells."""
    d, h, w = (n % 2 for n in inputs[0].shape[1:4])
    return F.pad(inputs[0], (0, 0, 0, w, 0, h, 0, d))


def sentences(words: Tensor, report: Report) -> Tensor:
    """Mean of the words of each sentence [B, S, E], sentence by sentence."""
    out = torch.zeros(*report.sentences.shape, words.shape[-1])
    for b, number in enumerate(report.sentence):
        for s in range(int(number.max()) + 1):
            out[b, s] = words[b, number == s].mean(0)
    return out


def ssm(visual: Tensor, textual: Tensor, real: Tensor) -> Tensor:
    """Eq. 12 pair by pair."""
    found = []
    for i, j in combinations(range(len(real)), 2):
        a, b = (F.cosine_similarity(x[i][real[i]][:, None], x[j][real[j]][None], dim=-1) for x in (visual, textual))
        found.append((a - b).abs().mean())
    return torch.stack(found).mean()
