"""Backbones, pooling, the network, and weights of any origin. No datasets, no labels."""
