"""Scans and curvature of any torch module."""
