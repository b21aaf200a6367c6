"""The corrected posterior."""

from sbi_boed_plugin.posteriors.hybrid_posterior import (
    HybridPosterior,
    HybridPosteriorParameters,
)

__all__ = ["HybridPosterior", "HybridPosteriorParameters"]
