"""Correspondences in, inliers and a transform out."""
