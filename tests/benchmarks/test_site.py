"""What the site makes of docstrings."""

import pytest

pytest.importorskip("griffe", reason="the extra [docs] is not installed")
pytest.importorskip("latex2mathml", reason="the extra [docs] is not installed")

from benchmarks.site_docstrings import without_roles  # noqa: E402


def test_roles_become_code_and_formulas():
    text = without_roles(
        "At most :math:`\\log(L + 1)`, see :class:`~package.Module` and :meth:`run`."
        "\n\n"
        ".. math::\n\n    x_1 = 2\n    + y\n\nThe end."
    )
    assert ":math:" not in text and ".. math" not in text
    assert "see `Module` and `run`." in text
    first, second = text.split("<math")[1:]
    assert "log" in first and 'display="inline"' in first
    assert 'display="block"' in second and second.endswith("</span>\n\nThe end.")
