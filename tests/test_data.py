"""Corpora: the right bytes or a clear error, and windows of a text."""

import hashlib
import http.server
import socket
import threading
import time

import pytest
import torch

from nanogrpo import data
from nanogrpo.data import alphabet, load_corpus, split_corpus, windows
from nanogrpo.errors import CorpusError

TEXT = "First Citizen:\nSpeak, speak.\n"


@pytest.fixture
def play(monkeypatch, tmp_path):
    sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
    addresses = ("https://example.invalid/play.txt", "https://example.invalid/mirror.txt")
    monkeypatch.setitem(data.CORPORA, "play", ("play/input.txt", addresses, sha256))
    monkeypatch.setenv("NANOGRPO_DATA", str(tmp_path))
    (tmp_path / "play").mkdir()
    return tmp_path / "play" / "input.txt"


def test_a_local_copy_is_read_where_the_variable_points(play):
    play.write_text(TEXT)
    assert load_corpus("play") == TEXT


def test_a_copy_with_another_checksum_is_refused(play):
    play.write_text(TEXT + "!")
    with pytest.raises(
        CorpusError, match="input.txt has sha256 .* delete it and get it from https://example"
    ):
        load_corpus("play")


def test_a_missing_copy_says_where_it_was_looked_for(play):
    with pytest.raises(CorpusError, match="cannot read .*input.txt.*unset NANOGRPO_DATA"):
        load_corpus("play")


@pytest.mark.parametrize("failure", [ConnectionError("no route"), ValueError("hash does not match")])
def test_without_a_network_the_error_says_what_to_do(play, monkeypatch, failure):
    monkeypatch.delenv("NANOGRPO_DATA")

    def retrieve(*args, **options):
        raise failure

    monkeypatch.setattr(data.pooch, "retrieve", retrieve)
    with pytest.raises(CorpusError, match="play/input.txt and set NANOGRPO_DATA") as caught:
        load_corpus("play")
    assert all(address in str(caught.value) for address in data.CORPORA["play"][1]), "tells what it tried"


def test_a_download_is_checked_cached_and_shows_its_progress(play, monkeypatch):
    monkeypatch.delenv("NANOGRPO_DATA")
    play.write_text(TEXT)
    seen = []
    monkeypatch.setattr(data.pooch, "retrieve", lambda *a, **o: seen.append((a, o)) or str(play))
    assert load_corpus("play") == TEXT
    (address, known_hash, name, folder), options = seen[0]
    assert address == "https://example.invalid/play.txt" and known_hash.startswith("sha256:")
    assert name == "play.txt" and "nanogrpo" in str(folder) and options["downloader"].progressbar is True


class Mirrors(http.server.BaseHTTPRequestHandler):
    """Good and bad addresses of one file, told apart by their path."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        kind, body = self.path.strip("/"), TEXT.encode()
        self.server.asked.append(kind)
        if kind == "silent":
            self.server.over.wait()
            return
        self.send_response(404 if kind == "missing" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind == "trickling":
            while not self.server.over.wait(0.2):
                self.wfile.write(b"F")
        elif kind == "torn":
            self.wfile.write(body[:5])
        else:
            self.wfile.write(b"!" + body[1:] if kind == "wrong" else body)


@pytest.fixture
def mirrors(monkeypatch, tmp_path):
    """A function that sets the addresses to those kinds of mirrors, and the server that they stand on."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirrors)
    server.asked, server.over, server.daemon_threads = [], threading.Event(), True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/"
    monkeypatch.setattr(data, "SILENCE", 1)
    monkeypatch.setattr(data, "PATIENCE", 2)
    monkeypatch.setattr(data.pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.delenv("NANOGRPO_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def choose(*kinds):
        addresses = tuple(
            nobody if kind == "down" else f"http://127.0.0.1:{server.server_port}/{kind}" for kind in kinds
        )
        sha256 = hashlib.sha256(TEXT.encode()).hexdigest()
        monkeypatch.setitem(data.CORPORA, "play", ("play/input.txt", addresses, sha256))
        return server

    yield choose
    server.over.set()
    server.shutdown()
    server.server_close()


BAD = ["down", "silent", "trickling", "wrong", "missing", "torn"]


@pytest.mark.slow
@pytest.mark.parametrize("bad", BAD)
def test_the_next_mirror_is_asked_when_one_fails(mirrors, bad):
    server = mirrors(bad, "good", "good")
    assert load_corpus("play") == TEXT
    assert server.asked == [bad, "good"][bad == "down" :], "the third is not needed"
    assert load_corpus("play") == TEXT
    assert server.asked[-2:] != ["good", "good"], "the second time it comes from the cache"


@pytest.mark.slow
def test_when_all_mirrors_fail_the_error_lists_them_within_seconds(mirrors):
    mirrors(*BAD)
    start = time.monotonic()
    with pytest.raises(CorpusError, match="set NANOGRPO_DATA to the folder") as caught:
        load_corpus("play")
    limit = len(BAD) * data.PATIENCE + 20  # a limit for a busy machine: the code's own is the first term
    assert time.monotonic() - start < limit
    assert all(address in str(caught.value) for address in data.CORPORA["play"][1])
    assert "(other bytes)" in str(caught.value) and "(ConnectionError)" in str(caught.value)


def test_a_mirror_that_fails_spoils_nothing_in_the_cache(mirrors, tmp_path):
    mirrors("wrong", "torn")
    with pytest.raises(CorpusError):
        load_corpus("play")
    assert list((tmp_path / "cache").iterdir()) == []
    mirrors("good")
    assert load_corpus("play") == TEXT


def test_all_addresses_together_take_seconds_and_not_minutes():
    for file, addresses, sha256 in data.CORPORA.values():
        hosts = {address.split("/")[2] for address in addresses}
        assert len(hosts) == len(addresses) >= 3, "mirrors on one host fail together"
        assert len(sha256) == 64 and file and len(addresses) * data.PATIENCE <= 30


def test_an_unknown_corpus_is_named_with_those_that_are_known():
    with pytest.raises(CorpusError, match="no corpus 'hamlet'; choose one of tinyshakespeare"):
        load_corpus("hamlet")


def test_tiny_shakespeare_is_what_it_should_be(corpus):
    text = corpus
    assert len(text) == 1115394 and alphabet(text).vocab_size == 65 + 2
    train, held_out = split_corpus(text)
    assert train + held_out == text and len(held_out) == round(len(text) * 0.1)


def test_targets_stand_one_later_in_the_text():
    ids = torch.arange(50)
    inputs, targets = windows(ids, batch_size=200, length=8, generator=torch.Generator().manual_seed(0))
    assert inputs.shape == (200, 8) and torch.equal(targets, inputs + 1)
    assert inputs.min() == 0 and targets.max() == 49, "the first and the last character must be reachable"
