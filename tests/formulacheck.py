"""What is broken about formulas in a page of HTML: typeset as something else, or left as written."""

import html
import re
from html.parser import HTMLParser

SOURCE = re.compile(r'<annotation encoding="application/x-tex">(.*?)</annotation>', re.DOTALL)
COMMANDS = (
    "frac log exp pi beta mathrm mathbb mathcal text nabla theta sum prod ell left right epsilon lambda rho"
)
COMMANDS += " delta gamma sigma tau hat bar sqrt begin end cdot dots min max operatorname in le ge"
RAW = re.compile(r"\\(?:" + "|".join(COMMANDS.split()) + r")(?![a-zA-Z])|\$\$|\$[^\s$][^$\n]*[^\s$]\$")


class Words(HTMLParser):
    """The text of a page that is neither code, nor script, nor formula."""

    def __init__(self):
        super().__init__()
        self.open, self.words = [], []

    def handle_starttag(self, tag, attributes):
        classes = (dict(attributes).get("class") or "").split()
        plain = tag in {"pre", "code", "script", "style"} or {"math", "katex", "highlight"} & set(classes)
        if self.open or plain:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:  # what was left open inside, such as <br>, ends with it
            del self.open[len(self.open) - 1 - self.open[::-1].index(tag) :]

    def handle_data(self, data):
        if not self.open:
            self.words.append(data)


def broken_formulas(page):
    """Formulas with a doubled backslash, which is a line break and a word, and raw ones in the text."""
    sources = [html.unescape(source) for source in SOURCE.findall(page)]
    doubled = [source for source in sources if re.search(r"\\\\[a-zA-Z]", source)]
    reader = Words()
    reader.feed(page)
    text = "".join(reader.words)
    return doubled + RAW.findall(text) + re.findall(r'class="[^"]*katex-error[^"]*"', page)
