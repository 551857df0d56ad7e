"""Lines of the plays, and the hidden judge: what a reader would say by eye, the code says too."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogrpo import plays, preferences
from nanogrpo.data import alphabet, split_corpus
from nanogrpo.errors import PairError
from nanogrpo.model import GPT, GPTConfig
from nanogrpo.plays import MAX_CHARS, Judge, first_lines, words
from nanogrpo.rewards import call_reward

SCENE = "First Citizen:\nSpeak.\n\nAll:\nSpeak, speak!\nAnd more.\n\nROMEO:\nAy me! sad hours seem long.\n"
JUDGE = Judge(SCENE)


def test_a_pair_is_a_heading_and_the_first_line_only():
    assert first_lines(SCENE) == [
        ("First Citizen:\n", "Speak."),
        ("All:\n", "Speak, speak!"),
        ("ROMEO:\n", "Ay me! sad hours seem long."),
    ]


def test_long_lines_and_lines_that_the_split_cuts_are_left_out():
    assert [line for _, line in first_lines(SCENE, max_chars=13)] == ["Speak.", "Speak, speak!"]
    cut = SCENE.index("s seem long")
    assert [heading for heading, _ in first_lines(SCENE[:cut])] == ["First Citizen:\n", "All:\n"]
    assert first_lines(SCENE[cut:]) == [], "half a speech has no speaker"


def test_first_lines_of_the_corpus(corpus):
    training, held_out = (first_lines(part) for part in split_corpus(corpus))
    everything = first_lines(corpus, max_chars=1000)
    assert 5000 < len(training) < 6000 and 700 < len(held_out) < 900
    assert (len(training) + len(held_out)) / len(everything) == pytest.approx(7 / 8, abs=0.02)
    for heading, line in training + held_out:
        assert heading.endswith(":\n") and heading.count("\n") == 1
        assert 0 < len(line) <= MAX_CHARS and "\n" not in line


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("", 0),
        ("...!?", 0),
        ("Sad hours seem long.", 3),
        ("LONG hours; seem, sad", 3),
        ("hours hours hours hours", 1),
        ("Ay me, sad", 0),
        ("hours xx", 0),
        ("xx xx xx", -3),
        ("hoursseemlong", 0),
        ("hours hourz", 1),
        ("hours hourz hourz", 0),
    ],
)
def test_the_judge_counts_different_long_words_and_subtracts_unknown_ones(text, score):
    assert JUDGE.score(text) == score


@given(st.lists(st.text("hoursxyz ", max_size=8), max_size=8))
def test_words_that_the_plays_do_not_know_never_earn_anything(parts):
    text = " ".join(parts)
    unknown = [word for word in words(text) if word not in JUDGE.known]
    assert JUDGE.score(" ".join(unknown)) <= 0
    assert JUDGE.score(text) <= JUDGE.score(" ".join(word for word in words(text) if word in JUDGE.known))
    assert JUDGE.score(f"{text} {text}") <= JUDGE.score(text), "repetition must not pay"


def test_letters_are_counted_without_the_apostrophe():
    judge = Judge("We'll go; he'd come: o'er")
    assert words("We'll, he'd 'tis") == ["we'll", "he'd", "tis"]
    assert [judge.score(word) for word in ("we'll", "he'd", "o'er")] == [1, 0, 0]


def test_the_judge_is_a_reward_function():
    rewards = call_reward(JUDGE, [{"prompt": "All:\n", "answer": "?"}], ["Speak", "hours seem", "bzz"])
    assert rewards.tolist() == [1.0, 2.0, -1.0]


def test_every_line_of_the_plays_is_known_to_their_judge(corpus):
    judge = Judge(corpus)
    scores = judge([], [line for _, line in first_lines(corpus)])
    assert min(scores) == 0 and max(scores) <= MAX_CHARS / 5


# The recipes


@pytest.fixture(scope="module")
def chatter():
    """An untrained model and its tokenizer: it writes gibberish, but of many kinds."""
    torch.manual_seed(0)
    tokenizer = alphabet(SCENE)
    return GPT(GPTConfig(tokenizer.vocab_size, block_size=72, n_layer=1, n_head=1, n_embd=8)), tokenizer


HEADINGS = [heading for heading, _ in first_lines(SCENE)]


def test_pairs_are_two_different_completions_of_one_heading(chatter):
    pairs = preferences.sample_pairs(*chatter, HEADINGS, count=300, seed=0)
    assert len(pairs) == 300 and {prompt for prompt, _, _ in pairs} == set(HEADINGS)
    assert all(a != b for _, a, b in pairs) and len(set(pairs)) == 300
    assert max(len(a) for _, a, _ in pairs) <= plays.MAX_NEW_TOKENS
    assert pairs == preferences.sample_pairs(*chatter, HEADINGS, count=300, seed=0)
    assert pairs[:5] != preferences.sample_pairs(*chatter, HEADINGS, count=5, seed=1)


def test_a_model_that_always_writes_the_same_gives_no_pairs(chatter, monkeypatch):
    same = ["Ay."] * preferences.PROMPTS * preferences.GROUP_SIZE
    monkeypatch.setattr(preferences, "sample_texts", lambda *args, **options: same)
    with pytest.raises(PairError, match="two equal texts"):
        preferences.sample_pairs(*chatter, HEADINGS, count=1, seed=0)


def test_labels_follow_the_judge_up_to_noise():
    pairs = [("All:\n", "hours", "sad hours seem long"), ("All:\n", "Speak", "xx")] * 500
    cold, scores = preferences.judge_pairs(JUDGE, pairs, temperature=0.01, seed=0)
    assert {(p.chosen, p.rejected) for p in cold} == {("sad hours seem long", "hours"), ("Speak", "xx")}
    assert scores.tolist() == [[3, 1], [1, -1]] * 500
    warm, scores = preferences.judge_pairs(JUDGE, pairs, temperature=2.0, seed=0)
    for preference, (chosen, rejected) in zip(warm, scores.tolist(), strict=True):
        assert (JUDGE.score(preference.chosen), JUDGE.score(preference.rejected)) == (chosen, rejected)
    share = (scores[:, 0] > scores[:, 1]).double().mean().item()
    assert share == pytest.approx(1 / (1 + math.exp(-1)), abs=4 * 0.5 / 1000**0.5)
