"""What the edges of images look like, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ccreid_cli.images import edges
from ccreid_cli.images.edges import edge_colours, edges_of
from ccreid_cli.images.store import ImageStore
from ccreid_cli.machine.distributed import Group


def oracle(image: NDArray[np.uint8]) -> list[float]:
    """Strip by strip: a quarter of the left side, of the right, the next quarter, ..., and last the lower edge."""
    _, height, width = image.shape
    side, foot = max(1, width // 10), max(1, height // 12)
    strips = []
    for row in range(4):
        part = image[:, height * row // 4 : height * (row + 1) // 4]
        strips += [part[:, :, :side], part[:, :, width - side :]]
    strips.append(image[:, height - foot :])
    return [value for strip in strips for of in (np.mean, np.std) for value in of(strip.astype(float), axis=(1, 2))]


@pytest.mark.parametrize("size", [(32, 16), (13, 7), (4, 1)])
def test_edges_are_described_by_mean_and_deviation(size: tuple[int, int], rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (5, 3, *size), dtype=np.uint8)
    found = edge_colours(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(found, [oracle(image) for image in pixels], atol=1e-6)


def test_all_images_are_read_in_their_order(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = rng.integers(0, 256, (7, 3, 8, 6), dtype=np.uint8)
    monkeypatch.setattr(edges, "_IMAGES_PER_BLOCK", 3)
    found = edges_of(ImageStore(pixels.transpose(0, 2, 3, 1).copy()), Group())
    assert torch.equal(found, edge_colours(torch.from_numpy(pixels)))
