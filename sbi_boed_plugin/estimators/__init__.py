"""Density estimators: at fixed designs, in other coordinates, and corrected ones."""

from sbi_boed_plugin.estimators.design_conditioned import DesignConditionedEstimator
from sbi_boed_plugin.estimators.energy import energy_nn
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.estimators.measurement_set import MeasurementSetEmbedding
from sbi_boed_plugin.estimators.transformed import (
    TransformedEstimator,
    transformed_likelihood_nn,
    transformed_posterior_nn,
)

__all__ = [
    "DesignConditionedEstimator",
    "HybridEstimator",
    "MeasurementSetEmbedding",
    "TransformedEstimator",
    "energy_nn",
    "transformed_likelihood_nn",
    "transformed_posterior_nn",
]
