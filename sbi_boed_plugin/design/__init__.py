"""Design policies, gradients of their information, and the loop that trains them."""

from sbi_boed_plugin.design.config import DesignResult as DesignResult
from sbi_boed_plugin.design.optimizer import DesignOptimizer as DesignOptimizer
from sbi_boed_plugin.design.policies import CategoricalPolicy as CategoricalPolicy
from sbi_boed_plugin.design.policies import NormalPolicy as NormalPolicy
from sbi_boed_plugin.design.policies import PointPolicy as PointPolicy
from sbi_boed_plugin.design.policies import (
    TruncatedNormalMixturePolicy as TruncatedNormalMixturePolicy,
)
from sbi_boed_plugin.design.policies import (
    TruncatedNormalPolicy as TruncatedNormalPolicy,
)
from sbi_boed_plugin.design.policy import DesignPolicy as DesignPolicy
from sbi_boed_plugin.design.policy import ScaleSchedule as ScaleSchedule
