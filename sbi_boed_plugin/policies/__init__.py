"""Families of design policies, one per file."""

from sbi_boed_plugin.policies.categorical import (
    CategoricalPolicy as CategoricalPolicy,
)
from sbi_boed_plugin.policies.mixture import (
    TruncatedNormalMixturePolicy as TruncatedNormalMixturePolicy,
)
from sbi_boed_plugin.policies.normal import NormalPolicy as NormalPolicy
from sbi_boed_plugin.policies.point import PointPolicy as PointPolicy
from sbi_boed_plugin.policies.truncated_normal import (
    TruncatedNormalPolicy as TruncatedNormalPolicy,
)
