"""What a re-identification network is made of, in the five values that decide what it computes."""

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
        relu: ReLU after the neck, as in torchreid's heads.
    """

    arch: str
    pooling_type: str = "gem"
    num_features: int = 0
    dropout: float = 0.0
    relu: bool = False

    def in_words(self) -> str:
        """Return the network as a user would type it."""
        words = f"--arch {self.arch} --pooling-type {self.pooling_type} --features {self.num_features}"
        return words + (" --neck-relu" if self.relu else "")
