"""Analyses of a run at and between its checkpoints."""
