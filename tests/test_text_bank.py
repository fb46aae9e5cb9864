"""The bank gives the bits that computing gives, whatever is missing, damaged or killed."""

import hashlib
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from texts import REPORTS

from mg3d.encoders import bank
from mg3d.encoders.text import FrozenText, load_text
from mg3d.text import Tokeniser


def no_encode(*_: object, **__: object) -> None:
    raise AssertionError("computed although the bank holds it")


@pytest.mark.parametrize("name", ["tiny", "minilm"])
def test_the_bank_gives_the_bits_that_computing_gives(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computing: FrozenText = request.getfixturevalue(name)
    tokenise = Tokeniser(computing.tokenizer)
    report = tokenise(REPORTS[::-1])
    some = tokenise(REPORTS[1:3])  # in other company, with other padding
    banked = FrozenText(computing._held[0], computing.tokenizer)
    banked.fill(REPORTS * 2, tokenise=tokenise, folder=tmp_path, progress=False)
    monkeypatch.setattr(banked, "_encode", no_encode)
    for tokens in (report, some):
        assert torch.equal(computing.word_features(tokens), banked.word_features(tokens))
        assert torch.equal(computing.sentence_features(tokens), banked.sentence_features(tokens))
    longer = {k: torch.nn.functional.pad(getattr(report, k), (0, 9), value=-1) for k in ("word", "sentence")}
    longer = replace(report, words=torch.nn.functional.pad(report.words, (0, 9), value=report.pad), **longer)
    assert torch.equal(banked.word_features(longer)[:, :-9], banked.word_features(report))


def test_what_the_bank_lacks_is_computed(tiny: FrozenText, tmp_path: Path) -> None:
    tokenise = Tokeniser(tiny.tokenizer)
    report = tokenise(REPORTS)
    words, sentences = tiny.word_features(report), tiny.sentence_features(report)
    tiny.fill(REPORTS[:2], tokenise=tokenise, folder=tmp_path, progress=False)
    assert torch.equal(tiny.word_features(report), words)
    assert torch.equal(tiny.sentence_features(report), sentences)
    tiny.fill(REPORTS[1:], tokenise=tokenise, folder=tmp_path, progress=False)  # a second corpus joins
    tiny._encode = no_encode
    assert torch.equal(tiny.word_features(report), words)
    assert torch.equal(tiny.sentence_features(report), sentences)


def test_masked_words_never_come_from_the_bank(tiny: FrozenText, tmp_path: Path) -> None:
    tokenise = Tokeniser(tiny.tokenizer)
    tiny.fill(REPORTS, tokenise=tokenise, folder=tmp_path, progress=False)
    report = tokenise(REPORTS)
    for features in tmp_path.rglob("*.npy"):
        np.save(features, np.zeros_like(np.load(features)))
    masked = report.words.clone()
    masked[:, 1] = tiny.mask_id
    assert torch.equal(tiny(masked), load_text("tiny")(masked))
    assert not torch.equal(tiny(masked), tiny(report.words))


@pytest.mark.parametrize("which", [0, 1])
def test_colliding_hashes_do_no_harm(
    which: int, tiny: FrozenText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = ["Nodule left.", "Left nodule.", "Heart left nodule."]  # the first two have the same ids in another order
    tokenise = Tokeniser(tiny.tokenizer)
    report = tokenise(reports)
    words = tiny.word_features(report)
    bases = bank.BASES.copy()
    bases[which] = 1  # then the hash is the sum of the ids
    monkeypatch.setattr(bank, "BASES", bases)
    tiny.fill(reports, tokenise=tokenise, folder=tmp_path, progress=False)
    assert torch.equal(tiny.word_features(report), words)


def test_fingerprints_against_whole_numbers() -> None:
    ids = np.array([[5, 6, 7, 0, 0], [5, 7, 6, 0, 0], [5, 6, 7, 8, 0]])
    found = bank.fingerprints(ids, pad=0)
    assert (found == bank.fingerprints(np.pad(ids, ((0, 0), (0, 3))), pad=0)).all()
    assert len(np.unique(found[:, 0])) == len(np.unique(found[:, 1])) == 3
    bases = [int(b) for b in bank.BASES]
    for row, pair in zip(ids.tolist(), found.tolist(), strict=True):
        for k, value in enumerate(pair):
            h = sum((i + 1) * bases[k] ** (p + 1) for p, i in enumerate(row) if i) % 2**64
            h = (h ^ (h >> 31)) * bases[1 - k] % 2**64
            assert value == h ^ (h >> 29)


def files(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*.npy")}


@pytest.mark.parametrize("damage", ["truncate", "empty", "shape", "remove"])
def test_damaged_features_are_made_again(damage: str, tiny: FrozenText, tmp_path: Path) -> None:
    tokenise = Tokeniser(tiny.tokenizer)
    tiny.fill(REPORTS, tokenise=tokenise, folder=tmp_path, progress=False)
    before = files(tmp_path)
    for path in tmp_path.rglob("*.npy"):
        content = path.read_bytes()
        path.unlink()
        if damage == "shape":
            np.save(path, np.zeros((1, 3), dtype=np.float16))
        elif damage != "remove":
            path.write_bytes(content[: len(content) // 2] if damage == "truncate" else b"")
    load_text("tiny").fill(REPORTS, tokenise=tokenise, folder=tmp_path, progress=False)
    assert files(tmp_path) == before


SLOW_FILL = """
import sys, time
from pathlib import Path
from mg3d.encoders import bank
from mg3d.encoders.text import load_text
from mg3d.text import Tokeniser
bank.SHARD_BYTES = 1 << 13
text = load_text("tiny")
encode = text._encode
text._encode = lambda ids, **how: (time.sleep(0.05), encode(ids, **how))[1]
reports = [f"A nodule of {i} mm is seen. The heart is {j} cm large." for i in range(12) for j in range(10)]
text.fill(reports, tokenise=Tokeniser(text.tokenizer), folder=Path(sys.argv[1]), progress=False)
"""


def test_a_killed_fill_ends_with_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen([sys.executable, "-c", SLOW_FILL, str(killed)]) as process:
        while len(files(killed)) < 3 and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    left = files(killed)
    stamps = {path: path.stat().st_mtime_ns for path in killed.rglob("*.npy")}

    monkeypatch.setattr(bank, "SHARD_BYTES", 1 << 13)
    reports = [f"A nodule of {i} mm is seen. The heart is {j} cm large." for i in range(12) for j in range(10)]
    for folder in (whole, killed):
        text = load_text("tiny")
        text.fill(reports, tokenise=Tokeniser(text.tokenizer), folder=folder, progress=False)
    assert files(killed) == files(whole)
    assert 3 <= len(left) < len(files(whole))
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())  # what was done is not done again
