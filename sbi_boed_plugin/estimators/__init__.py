"""Density estimators: at fixed designs, in other coordinates, and corrected ones."""

from sbi_boed_plugin.estimators.design_conditioned import (
    DesignConditionedEstimator as DesignConditionedEstimator,
)
from sbi_boed_plugin.estimators.energy import energy_nn as energy_nn
from sbi_boed_plugin.estimators.hybrid import HybridEstimator as HybridEstimator
from sbi_boed_plugin.estimators.measurement_set import (
    MeasurementSetEmbedding as MeasurementSetEmbedding,
)
from sbi_boed_plugin.estimators.transformed import (
    TransformedEstimator as TransformedEstimator,
)
from sbi_boed_plugin.estimators.transformed import (
    transformed_likelihood_nn as transformed_likelihood_nn,
)
