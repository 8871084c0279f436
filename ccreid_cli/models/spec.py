"""What a re-identification network is made of, in the values that decide what it computes."""

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
        with_pooled: The pooled feature beside the embedding, not the embedding alone.
        drop_path: Largest rate of stochastic depth in training, in [0, 1).
        height: Input height that position embeddings are made for; 0 for the backbone's own, or where there are none.
        width: Input width, likewise.
    """

    arch: str
    pooling_type: str = "gem"
    num_features: int = 0
    dropout: float = 0.0
    relu: bool = False
    with_pooled: bool = False
    drop_path: float = 0.0
    height: int = 0
    width: int = 0

    def in_words(self) -> str:
        """Return the network as a user would type it."""
        words = f"--arch {self.arch} --pooling-type {self.pooling_type} --features {self.num_features}"
        return words + (" --with-pooled" if self.with_pooled else "") + (" --neck-relu" if self.relu else "")
