"""Figures, tables and documents made from a run's artifacts alone: no model, no torch."""
