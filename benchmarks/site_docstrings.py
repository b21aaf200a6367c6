"""Turns what docstrings mark up for Sphinx, as those of sbi do, into HTML.

Formulas become MathML, which browsers show without a script.
"""

import re
from typing import Any

from griffe import Extension, Object
from latex2mathml.converter import convert

__all__ = ["Roles", "formula", "without_roles"]

_BLOCK = re.compile(r"(?m)^( *)\.\. math::\s*\n((?:\1 +\S.*\n?|\s*\n)+)")


def formula(latex: str, display: str = "inline") -> str:
    """Return a formula as MathML on one line, which Markdown leaves within its text."""
    return f"<span>{convert(' '.join(latex.split()), display=display)}</span>"


def without_roles(text: str) -> str:
    """Return a docstring whose roles are code and formulas."""

    def block(match: re.Match) -> str:
        return f"{match[1]}{formula(match[2], 'block')}\n\n"

    text = _BLOCK.sub(block, text)
    text = re.sub(r":math:`([^`]+)`", lambda match: formula(match[1]), text)
    text = re.sub(r":\w+:`~[\w.]*\.(\w+)`", r"`\1`", text)
    return re.sub(r":(?:class|func|meth):`([^`]+)`", r"`\1`", text)


class Roles(Extension):
    """Rewrites docstrings before they are read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = without_roles(obj.docstring.value)
