"""The weights that timm has for its networks, through timm's own cache."""

from __future__ import annotations

from torch import Tensor, nn

from ccreid_cli.core.components import require
from ccreid_cli.core.errors import NetworkError, UsageError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.models.fitting import load_exactly
from ccreid_cli.models.timm_networks import TimmBackbone
from ccreid_cli.models.weight_files import load_projection


def load_timm_weights(model: nn.Module, reporter: Reporter) -> None:
    """Load the weights that timm has for the backbone of a `ReidNet`, through timm's own cache.

    Raises:
        UsageError: timm has none.
        NetworkError: They are not in the cache and cannot be downloaded.
        CheckpointError: They do not fit.
    """
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, TimmBackbone)
    state = _released_state(backbone, reporter)
    load_exactly(backbone, backbone.without_heads(state), f"timm:{backbone.name}")
    load_projection(model, state)


def _released_state(backbone: TimmBackbone, reporter: Reporter) -> dict[str, Tensor]:
    """Return the weights of a network, heads and all."""
    name = backbone.name
    timm = require("timm", "timm")
    if backbone.has_stem or not timm.models.is_model_pretrained(name.partition(".")[0]):
        raise UsageError(f"timm has no released weights for {name}.", "Give a file with --weights, or --weights none.")
    reporter.message(f"weights of timm:{name}, from timm's cache or, once, from where timm has them.")
    try:
        net = timm.create_model(name, pretrained=True, **backbone.about.options)
    except Exception as error:  # timm's downloads go through libraries that raise nearly every type there is
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise NetworkError(
            f"no weights for timm:{name}: {reason}",
            "Give a file with `--weights FILE`, or start from nothing with `--weights none`.",
        ) from error
    state: dict[str, Tensor] = net.state_dict()
    return state
