"""Adds to the site what is made of other files: each tutorial as a notebook."""

import html
import re
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from benchmarks.site_docstrings import formula


def on_files(files: Files, config: Any) -> Files:
    """Put a notebook beside each tutorial, for people to download."""
    for script in sorted((Path(config.docs_dir) / "tutorials").glob("*.py")):
        notebook = jupytext.writes(jupytext.read(script), fmt="ipynb")
        name = f"tutorials/{script.stem}.ipynb"
        files.append(File.generated(config, name, content=notebook))
    return files


def on_page_content(content: str, page: Page, **_: Any) -> str:
    """Show the formulas of tutorials, between dollars, without a script."""
    if not page.file.src_uri.startswith("tutorials/"):
        return content
    parts = re.split(r"(<pre.*?</pre>)", content, flags=re.DOTALL)
    return "".join(
        part
        if part.startswith("<pre")
        else re.sub(r"\$([^$<>]+)\$", lambda m: formula(html.unescape(m[1])), part)
        for part in parts
    )
