"""Design policies: modules that build distributions over designs."""

from sbi_boed_plugin.policies.categorical import CategoricalPolicy
from sbi_boed_plugin.policies.located import (
    NormalPolicy,
    PointPolicy,
    TruncatedNormalPolicy,
)
from sbi_boed_plugin.policies.mixture import TruncatedNormalMixturePolicy
from sbi_boed_plugin.policies.policy import DesignPolicy, ScaleSchedule

__all__ = [
    "CategoricalPolicy",
    "DesignPolicy",
    "NormalPolicy",
    "PointPolicy",
    "ScaleSchedule",
    "TruncatedNormalMixturePolicy",
    "TruncatedNormalPolicy",
]
