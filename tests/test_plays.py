"""Lines of the plays, and the hidden judge: what a reader would say by eye, the code says too."""

import pytest

from nanogrpo.data import load_corpus, split_corpus
from nanogrpo.errors import CorpusError
from nanogrpo.plays import MAX_CHARS, Judge, first_lines, words
from nanogrpo.tasks import call_reward

SCENE = "First Citizen:\nSpeak.\n\nAll:\nSpeak, speak!\nAnd more.\n\nROMEO:\nAy me! sad hours seem long.\n"
JUDGE = Judge(SCENE)


@pytest.fixture(scope="module")
def corpus():
    try:
        return load_corpus()
    except CorpusError as error:
        pytest.skip(f"tiny Shakespeare is not here: {error}")


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
        ("hoursseemlong", -1),
    ],
)
def test_the_judge_counts_different_long_known_words_and_subtracts_unknown_ones(text, score):
    assert JUDGE.score(text) == score


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
