"""Configurations of our methods for the runner of sbibm, driven by hydra."""
