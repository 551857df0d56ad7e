"""Each list of CONTRIBUTING.md, followed on a copy of the repository: its files are enough, and few."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
MOST = {  # files that a change may touch, tests included
    "Find a formula": 3,
    "Change the KL estimator": 2,
    "Add a loss variant": 4,
    "Add a task": 2,
    "Add a check": 2,
    "Add a lab": 4,
    "Add a widget": 4,
    "Add a chapter": 3,
}


def steps(title: str) -> list[str]:
    """The numbered lines of a section."""
    section = TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^\d+\. (.+)$", section, re.MULTILINE)


def files(title: str, **names: str) -> set[str]:
    """The file that each line of a section begins with, with the names put in."""
    found = {match[1] for step in steps(title) if (match := re.match(r"`([^`]+\.\w+)`", step))}
    for placeholder, name in names.items():
        found = {re.sub(rf"\b(?<![A-Z]){placeholder}\b|(?<=_){placeholder}\b", name, file) for file in found}
    return found


def test_every_list_is_short_enough():
    assert re.findall(r"^## ((?:Add|Change|Find) .+)$", TEXT, re.MULTILINE) == list(MOST)
    for title, most in MOST.items():
        assert 1 <= len(steps(title)) <= most, title


def test_what_is_named_is_there():
    known = [
        name for title in MOST for step in steps(title) for name in re.findall(r"`([^`\s]+/[^`\s]+)`", step)
    ]
    gone = [name for name in known if not re.search(r"NAME|labN", name) and not (ROOT / name).exists()]
    assert known and not gone


class Copy:
    """A copy of the repository's files, what was changed in it, and its own tests."""

    def __init__(self, folder: Path):
        self.folder, self.touched = folder, set()
        git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
        if listed.returncode:
            pytest.skip("package: not a git checkout, so it cannot be copied file by file")
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self.run("git", "init", "-q")
        self.run("git", "add", "-A")

    def write(self, name: str, text: str) -> None:
        """A file, new or changed."""
        self.touched.add(name)
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")

    def edit(self, name: str, old: str, new: str) -> None:
        """Change one place of a file."""
        text = (self.folder / name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name} has {text.count(old)} times {old!r}; this test must follow"
        self.write(name, text.replace(old, new))

    def append(self, name: str, text: str) -> None:
        self.write(name, (self.folder / name).read_text(encoding="utf-8") + text)

    def run(self, *command: str) -> str:
        variables = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=variables)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def changed(self) -> set[str]:
        """Files that are not as they were copied, or new; those that git ignores are none."""
        listed = self.run("git", "ls-files", "-z", "--modified", "--others", "--exclude-standard")
        return set(filter(None, listed.split("\0")))

    def python(self, *arguments: str) -> str:
        return self.run(sys.executable, *arguments)

    def test(self, *arguments: str) -> None:
        """Some tests of the copy, and the style of what was changed."""
        self.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
        if shutil.which("ruff", path=Path(sys.executable).parent):
            checked = [name for name in self.touched if name.endswith((".py", ".ipynb"))]
            self.python("-m", "ruff", "check", "--no-cache", *checked)


WANTED = {  # what a newcomer looks for: the function, and a part of its formula
    "the group advantage": (
        "group_advantages",
        r"\frac{r_i - \mathrm{mean}(r_1..r_G)}{\mathrm{std}(r_1..r_G)",
    ),
    "RLOO": ("leave_one_out", r"r_i - \frac{1}{G-1}\sum_{j \ne i} r_j"),
    "GAE": ("gae", r"\delta_t = r_t + \gamma V_{t+1} - V_t"),
    "k3": ("kl_k3", r"e^{\delta} - 1 - \delta"),
    "the clip": ("clipped_surrogate", r"\min\left(\rho A"),
    "Dr. GRPO's mean": ("aggregate", r"\frac{1}{B L_{\max}}"),
    "GSPO's ratio": ("importance_ratio", r"\exp\Big(\frac1{|o_i|} \sum_t \log \rho_{it}\Big)"),
    "truncated importance sampling": ("sampler_weights", r"\frac{\pi_{\mathrm{old}}(o_{it})}{\mu(o_{it})}"),
}


@pytest.mark.parametrize("what", WANTED)
def test_a_formula(what):
    """The page has it; the function and the test that the page names are where it says."""
    function, part = WANTED[what]
    page = "book/identities.md"
    entry = next(
        e for e in (ROOT / page).read_text(encoding="utf-8").split("{py:func}") if f".{function}`." in e
    )
    module, file = re.match(r"`~nanogrpo\.(\w+)\.", entry)[1], re.search(r"in `(tests/\w+\.py)`", entry)[1]
    assert part in entry and len({page, f"nanogrpo/{module}.py", file}) <= MOST["Find a formula"]
    assert files("Find a formula") == {page, "nanogrpo/advantages.py", file}
    code = (ROOT / "nanogrpo" / f"{module}.py").read_text(encoding="utf-8")
    body = code.split(f"\ndef {function}(")[1].split('"""')[1]
    assert part in " ".join(body.split()) and "When it is wrong:" in body
    assert f"\ndef test_formula_of_{function}(" in (ROOT / file).read_text(encoding="utf-8")


@pytest.fixture
def repository(tmp_path):
    return Copy(tmp_path)


CUT_OFF = '''
def kl_k4(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""The estimate k3 of a gap that counts up to 2 nats: bounded where the policy has dropped a token.

    .. math:: k_4 = e^{d} - 1 - d, \\qquad d = \\mathrm{clamp}(\\delta, -2, 2)

    An example, and no paper's. Arguments, result and errors as for :func:`kl_k1`.

    When it is wrong: as the number to report.
    """
    delta = _delta(logprobs, ref_logprobs, mask).clamp(-2, 2)
    return torch.expm1(delta) - delta


KL_ESTIMATORS = {'''
CUT_OFF_TEST = """

def test_formula_of_kl_k4():
    from nanogrpo.grpo import GRPOConfig
    from nanogrpo.kl import kl_k4

    logprobs = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    found = kl_k4(logprobs, torch.tensor([1.0, 2.0, 9.0], dtype=torch.float64))
    right = [math.e - 2, math.exp(2) - 3, math.exp(2) - 3]
    close(found, torch.tensor(right, dtype=torch.float64), "cut off at 2")
    assert torch.autograd.grad(found.sum(), logprobs)[0][2] == 0
    assert GRPOConfig(max_new_tokens=3, kl_estimator="k4").estimator == "k4"
"""


@pytest.mark.thorough
def test_another_kl_estimator(repository):
    repository.edit("nanogrpo/kl.py", "\nKL_ESTIMATORS = {", CUT_OFF)
    repository.edit("nanogrpo/kl.py", '"k3": kl_k3}', '"k3": kl_k3, "k4": kl_k4}')
    repository.edit("nanogrpo/kl.py", '"k2", "k3"]', '"k2", "k3", "k4"]')
    repository.append("tests/test_kl.py", CUT_OFF_TEST)
    assert repository.touched == files("Change the KL estimator")
    repository.python("tests/formulas_page.py")
    assert repository.changed() - repository.touched == {"book/identities.md"}, "by that command, not by hand"
    tests = ("kl", "losses", "reachable", "museum", "identities", "cheat_sheet")
    repository.test(*[f"tests/test_{name}.py" for name in tests])
    assert "k4" in repository.python("-m", "nanogrpo", "grpo", "--help")


SOFT = '''
def soft_surrogate(ratio: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    r"""A gate in place of the clip: the gradient fades with the distance of the ratio from 1.

    .. math:: \\ell = -\\sigma(4 (\\rho - 1))\\, A

    An example, and no paper's.

    When it is wrong: where a hard bound on the ratio is wanted.
    """
    return torch.where(mask, -torch.sigmoid(4 * (ratio - 1)) * _constant(advantages, mask), 0.0)


# What is made of the ratio'''
SOFT_TEST = """

def test_formula_of_soft_surrogate():
    A, mask = torch.tensor([2.0], dtype=torch.float64), torch.tensor([[True]])
    found = losses.soft_surrogate(torch.tensor([[1.5]], dtype=torch.float64), A, mask)
    close(found, [[-2 / (1 + math.exp(-2))]], "sigmoid of 4 times a half")


def test_the_soft_surrogate_has_the_slope_of_the_policy_gradient_at_a_ratio_of_1():
    from nanogrpo.grpo import GRPOConfig

    logprobs = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    A = torch.tensor([1.0, -2.0], dtype=torch.float64)
    options = {"surrogate": "soft", "aggregation": "sequence_sum"}
    loss, _ = grpo_loss(logprobs, logprobs.detach(), None, A, mask, **options)
    close(gradient(loss, logprobs), -A[:, None] * mask / 2, "at 1 it is REINFORCE")
    assert GRPOConfig(max_new_tokens=3, **options).surrogate == "soft"
"""


@pytest.mark.thorough
def test_a_soft_clip_from_end_to_end(repository):
    change = repository.edit
    change("nanogrpo/losses.py", "\n# What is made of the ratio", SOFT)
    row = '    "soft": lambda ratio, logprobs, A, mask, *rest: soft_surrogate(ratio, A, mask),\n'
    change("nanogrpo/losses.py", "SURROGATES = {\n", "SURROGATES = {\n" + row)
    change(
        "nanogrpo/step.py",
        'surrogate: Literal["clip", ',
        'surrogate: Literal["soft", "clip", ',
    )
    row = '        "clip": lambda: clipped_surrogate(ratio, advantages, mask, 0.1, 0.3),\n'
    soft = row.replace("clipped", "losses.soft").replace('"clip"', '"soft"').replace(", 0.1, 0.3", "")
    change("tests/test_losses.py", row, row + soft)
    repository.append("tests/test_losses.py", SOFT_TEST)
    assert repository.touched == files("Add a loss variant")
    repository.python("tests/formulas_page.py")
    assert repository.changed() - repository.touched == {"book/identities.md"}, "by that command, not by hand"
    tests = ("losses", "reachable", "defaults", "museum", "identities", "cheat_sheet")
    repository.test(*[f"tests/test_{name}.py" for name in tests])
    assert "soft" in repository.python("-m", "nanogrpo", "grpo", "--help")


REVERSE = '''
class Reverse(Task):
    """A word is answered by its letters from the end to the beginning."""

    name = "reverse"
    tokenizer = CharTokenizer("abc=")
    max_new_tokens = 4

    def split(self) -> tuple[list[Problem], list[Problem]]:
        """All words of three letters: (training, held out)."""
        words = [a + b + c for a in "abc" for b in "abc" for c in "abc"]
        rows = [{"prompt": f"{word}=", "answer": word[::-1]} for word in words]
        return rows[::2], rows[1::2]


def _row('''


@pytest.mark.thorough
def test_a_task(repository):
    repository.edit("nanogrpo/tasks.py", "\ndef _row(", REVERSE)
    repository.edit("nanogrpo/tasks.py", "(Addition(), Lines())", "(Addition(), Lines(), Reverse())")
    repository.append(
        "tests/test_tasks.py",
        "\n\ndef test_a_word_is_turned_around():\n"
        "    rows = sum(find('reverse').split(), [])\n"
        "    assert len(rows) == 27 and {'prompt': 'abc=', 'answer': 'cba'} in rows\n",
    )
    assert repository.touched == files("Add a task")
    tests = ("tasks", "main", "options", "reachable", "defaults")
    repository.test(*[f"tests/test_{name}.py" for name in tests], "-k", "not lines")
    assert "lines, reverse" in repository.python("-m", "nanogrpo", "grpo", "--help")
    short = ["--task", "reverse", "--max-steps", "2"]
    repository.python("-m", "nanogrpo", "sft", *short, "--out", "runs/start")
    repository.python("-m", "nanogrpo", "grpo", *short, "--model", "runs/start", "--out", "runs/run")
    assert repository.changed() == repository.touched


CHECK = '''"""A check of the fine for long completions. See :mod:`nanogrpo.teach.check`."""

from nanogrpo.advantages import overlong_penalty
from nanogrpo.teach.checks.compare import call, compare
from nanogrpo.teach.checks.draw import Draw
from nanogrpo.teach.checks.registry import register


@register("advantages.overlong_penalty")
def check_overlong_penalty(implementation, draw: Draw) -> None:
    """``f(lengths, max_length, buffer)`` with (B,) lengths: the fine of each, from 0 to -1."""
    lengths = draw.integers(60, 120, 20)
    right = overlong_penalty(lengths, 100, 20)
    wrong = [(-right, "The sign is reversed: yours is a bonus.")]
    compare("the fine", call(implementation, lengths, 100, 20), right, wrong)
'''


@pytest.mark.thorough
def test_a_check(repository):
    repository.write("nanogrpo/teach/checks/overlong.py", CHECK)
    right = '    ("check_overlong_penalty", lambda n, L, c: ((L - c - n) / c).clamp(-1, 0)),\n'
    wrong = '    ("check_overlong_penalty", lambda n, L, c: n / L, "expected"),\n'
    wrong += '    ("check_overlong_penalty", lambda n, L, c: ((n - L + c) / c).clamp(0, 1), "reversed"),\n'
    for name, rows in (("RIGHT", right), ("WRONG", wrong)):
        repository.edit("tests/test_check.py", f"\n{name} = [\n", f"\n{name} = [\n{rows}")
    assert repository.touched == files("Add a check", NAME="overlong") | {"tests/test_check.py"}
    repository.test("tests/test_check.py", "tests/test_museum.py")


@pytest.mark.thorough
def test_a_lab(repository):
    source = (ROOT / "book/labs/source/lab2/lab2.ipynb").read_text(encoding="utf-8")
    repository.write(
        "book/labs/source/lab7/lab7.ipynb", source.replace("Lab 2:", "Lab 7:").replace("lab2", "lab7")
    )
    repository.write("tests/labs/lab7.py", (ROOT / "tests/labs/lab2.py").read_text(encoding="utf-8"))
    repository.edit(
        "_toc.yml",
        "      - file: book/labs/lab6\n",
        "      - file: book/labs/lab6\n      - file: book/labs/lab7\n",
    )
    assert repository.touched == files("Add a lab", labN="lab7")
    repository.python("book/labs/release.py")
    # `make labs-grade` runs all solutions; its table gets the row that it would write.
    table = repository.folder / "book" / "labs" / "graded.md"
    row = next(line for line in table.read_text(encoding="utf-8").splitlines() if "lab2.ipynb" in line)
    table.write_text(
        table.read_text(encoding="utf-8") + row.replace("Lab 2", "Lab 7").replace("lab2", "lab7") + "\n"
    )
    repository.test("tests/test_labs.py", "-k", "lab7 or spares", "-m", "not slow and not thorough")
    repository.test("tests/test_guide.py", "tests/test_environment.py")


WIDGET = {
    "nanogrpo/show/widgets/coin.py": '''"""How often a coin shows heads in all of some throws."""

import anywidget
import traitlets

from nanogrpo.show.widgets import script


def all_heads(p: float, throws: int) -> float:
    r"""Probability of heads only, :math:`p^n`."""
    return p**throws


class CoinExplorer(anywidget.AnyWidget):
    """Turn p, the probability of heads, and see how often ten throws show nothing else."""

    _esm = script("coin")
    p = traitlets.Float(0.9).tag(sync=True)
''',
    "nanogrpo/show/widgets/coin.js": """// The arithmetic of coin.py, and its drawing.

export const allHeads = (p, throws) => p ** throws;

function render({ model, el }) {
  const words = make("output", { class: "ng-readout", "aria-live": "polite" });
  const slider = control(model, "p", "p, probability of heads", { min: 0, max: 1, step: 0.01 }).label;
  el.append(make("div", { class: "ng", role: "group", "aria-label": "A coin" },
    make("style", {}, STYLE), slider, words));
  return redraw(model, ["p"], () => {
    words.textContent = `Ten heads: ${fixed(allHeads(model.get("p"), 10))}.`;
  });
}

export default { render };
""",
    "tests/test_widgets_coin.py": '''"""The coin explorer: script and package agree, and its control works."""

import pytest
from widgetcheck import WIDE, call, mount

from nanogrpo.show.widgets.coin import CoinExplorer, all_heads


def test_the_script_computes_what_the_package_computes(browser):
    rows = [(0.0, 3), (0.5, 2), (0.9, 10), (1.0, 7)]
    assert call(browser, "coin", "allHeads", rows) == pytest.approx([all_heads(*row) for row in rows])


def test_the_control_changes_what_is_said(browser):
    with browser.new_context(viewport=WIDE) as context:
        page = mount(context, [CoinExplorer()])
        page.get_by_label("p, probability").fill("0.5")
        assert page.locator("output").inner_text() == "Ten heads: 0.001." and page.trouble == []
''',
}


@pytest.mark.thorough
def test_a_widget(repository):
    for name, text in WIDGET.items():
        repository.write(name, text)
    assert repository.touched == files("Add a widget", NAME="coin")
    repository.test("tests/test_widgets_coin.py", "tests/test_imports.py")
    repository.test("tests/test_book.py", "-k", "widgets or module", "-m", "not slow and not thorough")
    eslint = ROOT / "node_modules" / ".bin" / "eslint"
    if eslint.exists():
        (repository.folder / "node_modules").symlink_to(ROOT / "node_modules")
        repository.run(str(eslint), "nanogrpo/show/widgets")


END = """## Summary

- One.
- Two.
- Three.

## Exercises

```{exercise-start} A coin
:label: ex-coin
```
Throw it.
```{exercise-end}
```

```{solution-start} ex-coin
:class: dropdown
```
It shows heads, or else it shows tails, or its edge.
```{solution-end}
```

## Further reading

Nothing."""


@pytest.mark.thorough
def test_a_chapter(repository):
    notebook = json.loads((ROOT / "book/quickstart.ipynb").read_text(encoding="utf-8"))
    title, setup = notebook["cells"][:2]
    title["source"] = "".join(title["source"]).replace("quickstart", "coins")
    setup["source"] = "".join(setup["source"]).split("import inspect")[0] + "import torch"

    def markdown(name, text):
        return {"cell_type": "markdown", "id": name, "metadata": {}, "source": text}

    aims = (
        "Afterwards you can\n\n- throw,\n- count,\n- divide.\n\n**You need** a coin. "
        "**It takes** 5 minutes to read, and a second to run."
    )

    def figure(name):
        alt, caption = (
            "A line that rises from left to right.",
            "A line from zero to two, which nothing bends.",
        )
        shown = {"image": {"alt": alt}, "figure": {"name": f"fig-coins-{name}", "caption": caption}}
        source = "import matplotlib.pyplot as plt\n\nplt.plot(torch.arange(3))\nplt.show()"
        return {**setup, "id": name, "metadata": {"mystnb": shown}, "source": source}

    question = markdown("question", "## The question\n\nHow many?")
    figures = [figure("heads"), figure("tails")]
    notebook["cells"] = [title, markdown("aims", aims), setup, question, *figures, markdown("end", END)]
    repository.write("book/coins.ipynb", json.dumps(notebook, indent=1))
    repository.edit(
        "_toc.yml",
        "      - file: book/sft\n",
        "      - file: book/sft\n      - file: book/coins\n",
    )
    repository.write(
        "tests/test_chapter_coins.py",
        '"""Three ones are three."""\n\n\ndef test_it():\n    assert 1 + 1 + 1 == 3\n',
    )
    assert repository.touched == files("Add a chapter", NAME="coins")
    repository.python("book/_ext/execute.py", "book/coins.ipynb")
    repository.test("tests/test_chapter_coins.py", "tests/test_environment.py")
    repository.test("tests/test_book.py", "-k", "coins and stored", "-m", "not slow and not thorough")
    repository.test("tests/test_guide.py", "-k", "coins")
    repository.test("tests/test_map.py", "-k", "coins", "-m", "not slow and not thorough")
