"""How nbval compares a chapter's stored output with a fresh one: words exactly, numbers as numbers.

A cell's tags say of which kind its output is (see ``tolerance.py``):

- none: mathematics. Numbers agree to one unit in the last printed digit.
- ``run``: numbers of a run. Each agrees within what rounding made of it when ``tests/spread.py`` ran the
  chapter several times, pooled over the numbers of the output that are printed alike.
- ``sampled``: text that a model sampled. What stands around it must agree (a table's labels); the cell
  asserts the rest.

Pictures are not compared. A table is compared as HTML alone, where each cell stands on a line of its own.
"""

import json
import re
from collections import defaultdict
from itertools import zip_longest
from pathlib import Path

import patience
from tolerance import NUMBER, run_margin, unit, value

SPREAD = Path(__file__).with_name("spread.json")
SKIPPED = ("application/vnd.jupyter.widget-view+json", "image/png", "image/jpeg", "image/svg+xml")


def fields(outputs, sanitize=str):
    """The texts of a cell's outputs, by kind: a stream's name, or the richest MIME type of a result."""
    found, streams = defaultdict(list), defaultdict(str)
    for output in outputs:
        if output["output_type"] == "stream":  # in pieces, as it happened to be sent
            streams[output["name"]] += output["text"]
        elif output["output_type"] == "error":
            found["error"].append(f"{output['ename']}: {sanitize(output['evalue'])}")
        else:
            data = {kind: text for kind, text in output["data"].items() if kind not in SKIPPED}
            if len(data) > 1:
                data.pop("text/plain", None)
            for kind, text in data.items():
                found[kind].append(sanitize(text if isinstance(text, str) else json.dumps(text)))
    found |= {name: [sanitize(text)] for name, text in streams.items()}
    return {kind: [lines(text) for text in texts] for kind, texts in found.items()}


def lines(text):
    """Lines without the white space that aligns them."""
    kept = (re.sub(r"\s+", " ", line).strip() for line in text.splitlines())
    return [line for line in kept if line]


def skeleton(line):
    """A line with a sign in place of each number; a percent sign stays."""
    return NUMBER.sub(lambda found: "#%" if found[0].endswith("%") else "#", line)


def numbers(line):
    return NUMBER.findall(line)


def style(text):
    """Numbers that are printed alike are of one group: decimals, percent sign, power of ten."""
    return f"{len(text.partition('.')[2])}{'%' * text.endswith('%')}{'e' * ('e' in text.lower())}"


def margins(stored, spread):
    """For each line of a stored output the margins of its numbers, or None where nothing is compared.

    ``spread`` maps a line's number to the values its numbers had in the measured runs, one list each, or to
    None where its words changed.
    """
    groups = defaultdict(list)
    for i, found in spread.items():
        for text, values in zip(numbers(stored[int(i)]), found or [], strict=False):
            groups[style(text)].append(values)
    result = []
    for i, line in enumerate(stored):
        found = spread.get(str(i), [])
        if found is None:
            result.append(None)
            continue
        own = zip_longest(numbers(line), found, fillvalue=())
        result.append([max(unit(text), run_margin(groups[style(text)], values)) for text, values in own])
    return result


def difference(stored, fresh, allowed):
    """The first line that differs by more than is allowed, with the reason; None if there is none."""
    if len(stored) != len(fresh):
        return f"{len(stored)} lines are stored, {len(fresh)} were made; stored: {stored}, made: {fresh}"
    for old, new, margin in zip(stored, fresh, allowed, strict=True):
        if margin is None or old == new:
            continue
        if skeleton(old) != skeleton(new):
            return f"stored {old!r}, made {new!r}"
        for a, b, far in zip(numbers(old), numbers(new), margin, strict=True):
            if not abs(value(a) - value(b)) <= far * (1 + 1e-9) and a != b:
                return f"stored {old!r}, made {new!r}: {a} and {b} may differ by {far:.3g}"
    return None


def disagreement(stored, fresh, tags=(), spread=None, sanitize=str):
    """Why two lists of outputs of one cell are not the same; None if they are."""
    old, new = fields(stored, sanitize), fields(fresh, sanitize)
    counts = [{kind: len(texts) for kind, texts in found.items()} for found in (old, new)]
    if counts[0] != counts[1]:
        return f"outputs stored: {counts[0]}, made: {counts[1]}"
    for kind, texts in old.items():
        for n, (a, b) in enumerate(zip(texts, new[kind], strict=True)):
            if "sampled" in tags:
                a, b = (around(kind, x) for x in (a, b))
            known = (spread or {}).get(f"{kind} {n}", {}) if "run" in tags else {}
            found = difference(a, b, margins(a, known))
            if found:
                return f"{kind}: {found}"
    return None


def around(kind, text):
    """What stands around sampled text: of a table the rows and the labels, of a stream nothing."""
    if kind == "text/html":
        return [re.sub(r"<td>.*", "<td>", line) for line in text]
    return []


def measured(chapter, cell):
    """The spread of a cell's numbers, as ``tests/spread.py`` measured it."""
    return json.loads(SPREAD.read_text(encoding="utf-8")).get(chapter, {}).get(cell)


def compare_outputs(self, test, ref, skip_compare=None):
    """Takes the place of nbval's method of this name, which compares text with text."""
    tags = self.cell.metadata.get("tags", [])
    spread = measured(Path(self.parent.path).stem, self.cell.get("id"))
    found = disagreement(ref, test, tags, spread, self.sanitize)
    self.comparison_traceback = [found] if found else []
    if found and "run" in tags and spread is None:
        self.comparison_traceback.append("No spread of this cell is measured; see tests/spread.py.")
    return not found


def install():
    from nbval.plugin import IPyNbCell

    IPyNbCell.compare_outputs = compare_outputs
    start = IPyNbCell.__init__

    def patient(self, *args, **kwargs):
        start(self, *args, **kwargs)
        self.output_timeout = 3 * patience.SECONDS  # nbval's five are few on a busy machine

    IPyNbCell.__init__ = patient
