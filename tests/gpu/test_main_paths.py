"""Every main path on a GPU: all that it makes is there, and in single precision.

`SBI_BOED_PLUGIN_TEST_DEVICE=cpu pytest -m gpu` runs the same on another device.
"""

import pytest
import torch

from tests.main_paths import for_each_path

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore")]


@for_each_path
def test_what_is_made_is_on_the_device_in_single_precision(path, device):
    made = path(device)
    wrong = {
        name: (value.device, value.dtype)
        for name, value in made.items()
        if value.device.type != torch.device(device).type
        or (value.is_floating_point() and value.dtype != torch.float32)
    }
    assert not wrong
    assert all(value.isfinite().all() for value in made.values())
