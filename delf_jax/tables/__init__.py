"""The tables of `configs/tables`: what they ask for, and what comes out."""
