"""Photographs, and the folders and data sets that hold them."""
