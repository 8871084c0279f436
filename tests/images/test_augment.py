from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ccreid_cli.images.augment import AugmentPlan, augment, draw_augmentation, normalize

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def oracle_erasing(height: int, width: int, generator: random.Random) -> tuple[int, int, int, int]:
    """Random erasing of one image, attempt by attempt."""
    if generator.random() >= 0.5:
        return 0, 0, 0, 0
    for _ in range(100):
        area = generator.uniform(0.02, 0.4) * height * width
        aspect = generator.uniform(0.3, 1 / 0.3)
        tall, wide = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if wide < width and tall < height:
            return generator.randint(0, height - tall), generator.randint(0, width - wide), tall, wide
    return 0, 0, 0, 0


def oracle_augment(image: np.ndarray, flip: bool, top: int, left: int, erase: list[int]) -> np.ndarray:
    """Augment one (H, W, 3) uint8 image pixel by pixel."""
    height, width, _ = image.shape
    if flip:
        image = image[:, ::-1]
    result = np.empty((height, width, 3))
    for row in range(height):
        for column in range(width):
            y, x = row + top - 10, column + left - 10
            inside = 0 <= y < height and 0 <= x < width
            result[row, column] = ((image[y, x] / 255 if inside else 0) - MEAN) / STD
    result[erase[0] : erase[0] + erase[2], erase[1] : erase[1] + erase[3]] = MEAN
    return result


def batch_of(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2)


def plan_of(count: int, height: int, width: int, seed: int = 0) -> AugmentPlan:
    return draw_augmentation(count, height, width, torch.Generator().manual_seed(seed))


@settings(max_examples=15, deadline=None)
@given(height=st.integers(16, 40), width=st.integers(16, 40), seed=st.integers(0, 2**31))
def test_carries_out_a_plan_like_the_oracle(height: int, width: int, seed: int) -> None:
    images, plan = batch_of(5, height, width, seed), plan_of(5, height, width, seed)
    result = augment(images, plan)
    for index in range(5):
        expected = oracle_augment(
            images[index].permute(1, 2, 0).numpy(),
            bool(plan.flip[index]),
            int(plan.crop_top[index]),
            int(plan.crop_left[index]),
            plan.erase[index].tolist(),
        )
        np.testing.assert_allclose(result[index].permute(1, 2, 0).numpy(), expected, atol=1e-5)


def test_result_is_float32_channels_last_and_leaves_the_input_alone() -> None:
    images = batch_of(8, 32, 16)
    before = images.clone()
    result = augment(images, plan_of(8, 32, 16))
    assert result.shape == images.shape and result.dtype == torch.float32
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def test_memory_format_of_the_input_does_not_matter() -> None:
    images, plan = batch_of(6, 24, 20), plan_of(6, 24, 20)
    assert torch.equal(augment(images, plan), augment(images.contiguous(), plan))
    assert torch.equal(normalize(images), normalize(images.contiguous()))


def test_normalize_is_imagenets() -> None:
    images = batch_of(3, 8, 8)
    expected = (images.numpy().transpose(0, 2, 3, 1) / 255 - MEAN) / STD
    result = normalize(images)
    np.testing.assert_allclose(result.permute(0, 2, 3, 1).numpy(), expected, atol=1e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_works_in_training_after_extraction_in_inference_mode() -> None:
    with torch.inference_mode():
        normalize(batch_of(2, 18, 22))
    layer = torch.nn.Conv2d(3, 1, 1)
    layer(augment(batch_of(2, 18, 22), plan_of(2, 18, 22))).sum().backward()
    assert layer.weight.grad is not None


def test_same_generator_state_same_plan_and_another_seed_another() -> None:
    first, again, other = plan_of(64, 128, 64, 3), plan_of(64, 128, 64, 3), plan_of(64, 128, 64, 4)
    for name in ("flip", "crop_top", "crop_left", "erase"):
        assert torch.equal(getattr(first, name), getattr(again, name))
        assert not torch.equal(getattr(first, name), getattr(other, name))


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    augment(batch_of(4, 32, 16), plan_of(4, 32, 16))
    assert torch.equal(torch.get_rng_state(), before)


def test_slices_of_a_plan_augment_slices_of_the_batch() -> None:
    images, plan = batch_of(10, 32, 16), plan_of(10, 32, 16)
    parts = [augment(images[start:stop], plan.slice(start, stop)) for start, stop in ((0, 3), (3, 10))]
    assert len(plan.slice(3, 10)) == 7
    assert torch.equal(torch.cat(parts), augment(images, plan))


def test_a_plan_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="3 images"):
        augment(batch_of(4, 32, 16), plan_of(3, 32, 16))


def test_an_empty_batch() -> None:
    assert augment(batch_of(0, 32, 16), plan_of(0, 32, 16)).shape == (0, 3, 32, 16)


@pytest.mark.parametrize(("height", "width"), [(256, 128), (64, 32), (224, 224)])
def test_plans_are_distributed_like_the_oracles(height: int, width: int) -> None:
    count = 6000
    plan = plan_of(count, height, width, seed=1)
    assert abs(plan.flip.float().mean() - 0.5) < 0.03
    for corner in (plan.crop_top, plan.crop_left):
        assert stats.chisquare(np.bincount(corner.numpy(), minlength=21)).pvalue > 1e-3
        assert int(corner.min()) == 0 and int(corner.max()) == 20
    generator = random.Random(2)
    expected = np.array([oracle_erasing(height, width, generator) for _ in range(count)])
    actual = plan.erase.numpy()
    assert abs((actual[:, 2] > 0).mean() - (expected[:, 2] > 0).mean()) < 0.04
    actual, expected = actual[actual[:, 2] > 0], expected[expected[:, 2] > 0]
    for column in range(4):
        assert stats.ks_2samp(actual[:, column], expected[:, column]).pvalue > 1e-3
    area = [(boxes[:, 2] * boxes[:, 3]) / (height * width) for boxes in (actual, expected)]
    assert stats.ks_2samp(*area).pvalue > 1e-3
    assert (actual[:, 0] + actual[:, 2]).max() <= height and (actual[:, 1] + actual[:, 3]).max() <= width


def test_each_image_has_its_own_draw() -> None:
    plan = plan_of(64, 256, 128)
    assert 10 < int(plan.flip.sum()) < 54
    assert len(torch.unique(plan.erase, dim=0)) > 20
    corner = torch.stack([plan.crop_top, plan.crop_left], dim=1)
    assert len(torch.unique(corner, dim=0)) > 45


@pytest.mark.gpu
def test_cuda_gives_the_same_pictures() -> None:
    images, plan = batch_of(16, 64, 32), plan_of(16, 64, 32)
    result = augment(images.cuda(), plan)
    assert result.is_cuda and result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(result.cpu(), augment(images, plan))
