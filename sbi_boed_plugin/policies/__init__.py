"""Design policies: modules that build distributions over designs."""

from sbi_boed_plugin.policies.categorical import CategoricalPolicy
from sbi_boed_plugin.policies.constrained import ConstrainedPolicy
from sbi_boed_plugin.policies.located import (
    NormalPolicy,
    PointPolicy,
    TruncatedNormalPolicy,
)
from sbi_boed_plugin.policies.mixture import TruncatedNormalMixturePolicy
from sbi_boed_plugin.policies.ordered import OrderedPolicy, SimplexPolicy
from sbi_boed_plugin.policies.policy import DesignPolicy, ScaleSchedule
from sbi_boed_plugin.policies.product import ProductPolicy

__all__ = [
    "CategoricalPolicy",
    "ConstrainedPolicy",
    "DesignPolicy",
    "NormalPolicy",
    "OrderedPolicy",
    "PointPolicy",
    "ProductPolicy",
    "ScaleSchedule",
    "SimplexPolicy",
    "TruncatedNormalMixturePolicy",
    "TruncatedNormalPolicy",
]
