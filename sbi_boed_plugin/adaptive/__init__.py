"""Policies that see what was measured and answer with the next design."""
