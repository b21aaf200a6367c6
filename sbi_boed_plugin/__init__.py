"""Bayesian optimal experimental design for sbi.

Importing the package puts its trainers beside sbi's own: `from sbi.inference import
NLE_INCE` and `infer(..., method="nle_ince")` work afterwards. Set the environment
variable `SBI_BOED_PLUGIN_AUTOREGISTER=0` to switch this off.
"""

__version__ = "0.1.0.dev0"

from sbi_boed_plugin import tasks as tasks
from sbi_boed_plugin.campaign import ExperimentRecord as ExperimentRecord
from sbi_boed_plugin.campaign import ExperimentsResult as ExperimentsResult
from sbi_boed_plugin.campaign import run_experiments as run_experiments
from sbi_boed_plugin.estimators.design_conditioned import (
    DesignConditionedEstimator as DesignConditionedEstimator,
)
from sbi_boed_plugin.estimators.energy import energy_nn as energy_nn
from sbi_boed_plugin.estimators.hybrid import HybridEstimator as HybridEstimator
from sbi_boed_plugin.estimators.measurement_set import (
    MeasurementSetEmbedding as MeasurementSetEmbedding,
)
from sbi_boed_plugin.estimators.transformed import (
    transformed_likelihood_nn as transformed_likelihood_nn,
)
from sbi_boed_plugin.estimators.transformed import (
    transformed_posterior_nn as transformed_posterior_nn,
)
from sbi_boed_plugin.objectives.eig import EIGEstimate as EIGEstimate
from sbi_boed_plugin.objectives.eig import estimate_eig as estimate_eig
from sbi_boed_plugin.policies import CategoricalPolicy as CategoricalPolicy
from sbi_boed_plugin.policies import NormalPolicy as NormalPolicy
from sbi_boed_plugin.policies import PointPolicy as PointPolicy
from sbi_boed_plugin.policies import (
    TruncatedNormalMixturePolicy as TruncatedNormalMixturePolicy,
)
from sbi_boed_plugin.policies import (
    TruncatedNormalPolicy as TruncatedNormalPolicy,
)
from sbi_boed_plugin.policies.policy import DesignPolicy as DesignPolicy
from sbi_boed_plugin.policies.policy import ScaleSchedule as ScaleSchedule
from sbi_boed_plugin.posteriors.hybrid_posterior import (
    HybridPosterior as HybridPosterior,
)
from sbi_boed_plugin.posteriors.hybrid_posterior import (
    HybridPosteriorParameters as HybridPosteriorParameters,
)
from sbi_boed_plugin.registration import autoregister as _autoregister
from sbi_boed_plugin.registration import is_registered as is_registered
from sbi_boed_plugin.registration import register as register
from sbi_boed_plugin.registration import unregister as unregister
from sbi_boed_plugin.search.config import DesignResult as DesignResult
from sbi_boed_plugin.search.multi_start import MultiStartConfig as MultiStartConfig
from sbi_boed_plugin.simulation import simulate_for_boed as simulate_for_boed
from sbi_boed_plugin.simulation import vectorize as vectorize
from sbi_boed_plugin.trainers._energy_training import EnergyConfig as EnergyConfig
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE as NLE_INCE
from sbi_boed_plugin.trainers.npe_gkl import NPE_GKL as NPE_GKL
from sbi_boed_plugin.trainers.nre_gkl import NRE_GKL as NRE_GKL

_autoregister()
