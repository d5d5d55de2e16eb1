"""Accuracy matrix R[i, j], forgetting and its uncertainty. No torch."""
