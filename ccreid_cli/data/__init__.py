"""Datasets: catalogue, layouts, own images, fetch, verify, toy. No torch, no networks."""
