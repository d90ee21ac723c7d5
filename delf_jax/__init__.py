"""DELF (DEep Local Features) landmark retrieval in JAX and Flax."""

__version__ = "0.1.0"
