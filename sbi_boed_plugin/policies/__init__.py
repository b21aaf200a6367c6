"""Design policies: modules that build distributions over designs."""

from sbi_boed_plugin.policies.categorical import CategoricalPolicy
from sbi_boed_plugin.policies.mixture import TruncatedNormalMixturePolicy
from sbi_boed_plugin.policies.normal import NormalPolicy
from sbi_boed_plugin.policies.point import PointPolicy
from sbi_boed_plugin.policies.policy import DesignPolicy, ScaleSchedule
from sbi_boed_plugin.policies.truncated_normal import TruncatedNormalPolicy

__all__ = [
    "CategoricalPolicy",
    "DesignPolicy",
    "NormalPolicy",
    "PointPolicy",
    "ScaleSchedule",
    "TruncatedNormalMixturePolicy",
    "TruncatedNormalPolicy",
]
