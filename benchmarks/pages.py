"""Writes the tables of `docs/results.md` from the CSV files beside it.

    python -m benchmarks.pages

A table stands between `<!-- NAME -->` and `<!-- end -->`; the text around it is written
by hand.
"""

import re

from benchmarks.cells import PAGE
from benchmarks.tables_of_designs import TABLES_OF_DESIGNS
from benchmarks.tables_of_inference import TABLES_OF_INFERENCE

__all__ = ["PAGE", "TABLES", "fill"]

TABLES = {**TABLES_OF_DESIGNS, **TABLES_OF_INFERENCE}


def fill(text: str) -> str:
    """Return a page with all tables made anew.

    Raises:
        KeyError: If there is no table of a name.
    """

    def made(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n\n{TABLES[match[1]].render()}\n\n<!-- end -->"

    pattern = r"<!-- ([\w-]+) -->\n.*?<!-- end -->"
    return re.sub(pattern, made, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
