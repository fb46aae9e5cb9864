"""The whole MG-3D step, forward, backward and AdamW, at full size: ours against the composed peer, in one run.

    python bench/step.py [--shape 128 96 128] [--batch 2] [--repeats 2] [--threads 2] [--encodings 2]

Swin-B, six losses of the variant `paper`, and a BERT-base of RadBERT's shape with seeded weights. The peer
(`composed.py`) is MONAI's Swin and three runs of BERT. All rows get the same weights and the same batch; each first
makes one step in a process of its own, which gives its peak memory, and the six losses must agree before anything is
timed. Then the parts of a step that should cost little: text, SSM at 64 patients, reading the batch.

At full size the peer holds 5 GB a volume, though it frees one pass before the next: a batch of 2 is what a machine with
24 GB can compare, and 4 takes one with 32 GB. Both grow with the batch alike. About 8 minutes on two idle cores.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Line, arguments, fresh, in_turns, machine, peak_mb, phantom_report, table

from mg3d import encoders, losses, objectives
from mg3d.data.loader import Loader
from mg3d.data.store import Entry
from mg3d.encoders.text import FrozenText
from mg3d.objectives.mg3d import TERMS
from mg3d.text import Tokeniser
from mg3d.types import Batch, Case, Losses
from mg3d.views import mask_words

ROWS = ("ours fp32", "ours bf16", "peer fp32")
PATIENTS = 64  # of SSM by itself
RTOL = 1e-4


def radbert(layers: int) -> tuple[Any, FrozenText]:
    """A BERT with RadBERT's shape and seeded weights, and ours around it, with a vocabulary that fits the reports."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    letters = [chr(c) for c in range(33, 127)]
    pieces = dict.fromkeys((*specials, *letters, *(f"##{c}" for c in letters)))
    pieces |= dict.fromkeys(word for text in reports(64) for word in text.lower().replace(".", " ").split())
    config = BertConfig(vocab_size=28_996, num_hidden_layers=layers)  # BertConfig's defaults are BERT-base
    pieces |= dict.fromkeys(f"[unused{i}]" for i in range(config.vocab_size - len(pieces)))
    backend = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    torch.manual_seed(0)
    bert = BertModel(config, add_pooling_layer=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)
    return bert, FrozenText(bert, tokenizer)


def reports(n: int) -> list[str]:
    """Reports of the phantom cohort."""
    return [" ".join(phantom_report(i + 1)) for i in range(n)]


def entries(shape: Sequence[int], n: int, folder: Path) -> list[Entry]:
    """n prepared volumes of smooth noise with reports, on disk as preparation leaves them."""
    found = []
    for i, report in enumerate(reports(n)):
        coarse = np.random.default_rng(i).random([max(1, s // 8) for s in shape], dtype=np.float32)
        volume = torch.nn.functional.interpolate(torch.from_numpy(coarse)[None, None], tuple(shape), mode="trilinear")
        np.save(folder / f"{i}.npy", volume[0, 0].half().numpy())
        case = Case(str(i), str(i), "train", folder / f"{i}.nii.gz", report)
        found.append(Entry(case, folder / f"{i}.npy", folder / f"{i}.json"))
    return found


@dataclass
class Bench:
    """What all rows share: the batch, the text encoder with its bank, and how to build a row."""

    options: argparse.Namespace
    folder: Path

    def __post_init__(self) -> None:
        o = self.options
        self.bert, self.text = radbert(o.layers)
        tokenise = Tokeniser(self.text.tokenizer, max_words=512)
        listed = entries(o.shape, o.batch, self.folder)
        self.loader = Loader(listed, batch=o.batch, seed=0, tokenise=tokenise)
        self.text.fill([e.case.report for e in listed], tokenise=tokenise, folder=self.folder, progress=False)
        self.batch = self.loader.batch(0)
        assert self.batch.report is not None
        self.report = self.batch.report

    def row(self, row: str) -> Callable[[], dict[str, float]]:
        """A function that makes one step of a row and gives its six weighted losses and the norm of its gradient."""
        shape = tuple(self.options.shape)
        torch.manual_seed(0)
        encoder = encoders.build("swin_b", shape=shape)
        width = self.options.width
        model: Any = objectives.build("mg3d", encoder=encoder, text=self.text, shape=shape, width=width)
        if row.startswith("peer"):
            from composed import Composed

            alone = self.text.sentence_features(self.report)
            model = Composed(model, self.bert, alone=alone, encodings=self.options.encodings)
            passes = model.passes
        else:
            passes = one_pass(model, torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in row))
        parameters = list(model.parameters())
        optimiser = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.01)

        def step() -> dict[str, float]:
            found: dict[str, float] = {}
            for terms in passes(self.batch):
                torch.stack(list(terms.values())).sum().backward()
                found |= {name: float(loss.detach()) for name, loss in terms.items()}
            norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            return {**{name: found[name] for name in TERMS}, "gradient": float(norm)}

        return step

    def parts(self) -> dict[str, Callable[[], object]]:
        """What a step should spend little time on, and three runs of BERT."""
        generator = torch.Generator().manual_seed(0)
        real = self.report.sentences[:1].expand(PATIENTS, -1)
        told, seen = torch.randn(2, PATIENTS, real.shape[1], self.text.width, generator=generator)
        seen.requires_grad_()
        masked, _ = mask_words(
            self.report, self.batch.seeds, mask_id=self.text.mask_id, vocabulary=self.text.vocabulary
        )
        real_words = self.report.real.long()

        def three() -> None:
            with torch.no_grad():
                for ids in (masked, self.report.words, self.report.words):
                    self.bert(input_ids=ids, attention_mask=real_words)

        def ours() -> None:
            self.text.word_features(self.report), self.text.sentence_features(self.report), self.text(masked)

        return {
            "three": three,
            "text": ours,
            "text bf16": lambda: under(torch.autocast("cpu", dtype=torch.bfloat16), ours),
            "ssm": lambda: losses.ssm(seen, told, real).backward(),
            "read": lambda: self.loader.batch(1),
        }


def one_pass(model: torch.nn.Module, half: torch.autocast) -> Callable[[Batch], Iterator[Losses]]:
    """Our step: all losses in one graph."""

    def passes(batch: Batch) -> Iterator[Losses]:
        with half:
            terms = model(batch)
        yield terms

    return passes


def under(context: torch.autocast, run: Callable[[], object]) -> None:
    """Run in a context."""
    with context:
        run()


def check(found: dict[str, dict[str, float]]) -> None:
    """Print the losses of all rows; raise AssertionError unless ours in float32 are the peer's."""
    print(f"{'':12}" + "".join(f"{name:>10}" for name in found[ROWS[0]]))
    for row, values in found.items():
        print(f"{row:12}" + "".join(f"{value:10.6f}" for value in values.values()), flush=True)
    for name, value in found[ROWS[0]].items():
        near = 10 * RTOL if name == "gradient" else RTOL  # of small volumes: instance norm over a few voxels
        torch.testing.assert_close(value, found[ROWS[2]][name], rtol=near, atol=RTOL)


def lines(seconds: dict[str, float], parts: dict[str, float], peaks: dict[str, float], batch: int) -> list[Line]:
    """The table of goals."""
    peer, fastest = ROWS[2], min(seconds[row] for row in ROWS[:2])
    found = []
    for row in ROWS[:2]:
        speed, memory = seconds[peer] / seconds[row], peaks[row] / peaks[peer]
        shown = f"{speed:.2f}x ({seconds[row]:.1f} s, {seconds[peer]:.1f} s)"
        found.append(Line(f"MG-3D step, batch {batch}, {row}", "≥ 6x the composed peer", shown, speed >= 6))
        shown = f"{memory:.2f} ({peaks[row]:.0f} MB, {peaks[peer]:.0f} MB)"
        found.append(Line(f"its peak memory, {row}", "≤ 1/3 of the peer's", shown, memory <= 1 / 3))
    for part, row in (("text", ROWS[0]), ("text bf16", ROWS[1])):
        text, share = parts[part] / parts["three"], parts[part] / seconds[row]
        shown = f"{text:.2f} ({parts[part]:.2f} s, {share:.1%} of a step)"
        found.append(Line(f"text of a step, {row}", "≤ 1/3 of three runs of BERT", shown, text <= 1 / 3))
    share = parts["ssm"] / (fastest * PATIENTS / batch)
    found.append(
        Line(f"SSM of {PATIENTS} patients", "< 5 % of a step", f"{share:.3%} ({parts['ssm']:.3f} s)", share < 0.05)
    )
    share = parts["read"] / fastest
    found.append(
        Line("reading a batch", "< 2 % of a step", f"{share:.3%} ({1000 * parts['read']:.1f} ms)", share < 0.02)
    )
    return found


def main(words: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = arguments(__doc__, repeats=2, shape=(128, 96, 128), batch=2, layers=12, encodings=2, width=0)
    parser.add_argument("--shape", type=int, nargs=3, help="multiples of 32")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--layers", type=int, help="of BERT")
    parser.add_argument("--width", type=int, help="of the fusion; 0: Swin's")
    parser.add_argument("--encodings", type=int, choices=(2, 3), help="Swin's runs in a step of the peer")
    parser.add_argument("--only", choices=ROWS, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.only:
            print(json.dumps({"losses": Bench(options, Path(folder)).row(options.only)(), "peak": peak_mb()}))
            return
        print(f"shape {tuple(options.shape)}, batch {options.batch}, {machine(options.threads)}", flush=True)
        same = [f"--{n}={getattr(options, n)}" for n in ("batch", "layers", "width", "encodings", "threads")]
        first = {row: fresh(__file__, "--only", row, *same, "--shape", *options.shape) for row in ROWS}
        check({row: f["losses"] for row, f in first.items()})
        bench = Bench(options, Path(folder))
        seconds = in_turns({row: bench.row(row) for row in ROWS}, options.repeats)
        parts = in_turns(bench.parts(), 5)
    table(lines(seconds, parts, {row: f["peak"] for row, f in first.items()}, options.batch), __file__)


if __name__ == "__main__":
    main()
