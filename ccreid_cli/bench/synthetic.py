"""Synthetic features and images, as large and as hard as real ones; the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

IMAGES_PER_IDENTITY = 17
"""As in the training set of Market-1501."""

_LATENT = 64
_LOOKS_PER_IDENTITY = 1 / 8
_SPREAD = 1.5
_ROWS_PER_BLOCK = 65536


def made_features(
    num_images: int, dim: int, *, seed: int = 0, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw features as hard to cluster as real ones in a first epoch.

    Identities of uneven size resemble one another in groups and overlap; all share a direction, as features of a
    network do. At the defaults, neighbours (cosine 0.76 of the nearest, 0.65 of the 30th), the sizes of k-reciprocal
    sets (20 members; 85 after averaging, MobileNetV2 with ImageNet weights on Market-1501: 13 and 85) and the share of
    outliers (a third at eps 0.5) stay the same for any number of images.

    Args:
        num_images: N.
        dim: D.
        seed: Of the generator.
        device: Where to draw; another device gives other numbers.

    Returns:
        (N, D) float32 unit rows and (N,) int64 identities.
    """
    device = device or torch.device("cpu")
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator, device=device)

    num_ids = max(2, round(num_images / IMAGES_PER_IDENTITY))
    identities = (uniform(num_images) ** 1.5 * num_ids).long().clamp_(max=num_ids - 1)
    looks = normal(max(1, int(num_ids * _LOOKS_PER_IDENTITY)), _LATENT)
    centres = looks[(uniform(num_ids) * len(looks)).long().clamp_(max=len(looks) - 1)] + 0.8 * normal(num_ids, _LATENT)
    basis, common = normal(_LATENT, dim) / _LATENT**0.5, 1.6 * normal(dim)
    features = torch.empty(num_images, dim, device=device)
    for start in range(0, num_images, _ROWS_PER_BLOCK):
        owners = identities[start : start + _ROWS_PER_BLOCK]
        spread = _SPREAD * (0.6 + 0.8 * uniform(len(owners), 1))
        latent = centres[owners] + spread * normal(len(owners), _LATENT)
        rows = latent @ basis + common + 0.3 * normal(len(owners), dim)
        features[start : start + len(owners)] = torch.nn.functional.normalize(rows)
    return features, identities


def made_cameras(num_images: int, num_cameras: int = 6, *, seed: int = 0) -> NDArray[np.int64]:
    """Draw a camera for each image, (N,)."""
    return np.random.default_rng(seed).integers(num_cameras, size=num_images)


def made_images(num_images: int, height: int, width: int, *, seed: int = 0) -> NDArray[np.uint8]:
    """Draw pixels, (N, height, width, 3)."""
    return np.random.default_rng(seed).integers(256, size=(num_images, height, width, 3), dtype=np.uint8)


def write_images(folder: Path, num_images: int, *, seed: int = 0) -> list[Path]:
    """Write JPEG files of the size of Market-1501's: 128 × 64 pixels, some 2.5 kB each.

    Args:
        folder: Where to; it must exist.
        num_images: How many.
        seed: Of the generator.

    Returns:
        Their paths, sorted.
    """
    random = np.random.default_rng(seed)
    paths = []
    for number in range(num_images):
        coarse = Image.fromarray(random.integers(256, size=(16, 8, 3), dtype=np.uint8)).resize((64, 128))
        pixels = np.asarray(coarse, dtype=np.int16) + random.integers(-6, 7, size=(128, 64, 3), dtype=np.int16)
        paths.append(folder / f"{number:06d}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=80)
    return paths
