"""Density estimators: likelihoods at fixed designs and in transformed coordinates."""

from sbi_boed_plugin.estimators.design_conditioned import (
    DesignConditionedEstimator as DesignConditionedEstimator,
)
from sbi_boed_plugin.estimators.measurement_set import (
    MeasurementSetEmbedding as MeasurementSetEmbedding,
)
from sbi_boed_plugin.estimators.transformed import (
    TransformedEstimator as TransformedEstimator,
)
from sbi_boed_plugin.estimators.transformed import (
    transformed_likelihood_nn as transformed_likelihood_nn,
)
