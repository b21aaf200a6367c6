"""The corrected posterior."""

from sbi_boed_plugin.posteriors.hybrid_posterior import HybridPosterior
from sbi_boed_plugin.posteriors.parameters import HybridPosteriorParameters

__all__ = ["HybridPosterior", "HybridPosteriorParameters"]
