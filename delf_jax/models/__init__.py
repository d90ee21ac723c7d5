"""Flax modules: parameters in, arrays out."""
