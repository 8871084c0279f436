"""Backbones, pooling and the re-identification network."""
