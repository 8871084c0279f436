"""Pixels: decode once, store, share, augment. No identities, no datasets."""
