"""Hessian-vector products of a language model's loss."""
