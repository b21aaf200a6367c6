"""Bayesian optimal experimental design for sbi.

Importing the package puts its trainers beside sbi's own: `from sbi.inference import
NLE_INCE` and `infer(..., method="nle_ince")` work afterwards. Set the environment
variable `SBI_BOED_PLUGIN_AUTOREGISTER=0` to switch this off.
"""

__version__ = "0.1.0"

from sbi_boed_plugin import tasks
from sbi_boed_plugin._campaign import ExperimentRecord, ExperimentsResult
from sbi_boed_plugin._fit import AveragedSchedule
from sbi_boed_plugin._vectorize import vectorize
from sbi_boed_plugin.adaptive.config import PolicyResult, PolicySearchConfig
from sbi_boed_plugin.adaptive.policy import HistoryPolicy
from sbi_boed_plugin.campaign import Campaign, CampaignStatus
from sbi_boed_plugin.estimators.data_embedding import DataEmbedding
from sbi_boed_plugin.estimators.design_conditioned import DesignConditionedEstimator
from sbi_boed_plugin.estimators.discrete import categorical_likelihood_nn
from sbi_boed_plugin.estimators.energy import energy_nn
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.estimators.measurement_set import MeasurementSetEmbedding
from sbi_boed_plugin.estimators.transformed import (
    transformed_likelihood_nn,
    transformed_posterior_nn,
)
from sbi_boed_plugin.estimators.vector_field import VectorFieldDensity
from sbi_boed_plugin.fitted_prior import FittedPrior
from sbi_boed_plugin.objectives.eig import EIGEstimate, estimate_eig
from sbi_boed_plugin.policies import (
    CategoricalPolicy,
    ConstrainedPolicy,
    NormalPolicy,
    OrderedPolicy,
    PointPolicy,
    ProductPolicy,
    SimplexPolicy,
    TruncatedNormalMixturePolicy,
    TruncatedNormalPolicy,
)
from sbi_boed_plugin.policies.policy import DesignPolicy, ScaleSchedule
from sbi_boed_plugin.posteriors.hybrid_posterior import HybridPosterior
from sbi_boed_plugin.posteriors.parameters import HybridPosteriorParameters
from sbi_boed_plugin.posteriors.target_posterior import TargetPosterior
from sbi_boed_plugin.problem import Problem
from sbi_boed_plugin.registration import (
    autoregister,
    is_registered,
    register,
    unregister,
)
from sbi_boed_plugin.search.config import DesignSearchConfig, MultiStartConfig
from sbi_boed_plugin.search.result import DesignResult
from sbi_boed_plugin.sequence import run_experiments
from sbi_boed_plugin.simulation import simulate_for_boed
from sbi_boed_plugin.trainers._energy_training import EnergyConfig
from sbi_boed_plugin.trainers.model_discrimination import ModelDiscrimination
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE
from sbi_boed_plugin.trainers.npe_gkl import NPE_GKL
from sbi_boed_plugin.trainers.nre_gkl import NRE_GKL

__all__ = [
    "NLE_INCE",
    "NPE_GKL",
    "NRE_GKL",
    "AveragedSchedule",
    "Campaign",
    "CampaignStatus",
    "CategoricalPolicy",
    "ConstrainedPolicy",
    "DataEmbedding",
    "DesignConditionedEstimator",
    "DesignPolicy",
    "DesignResult",
    "DesignSearchConfig",
    "EIGEstimate",
    "EnergyConfig",
    "ExperimentRecord",
    "ExperimentsResult",
    "FittedPrior",
    "HistoryPolicy",
    "HybridEstimator",
    "HybridPosterior",
    "HybridPosteriorParameters",
    "MeasurementSetEmbedding",
    "ModelDiscrimination",
    "MultiStartConfig",
    "NormalPolicy",
    "OrderedPolicy",
    "PointPolicy",
    "PolicyResult",
    "PolicySearchConfig",
    "Problem",
    "ProductPolicy",
    "ScaleSchedule",
    "SimplexPolicy",
    "TargetPosterior",
    "TruncatedNormalMixturePolicy",
    "TruncatedNormalPolicy",
    "VectorFieldDensity",
    "categorical_likelihood_nn",
    "energy_nn",
    "estimate_eig",
    "is_registered",
    "register",
    "run_experiments",
    "simulate_for_boed",
    "tasks",
    "transformed_likelihood_nn",
    "transformed_posterior_nn",
    "unregister",
    "vectorize",
]

autoregister()
del autoregister
