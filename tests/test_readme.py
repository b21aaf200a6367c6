import re
from pathlib import Path

import torch

README = Path(__file__).parents[1] / "README.md"


def test_the_example_of_the_readme_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    names = {}
    exec(code, names)
    assert names["samples"].shape == (1_000, 2)
    assert 0.0 <= names["result"].design.item() <= 24.0
    # The decay rate, between 0.05 and 1 before, is 0.3 in truth.
    assert names["samples"][:, 1].std() < 0.15
    assert torch.isfinite(names["samples"]).all()
