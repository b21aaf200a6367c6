"""Objectives and estimates of information: tensors in, tensors out."""
