"""The examples of the README run, and links of all pages lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

import sbi_boed_plugin

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def run_example(index):
    text = (ROOT / "README.md").read_text()
    names = {}
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[index], names)
    return names


def test_the_example_of_a_design_runs():
    names = run_example(0)
    assert names["samples"].shape == (1_000, 2)
    assert 0.0 <= names["result"].design.item() <= 24.0
    # The decay rate, between 0.05 and 1 before, is 0.3 in truth.
    assert names["samples"][:, 1].std() < 0.15
    assert torch.isfinite(names["samples"]).all()


def test_the_example_of_a_correction_runs():
    names = run_example(1)
    assert names["samples"].shape == (1_000, 2)
    assert names["prior"].support.check(names["samples"]).all()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_name_of_the_package_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    named = set(re.findall(r"`(?:tasks\.)?(\w+)`", text)) | {"tasks"}
    assert set(sbi_boed_plugin.__all__) <= named


def anchors(page):
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text())
    return {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target
