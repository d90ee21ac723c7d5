"""Photographs to local features, and local features on disk."""
