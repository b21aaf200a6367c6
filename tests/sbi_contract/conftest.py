"""Makes sbi's slice samplers quick: what they draw need not be good."""

from functools import partialmethod

import pytest
from sbi.samplers.mcmc import SliceSamplerSerial, SliceSamplerVectorized


@pytest.fixture(autouse=True)
def _brief_tuning(monkeypatch):
    """By default there are fifty steps before the first sample."""
    for sampler in (SliceSamplerSerial, SliceSamplerVectorized):
        brief = partialmethod(sampler.__init__, tuning=2)
        monkeypatch.setattr(sampler, "__init__", brief)
