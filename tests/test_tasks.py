"""Tasks: the two that are here, and a third, which is one class."""

import ast
import itertools
import json
import re
from pathlib import Path

import chaptercode
import pytest

from nanogrpo import grpo
from nanogrpo.errors import OptionError, RowError
from nanogrpo.grpo import GRPOConfig
from nanogrpo.job import folder_of, sft_command
from nanogrpo.plays import MAX_NEW_TOKENS
from nanogrpo.recipes import measure, new_policy, sft_until, summary, test_problems
from nanogrpo.rewards import call_reward, exact_match
from nanogrpo.sft import SFTConfig
from nanogrpo.tasks import TASKS, Addition, Task, find, usual
from nanogrpo.tokenizer import CharTokenizer

ROOT = Path(__file__).parents[1]
test_problems.__test__ = False  # a recipe, not a test


@pytest.mark.parametrize("digits", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_every_problem_is_right_fits_and_is_rewarded(digits):
    task = Addition(digits=digits, held_out=20)
    train, held_out = task.split()
    known, new = ({row["prompt"] for row in part} for part in (train, held_out))
    assert not known & new, "a held-out problem is trained on"
    assert len(known | new) == len(train) + len(held_out) == task.count and len(held_out) == 20
    for row in train[:200] + held_out:
        a, b = row["prompt"].rstrip("=").split("+")
        assert int(a) + int(b) == int(row["answer"])
        assert len(row["answer"]) + 1 <= task.max_new_tokens, f"no room for the end of {row['answer']}"
        assert len(row["prompt"]) + task.max_new_tokens == task.block_size
        task.tokenizer.encode(row["prompt"] + row["answer"])
    rewards = call_reward(exact_match, held_out, [row["answer"] for row in held_out])
    assert rewards.eq(1).all(), "the reference solution must earn the full reward"


def test_the_split_never_changes():
    assert Addition().split()[1][0] == Addition().split()[1][0]
    assert Addition().split()[1][:2] == [
        {"prompt": "60+44=", "answer": "104"},
        {"prompt": "28+90=", "answer": "118"},
    ]


@pytest.mark.parametrize(
    "options",
    [{"digits": 0}, {"digits": 4}, {"digits": "2"}, {"digits": 2.0}, {"held_out": 0}, {"held_out": None}]
    + [{"digits": 1, "held_out": 100}],
)
def test_absurd_options_are_refused(options):
    with pytest.raises(OptionError, match="must"):
        Addition(**options)


class Reverse(Task):
    """A third task: write a word from its end to its beginning."""

    name = "reverse"
    tokenizer = CharTokenizer("abc=")
    max_new_tokens = 4

    def split(self):
        words = ["".join(letters) for n in (1, 2, 3) for letters in itertools.product("abc", repeat=n)]
        rows = [{"prompt": f"{word}=", "answer": word[::-1]} for word in words]
        return rows[::2], rows[1::2]


def test_a_third_task_is_one_class(monkeypatch):
    monkeypatch.setitem(TASKS, "reverse", Reverse())
    task = find("reverse")
    training, held_out = task.split()
    assert task.block_size == 4 + 4 and task.examples()[5] == ("cb=", "bc")
    model = new_policy(task, 0)
    rows = list(sft_until(model, task, config=SFTConfig(max_steps=10, batch_size=4)))
    assert rows[-1]["step"] == 10 and "accuracy" in rows[-1]
    assert test_problems(task) == held_out[len(held_out) // 2 :], "half is watched where there are few"
    assert measure(model, task, test_problems(task), ks=(1, 2)).keys() == {
        "accuracy",
        "greedy",
        "pass@1",
        "pass@2",
    }
    assert summary(model, task).endswith(
        f"of the answers to {len(test_problems(task))} held-out problems are right"
    )
    config = GRPOConfig(task.max_new_tokens, group_size=2, prompts_per_step=2, max_steps=1)
    assert next(grpo.train(model, task.tokenizer, training, exact_match, config))["step"] == 1


NO_TASK = {  # words that are names of tasks, too
    "show/widgets/formula.py": {"lines"},  # of code
    "teach/checks/lab_loop.py": {"addition"},  # weights that ship
}


def texts(path):
    """Every text in a file's code; docstrings are none."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    documented = [n for n in nodes if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef) and n.body]
    docs = {id(n.body[0].value) for n in documented if isinstance(n.body[0], ast.Expr)}
    found = (n for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return [n.value for n in found if id(n) not in docs]


def test_names_of_tasks_stand_in_the_table_of_tasks_alone():
    package, names = ROOT / "nanogrpo", "addition|lines"  # a task of yours may have a word of many uses
    assert set(names.split("|")) <= set(TASKS)
    for path in sorted(package.rglob("*.py")):
        place = str(path.relative_to(package))
        core = path.parent == package  # where nothing but tasks is called so, a name within a text counts
        named = re.compile(rf"\b({names})\b" if core else rf"({names})\Z")
        found = {
            match[1] for text in texts(path) if (match := named.search(text) if core else named.match(text))
        }
        assert place == "tasks.py" or found == NO_TASK.get(place, set()), f"{place} names a task"


def test_the_first_task_of_its_kind_is_the_usual_one(monkeypatch):
    monkeypatch.setattr("nanogrpo.tasks.TASKS", {"reverse": Reverse(), **TASKS})
    assert usual().name == "reverse" and usual(learned_reward=True).name == "lines"
    assert folder_of("grpo", usual()) == "runs/grpo" and folder_of("rm", find("lines")) == "runs/rm"
    assert folder_of("grpo", find("addition")) == "runs/grpo-addition"
    assert sft_command(usual()) == "python -m nanogrpo sft"
    assert sft_command(find("addition")) == "python -m nanogrpo sft --task addition"


class Long(Reverse):
    """Words of eight letters, whose answers are longer than those of a sum."""

    max_new_tokens = 9

    def split(self):
        words = ["".join(letters) for letters in itertools.product("ab", repeat=8)]
        rows = [{"prompt": f"{word}=", "answer": word[::-1]} for word in words]
        return rows[::2], rows[1::2]


def test_the_quickstart_s_code_cuts_no_answer_of_a_third_task():
    task = Long()
    guesses = chaptercode.chapter("quickstart").guesses
    guesses.__globals__.update(task=task, policy=new_policy(task, 0), problems=test_problems(task))
    lengths = [len(text) for text in guesses()]
    assert len(lengths) == 8 and 4 < max(lengths) <= task.max_new_tokens


OWN_ROOM = {"sft": {"60", "63"}, "zero-variance": {"2"}}  # running text; a task of the chapter's own


def test_what_a_reader_copies_takes_the_room_for_an_answer_from_the_task():
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        if re.search(r"^(task|TASK) = ", code, re.MULTILINE):
            found = set(re.findall(r"(?<![.\w])max_(?:new_tokens|completion_length)\W{1,4}(\d+)", code))
            assert found == OWN_ROOM.get(path.stem, set()), f"{path.stem} has a number where its task has one"
    for path in [ROOT / "README.md", *(ROOT / "book").glob("*.md"), *(ROOT / "book").glob("*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"`(?:GRPO|PPO)Config\((?:max_new_tokens=)?\d", text), (
            f"{path.name} has a number"
        )


def test_what_is_no_task_is_refused(monkeypatch):
    for name in ("Addition", "", "plays", "tinyshakespeare"):
        with pytest.raises(OptionError, match=f"unknown; choose one of {', '.join(TASKS)}$"):
            find(name)
    with pytest.raises(TypeError, match="abstract"):
        type("Half", (Task,), {"name": "half"})()


def test_lines_are_headings_and_what_is_said_first(monkeypatch):
    text = "ANN:\nGood day.\n\nBOB:\nWell met, sir.\n\n" * 10
    monkeypatch.setattr("nanogrpo.tasks.load_corpus", lambda: text)
    task = TASKS["lines"]
    training, held_out = task.split()
    assert training[0] == {"prompt": "ANN:\n", "answer": "Good day."} and len(training + held_out) == 20
    assert task.examples()[1] == ("BOB:\n", "Well met, sir.")
    assert set(task.tokenizer.chars) == set(text) and task.block_size == 5 + MAX_NEW_TOKENS
    assert call_reward(task.rules["judge"], training[:1], ["Good day, sir.", "Gzz"]).tolist() == [1.0, -1.0]
    before = task.fingerprint()
    monkeypatch.setattr("nanogrpo.tasks.load_corpus", lambda: text + "More")
    assert before != task.fingerprint()


def test_the_fingerprint_is_the_datas():
    assert Addition().fingerprint() == Addition(2).fingerprint() != Addition(held_out=1999).fingerprint()


@pytest.mark.parametrize("rows", [[], [{"prompt": "a=", "answer": "a"}]])
def test_too_few_held_out_problems_are_no_test(rows):
    task = type("Short", (Reverse,), {"split": lambda self: ([{"prompt": "b=", "answer": "b"}], rows)})()
    with pytest.raises(RowError, match="at least two"):
        test_problems(task)
