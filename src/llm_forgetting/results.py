"""Typed records of every artifact."""
