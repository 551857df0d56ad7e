"""Tables of pandas as they stand in the page: words at the left, numbers at the right, one row of names."""

import re

import pandas as pd
import pytest
from tables import tidy, tidy_all

FRAME = pd.DataFrame(
    {"said": ["nothing", "the policy ran away from it"], "runs": [2, 1], "interval": ["[0.1, 0.2]", "nan"]},
    index=pd.Index(["first", "second"], name="fault"),
)


def marked(table: str) -> list[str]:
    """What stands in the cells that are set at the left."""
    return re.findall(r'<t[hd][^>]*class="[^"]*words[^"]*"[^>]*>([^<]*)<', table)


@pytest.mark.parametrize("styled", [False, True])
def test_columns_of_words_are_at_the_left_and_the_name_of_the_rows_in_the_corner(styled):
    pytest.importorskip("jinja2", reason="package: jinja2 is not installed")
    table = tidy(FRAME.style.to_html() if styled else FRAME.to_html())
    table = table[table.index("<table") :]
    assert marked(table) == ["fault", "said", "nothing", "the policy ran away from it"]
    head = table[: table.index("</thead>")]
    assert head.count("<tr") == 1 and "fault" in head


def test_a_page_keeps_what_is_no_table_of_pandas():
    other = "<table class='table'><tbody><tr><td>a</td></tr></tbody></table>"
    text = f"<p>before</p>{other}{FRAME.to_html()}<p>behind</p>"
    shown = tidy_all(text)
    assert shown.startswith(f"<p>before</p>{other}") and shown.endswith("<p>behind</p>")
    assert marked(shown)


def test_columns_below_a_common_name_keep_it_and_a_long_text_may_wrap():
    pair = pd.concat({"one": FRAME, "two": FRAME}, axis=1)
    table = tidy(pair.rename_axis(None).to_html())
    assert re.findall(r'<th[^>]*colspan="3"[^>]*>(\w+)', table) == ["one", "two"]
    assert marked(table).count("nothing") == 2 and marked(table).count("said") == 2
    assert table.count('class="words long"') == 2


def test_what_a_table_says_is_not_changed():
    for frame in (FRAME, FRAME.T, FRAME.reset_index(), FRAME.set_index("said", append=True)):
        before, after = (
            [text.strip() for text in re.findall(r"<t[hd][^>]*>([^<]+)<", table) if text.strip()]
            for table in (frame.to_html(), tidy(frame.to_html()))
        )
        assert sorted(before) == sorted(after)
