"""Posteriors: what sbi's users sample from."""

from sbi_boed_plugin.posteriors.hybrid_posterior import (
    HybridPosterior as HybridPosterior,
)
from sbi_boed_plugin.posteriors.hybrid_posterior import (
    HybridPosteriorParameters as HybridPosteriorParameters,
)
