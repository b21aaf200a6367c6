"""Adds to the site what is made of other files: each tutorial as a notebook."""

from pathlib import Path
from typing import Any

import jupytext
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: Any) -> Files:
    """Put a notebook beside each tutorial, for people to download."""
    for script in sorted((Path(config.docs_dir) / "tutorials").glob("*.py")):
        notebook = jupytext.writes(jupytext.read(script), fmt="ipynb")
        name = f"tutorials/{script.stem}.ipynb"
        files.append(File.generated(config, name, content=notebook))
    return files
