"""What a re-identification network is made of, in the four values that decide its shape."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelSpec:
    """The description from which a `ReidNet` is built, kept in every checkpoint.

    Args:
        arch: A name of `models.registry.BACKBONES`.
        pooling_type: A name of `models.registry.POOLINGS`.
        num_features: Size of the linear embedding after the pooling (``--features``); 0 means none.
        dropout: Probability of dropping a feature in training, in [0, 1).
    """

    arch: str
    pooling_type: str = "gem"
    num_features: int = 0
    dropout: float = 0.0

    def in_words(self) -> str:
        """Return the network as a user would type it."""
        return f"--arch {self.arch} --pooling-type {self.pooling_type} --features {self.num_features}"
