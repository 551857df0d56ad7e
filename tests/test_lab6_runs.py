"""The runs of lab 6: unlabelled, drawn from a course's name, and with answers that their curves bear out."""

import ast
import importlib
import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from nanogrpo.teach import diagnose
from nanogrpo.teach.check import CheckFailed

LABS = Path(__file__).resolve().parents[1] / "book" / "labs"
LETTERS = "ABCDEFG"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(LABS))
    try:
        return importlib.import_module("lab6_runs")
    finally:
        sys.path.remove(str(LABS))


@pytest.fixture(scope="module")
def lab():
    return nbformat.read(LABS / "source" / "lab6" / "lab6.ipynb", as_version=4)


def logs_of(notebook):
    """What stands in the lab's cell of data: the runs, and the setting of each letter."""
    source = next(cell.source for cell in notebook.cells if "json.loads" in cell.source)
    logs = json.loads(re.search(r'json\.loads\("""(.*?)"""\)', source, re.DOTALL).group(1))
    settings = re.search(r"^SETTINGS = (\{.*?\})$", source, re.MULTILINE | re.DOTALL).group(1)
    return logs, ast.literal_eval(settings)


def truth_of(notebook):
    """Letter: (part, steps), from the hidden tests."""
    found = {}
    for cell in notebook.cells:
        if match := re.search(r'check_answer\(diagnosis\["(.)"\], (".*?"), (\{.*\})\)', cell.source):
            found[match[1]] = ast.literal_eval(match[2]), ast.literal_eval(match[3])
    return found


def late(values):
    return sum(values[-5:]) / 5


def test_all_runs_are_there_and_whole(script, lab):
    logs, settings = logs_of(lab)
    assert set(logs) == {*script.SETTINGS, *LETTERS} and set(settings) == set(LETTERS)
    for metrics in logs.values():
        assert set(metrics) == set(script.METRICS) == set(diagnose.METRICS)
        assert all(len(values) == script.CONFIG["max_steps"] for values in metrics.values())


def test_the_answers_are_those_of_the_public_course(script, lab):
    truth, (_, settings) = truth_of(lab), logs_of(lab)
    assert {letter: (truth[letter][0], settings[letter]) for letter in LETTERS} == script.assignment(
        script.PUBLIC
    )
    assert set(script.PARTS) == set(diagnose.PARTS) == {part for part, _ in truth.values()}
    for part, shows in truth.values():
        assert bool(shows) == (part != "none")


def test_nothing_that_students_see_names_the_fault_of_a_run(lab):
    """Not the headings, not the order of the parts, not the data."""
    released = nbformat.read(LABS / "lab6.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in released.cells)
    assert "check_answer" not in text and "### BEGIN" not in text
    assert not re.search(r"\b[Rr]un [A-G]\b", text)
    for part, _ in truth_of(lab).values():
        assert part == "none" or len(re.findall(rf"^## Mend: `{part}` ", text, re.MULTILINE)) == 1
    order = re.findall(r"^## Mend: `(\w+)`", text, re.MULTILINE)
    assert order != [part for part, _ in truth_of(lab).values() if part != "none"]


def test_each_broken_run_shows_what_it_must(lab):
    (logs, settings), truth = logs_of(lab), truth_of(lab)
    run = {part: (logs[letter], logs[settings[letter]]) for letter, (part, _) in truth.items()}
    broken, right = run["clipped_surrogate"]
    assert late(right["reward"]) > 0.7 and late(broken["reward"]) < 0.2, "it unlearns"
    for part in ("completion_mask", "logprobs_of", "token_logprobs"):
        broken, right = run[part]
        assert broken["clipped"][0] > 0.03 and broken["kl"][0] > right["kl"][0] == 0, f"{part}: at once"
    assert late(run["kl_penalty"][0]["kl"]) > 3 * late(run["kl_penalty"][1]["kl"])
    assert max(run["importance_ratio"][0]["clipped"]) == 0 < run["importance_ratio"][1]["clipped"][0]


def test_departures_are_found_and_chance_is_none(script):
    right = [
        {name: [0.5 + 0.01 * ((n + t) % 3) for t in range(24)] for name in script.METRICS} for n in range(3)
    ]
    assert script.departures(right[1], right) == {}
    assert script.departures(right[0] | {"kl": [0.5] * 9 + [2.0] * 15}, right) == {"kl": 10}
    assert script.departures(right[0] | {"kl": [0.5] * 9 + [2.0] + [0.5] * 14}, right) == {}, (
        "one step is chance"
    )
    assert script.departures(right[0] | {"clipped": [0.0] * 24}, right)["clipped"] == 1, "it never moves"


def test_names_give_other_courses(script):
    drawn = [script.assignment(f"course {n}") for n in range(20)]
    assert len({str(one) for one in drawn}) == 20
    assert drawn == [script.assignment(f"course {n}") for n in range(20)]
    for one in drawn:
        assert sorted(part for part, _ in one.values()) == sorted(script.PARTS)
        assert all(setting in script.PARTS[part][1] for part, setting in one.values())
    by_letter = {letter: {one[letter][0] for one in drawn} for letter in LETTERS}
    assert all(len(parts) > 3 for parts in by_letter.values()), "no letter keeps its part"


RIGHT = {"part": "kl_penalty", "metric": "kl", "step": 3}


@pytest.mark.parametrize(
    "answer", [RIGHT, RIGHT | {"step": 5}, RIGHT | {"step": 1}, RIGHT | {"metric": "reward", "step": 14}]
)
def test_a_right_diagnosis(answer):
    diagnose.check_answer(answer, "kl_penalty", {"kl": 3, "reward": 10})


class Anything:
    """An answer that is equal to all."""

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    def __hash__(self):
        return hash("kl")


@pytest.mark.parametrize(
    "answer, says",
    [
        (RIGHT | {"part": "none", "metric": None, "step": None}, "Another part"),
        (RIGHT | {"part": "clipped_surrogate"}, "Another part"),
        (RIGHT | {"metric": "length"}, "does what right runs do"),
        (RIGHT | {"step": 6}, "another step"),
        (RIGHT | {"metric": "reward", "step": 3}, "another step"),
        (RIGHT | {"step": 0}, "whole number"),
        (RIGHT | {"step": 3.0}, "whole number"),
        (RIGHT | {"step": True}, "whole number"),
        (RIGHT | {"step": None}, "whole number"),
        (RIGHT | {"metric": "loss"}, "none of"),
        (RIGHT | {"metric": ["kl"]}, "none of"),
        (RIGHT | {"part": "everything"}, "none of"),
        (RIGHT | {"part": "none"}, "are None"),
        ({"part": None, "metric": None, "step": None}, "Nothing is written here yet"),
        ({"part": "kl_penalty"}, "has a part, a metric and a step"),
        ("kl_penalty", "has a part, a metric and a step"),
        (dict.fromkeys(("part", "metric", "step"), Anything()), "none of"),
        (RIGHT | {"metric": Anything()}, "none of"),
    ],
)
def test_a_wrong_diagnosis_is_refused(answer, says):
    with pytest.raises(CheckFailed, match=says):
        diagnose.check_answer(answer, "kl_penalty", {"kl": 3, "reward": 10})


def test_a_sound_run_is_sound_only_without_a_metric():
    sound = {"part": "none", "metric": None, "step": None}
    diagnose.check_answer(sound, "none", {})
    for wrong in (RIGHT, sound | {"metric": "kl"}, sound | {"step": 1}):
        with pytest.raises(CheckFailed):
            diagnose.check_answer(wrong, "none", {})


def test_writing_a_course_changes_data_answers_and_nothing_else(script, lab):
    logs, settings = logs_of(lab)
    logs = {name: {metric: values[::-1] for metric, values in run.items()} for name, run in logs.items()}
    parts = list(script.PARTS)
    answers = {
        letter: {"setting": "hot", "part": part, "from": {"kl": 2, "reward": 7} if part != "none" else {}}
        for letter, part in zip(LETTERS, parts, strict=True)
    }
    changed = nbformat.from_dict(json.loads(json.dumps(lab)))
    script.write(changed, logs, answers)
    assert logs_of(changed) == (logs, dict.fromkeys(LETTERS, "hot"))
    assert truth_of(changed) == {
        letter: (answer["part"], answer["from"]) for letter, answer in answers.items()
    }
    other = {now.id for now, then in zip(changed.cells, lab.cells, strict=True) if now != then}
    assert other <= {"lab6-03", "lab6-diagnosis", *(f"lab6-run-{letter.lower()}-tests" for letter in LETTERS)}
    namespace = {}
    exec(next(cell.source for cell in changed.cells if cell.id == "lab6-diagnosis"), namespace)
    for letter, (part, shows) in truth_of(changed).items():
        diagnose.check_answer(namespace["diagnosis"][letter], part, shows)


@pytest.mark.slow
def test_the_script_makes_them_again(script, lab):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    (logs, _), chance = logs_of(lab), script.number_of(script.PUBLIC) % 10_000
    try:
        first = script.start()
        for number, (letter, (part, setting)) in enumerate(script.assignment(script.PUBLIC).items()):
            if part in ("completion_mask", "kl_penalty", "none"):
                again = script.run(
                    first, setting, script.PARTS[part][0], seed=chance + script.RIGHT_SEEDS + number
                )
                for name, values in again.items():
                    assert values[:3] == pytest.approx(logs[letter][name][:3], abs=0.05), f"{letter}, {name}"
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_course_of_another_name_has_answers_that_hold(script):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        logs, answers = script.make("a course of this test")
    finally:
        torch.set_num_threads(threads)
    assert set(logs) == {*script.SETTINGS, *LETTERS}
    for answer in answers.values():
        diagnose.check_answer(script.model(answer), answer["part"], answer["from"])
