"""Objectives and estimates of information: tensors in, tensors out."""

from sbi_boed_plugin.objectives.eig import EIGEstimate as EIGEstimate
from sbi_boed_plugin.objectives.eig import estimate_eig as estimate_eig
from sbi_boed_plugin.objectives.info_nce import contrastive_bound as contrastive_bound
from sbi_boed_plugin.objectives.info_nce import fresh_contrast as fresh_contrast
from sbi_boed_plugin.objectives.info_nce import in_batch_contrast as in_batch_contrast
from sbi_boed_plugin.objectives.info_nce import info_nce_loss as info_nce_loss
from sbi_boed_plugin.objectives.info_nce import (
    log_likelihood_matrix as log_likelihood_matrix,
)
