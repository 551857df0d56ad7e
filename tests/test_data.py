"""Corpora: the right bytes or a clear error, and windows of a text."""

import hashlib
from pathlib import Path

import pytest
import torch

from nanogrpo import data
from nanogrpo.data import alphabet, load_corpus, split_corpus, windows
from nanogrpo.errors import CorpusError

TEXT = "First Citizen:\nSpeak, speak.\n"
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def corpus(monkeypatch, tmp_path):
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    monkeypatch.setitem(data.CORPORA, "play", ("play/input.txt", "https://example.invalid/play.txt", sha256))
    monkeypatch.setenv("NANOGRPO_DATA", str(tmp_path))
    (tmp_path / "play").mkdir()
    return tmp_path / "play" / "input.txt"


def test_a_local_copy_is_read_where_the_variable_points(corpus):
    corpus.write_text(TEXT)
    assert load_corpus("play") == TEXT


def test_a_copy_with_another_checksum_is_refused(corpus):
    corpus.write_text(TEXT + "!")
    with pytest.raises(
        CorpusError, match="input.txt has sha256 .* delete it and get it from https://example"
    ):
        load_corpus("play")


def test_a_missing_copy_says_where_it_was_looked_for(corpus):
    with pytest.raises(CorpusError, match="cannot read .*input.txt.*unset NANOGRPO_DATA"):
        load_corpus("play")


@pytest.mark.parametrize("failure", [ConnectionError("no route"), ValueError("hash does not match")])
def test_without_a_network_the_error_says_what_to_do(corpus, monkeypatch, failure):
    monkeypatch.delenv("NANOGRPO_DATA")

    def retrieve(*args, **options):
        raise failure

    monkeypatch.setattr(data.pooch, "retrieve", retrieve)
    with pytest.raises(CorpusError, match="play/input.txt and set NANOGRPO_DATA"):
        load_corpus("play")


def test_a_download_is_checked_cached_and_shows_its_progress(corpus, monkeypatch):
    monkeypatch.delenv("NANOGRPO_DATA")
    corpus.write_text(TEXT)
    seen = []
    monkeypatch.setattr(data.pooch, "retrieve", lambda *a, **o: seen.append((a, o)) or str(corpus))
    assert load_corpus("play") == TEXT
    (address, known_hash, name, folder), options = seen[0]
    assert address == "https://example.invalid/play.txt" and known_hash.startswith("sha256:")
    assert name == "play.txt" and "nanogrpo" in str(folder) and options == {"progressbar": True}


def test_an_unknown_corpus_is_named_with_those_that_are_known():
    with pytest.raises(CorpusError, match="no corpus 'hamlet'; choose one of tinyshakespeare"):
        load_corpus("hamlet")


@pytest.mark.skipif(not SHARED.exists(), reason="no local copy of tiny Shakespeare beside the repository")
def test_tiny_shakespeare_is_what_it_should_be(monkeypatch):
    monkeypatch.setenv("NANOGRPO_DATA", str(SHARED))
    text = load_corpus()
    assert len(text) == 1115394 and alphabet(text).vocab_size == 65 + 2
    train, held_out = split_corpus(text)
    assert train + held_out == text and len(held_out) == round(len(text) * 0.1)


def test_targets_stand_one_later_in_the_text():
    ids = torch.arange(50)
    inputs, targets = windows(ids, batch_size=200, length=8, generator=torch.Generator().manual_seed(0))
    assert inputs.shape == (200, 8) and torch.equal(targets, inputs + 1)
    assert inputs.min() == 0 and targets.max() == 49, "the first and the last character must be reachable"
