"""Networks of which only names and shapes are wanted: built without memory, and without drawing starting weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FILLS = {
    *("uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_", "erfinv_", "clamp_"),
    *("mul_", "add_", "fill_", "zero_"),
}


@contextmanager
def without_tensors() -> Iterator[None]:
    """Make every tensor on PyTorch's meta device, where it has a shape and no values.

    PyTorch would pass over them to start them all the same, which takes most of the time of building a transformer.
    """
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Leave out the operations that only change the values of a tensor that has none."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Hand on all others."""
        named = dict(kwargs or {})
        if getattr(func, "__name__", "") in _FILLS:
            filled = args[0] if args else named["tensor"]
            if filled.is_meta:
                return filled
        return func(*args, **named)
