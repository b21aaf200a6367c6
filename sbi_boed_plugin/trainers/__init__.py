"""Trainers: drop-in subclasses of sbi's."""

from sbi_boed_plugin.trainers.nle_ince import NLE_INCE as NLE_INCE
from sbi_boed_plugin.trainers.npe_gkl import NPE_GKL as NPE_GKL
from sbi_boed_plugin.trainers.nre_gkl import NRE_GKL as NRE_GKL
