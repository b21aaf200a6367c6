"""The tables of the results page are those of its CSV files."""

import re

import pytest

from benchmarks.pages import PAGE, TABLES, fill


def test_the_page_is_up_to_date():
    text = PAGE.read_text()
    assert fill(text) == text, "run python -m benchmarks.pages"
    assert set(re.findall(r"<!-- ([\w-]+) -->", text)) - {"end"} == set(TABLES)


def test_a_table_without_a_recipe_is_named():
    with pytest.raises(KeyError, match="nothing"):
        fill("<!-- nothing -->\n\n<!-- end -->")
