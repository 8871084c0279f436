"""Fixtures that several tests of using a model share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def embedder() -> object:
    """An `Embedder` of the tiny network, for pictures of 32 x 16."""
    import tiny
    import torch

    from ccreid_cli.inference.embedder import Embedder
    from ccreid_cli.inference.loading import LoadedModel, Preprocessing
    from ccreid_cli.models.reid_net import ModelSpec, ReidNet

    torch.manual_seed(0)
    assert tiny.TinyNet  # importing it registers the network
    model = ReidNet(ModelSpec("tiny")).eval()
    return Embedder(LoadedModel(model, "tiny", None, {}, torch.device("cpu")), Preprocessing(32, 16), "fp32")
