"""Trainers: drop-in subclasses of sbi's."""

from sbi_boed_plugin.trainers.nle_ince import NLE_INCE as NLE_INCE
