"""Pages of the site: every block runs, links lead somewhere, quoted errors exist."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sbi_boed_plugin.search import rounds

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.glob("**/*.md") if "results/" not in str(page))
# A `console` block is set-up, which the packaging tests and CI run.
BLOCK = re.compile(r"```(python|bash)(?: title=\"(.+?)\")?\n(.*?)```", re.DOTALL)
WITH_BLOCKS = [page for page in PAGES if BLOCK.search(page.read_text())]

# sbi passes torch tensors to numpy functions.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.fixture
def quick_climbs(monkeypatch):
    """Let designs climb a little only: what runs is tested, not what is found."""
    short = {"num_starts": 8, "num_climb_steps": 6, "num_samples": 8}
    for name in ("_PROPOSAL", "_LAST"):
        monkeypatch.setattr(rounds, name, replace(getattr(rounds, name), **short))
    monkeypatch.setattr(rounds, "_NUM_RANKING", 32)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_climbs")
@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_all_blocks_of_a_page_run_in_turn(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(folders)}
    torch.manual_seed(0)
    names = {"__name__": "__main__"}
    for language, title, block in BLOCK.findall(page.read_text()):
        if title:
            Path(title).write_text(block)
        elif language == "python":
            exec(compile(block, name_of(page), "exec"), names)
        else:
            subprocess.run(["bash", "-e", "-c", block], env=environment, check=True)


def anchors(page):
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


LINKED = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *PAGES]


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://") or target.endswith(".ipynb"):
            continue  # notebooks are made with the site.
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def test_quoted_errors_are_those_of_the_package():
    text = (DOCS / "about" / "faq.md").read_text()
    text = text[text.index("## Errors") :]
    sources = (ROOT / "sbi_boed_plugin").rglob("*.py")
    # As the messages are, whatever lines they are broken into.
    code = " ".join(re.sub(r'"\s+f?"', "", source.read_text()) for source in sources)
    quoted = re.findall(r'\*\*"(.+?)"\*\*| and \*\*"(.+?)"', text.replace("\n", " "))
    assert len(quoted) > 8
    for first, second in quoted:
        for part in (first or second).split("…"):
            assert part.strip() in code, part


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in PAGES:
        assert str(page.relative_to(DOCS)) in navigation
