"""Posteriors: what sbi's users sample from."""
