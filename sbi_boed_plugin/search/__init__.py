"""Design policies, gradients of their information, and the loop that trains them."""

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
from sbi_boed_plugin.search.config import DesignResult as DesignResult
from sbi_boed_plugin.search.optimizer import DesignOptimizer as DesignOptimizer
