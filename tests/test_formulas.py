"""Broken formulas are found in a page of HTML. That the book has none, its pages say (`test_book.py`)."""

import pytest

from tests.formulacheck import broken_formulas


def typeset(source):
    inside = f'<math><annotation encoding="application/x-tex">{source}</annotation></math>'
    return f'<span class="katex">{inside}</span>'


@pytest.mark.parametrize(
    ("page", "broken"),
    [
        (f"<p>Here {typeset(chr(92) + 'pi &amp; x')}.</p>", []),
        (f"<p>Here {typeset(chr(92) * 2 + 'pi')}.</p>", ["\\\\pi"]),
        (f"<p>{typeset('a ' + chr(92) * 2 + ' b')} in two lines</p>", []),
        ("<p>The mean \\log V of it</p>", ["\\log"]),
        ("<p>costs $x_1 + 2$ and</p>", ["$x_1 + 2$"]),
        ("<p>costs 3 $ or 4 $, in <code>$HOME/\\pi$</code></p><pre>\\log<br>\\pi</pre><p>fine</p>", []),
        ('<span class="katex-error">x</span>', ['class="katex-error"']),
    ],
)
def test_a_broken_formula_is_found_and_a_whole_one_is_not(page, broken):
    assert broken_formulas(page) == broken
