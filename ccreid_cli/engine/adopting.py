"""Taking over from a file of starting weights which network it is: a default is not the user's choice.

Imports no torch until such a file is given, so that `--dry-run` answers at once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ccreid_cli.core.components import find_row
from ccreid_cli.core.config import TrainConfig, settings
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.engine.settings import ResolvedConfig, brought_along
from ccreid_cli.models.registry import BACKBONES
from ccreid_cli.models.spec import ModelSpec

_SOURCE = "weights file"
# The fields of a network's description -> the settings of the same meaning.
_NAMES = {
    "arch": "arch",
    "pooling_type": "pooling_type",
    "num_features": "features",
    "relu": "neck_relu",
    "with_pooled": "with_pooled",
}


def spec_of(config: TrainConfig) -> ModelSpec:
    """Return the network that settings describe."""
    is_sized = find_row(BACKBONES, "architecture", config.arch).sized
    return ModelSpec(
        config.arch,
        config.pooling_type,
        config.features,
        config.dropout,
        config.neck_relu,
        config.with_pooled,
        config.drop_path,
        *((config.height, config.width) if is_sized else (0, 0)),
    )


def adopt_weights_file(resolved: ResolvedConfig, reporter: Reporter) -> ResolvedConfig:
    """Replace the network of defaults and recipe by that of the weight file, where one is given; say so.

    Args:
        resolved: The settings.
        reporter: Where it is said.

    Raises:
        UsageError: An option that the user typed contradicts the file.
        CheckpointError: The file cannot be read, or fits no known network.
    """
    config = resolved.config
    if config.weights in ("imagenet", "none"):
        return resolved
    from ccreid_cli.models.programs import PROGRAMS
    from ccreid_cli.models.weight_files import adopted_spec, read_weights

    path = Path(config.weights).expanduser()
    file = read_weights(path)
    program = PROGRAMS.get(file.kind)
    if program and program.resize and resolved.sources["resize"] == "default":
        reporter.message(f"images are resized as {program.name} resizes them: --resize {program.resize}.")
        config = replace(config, resize=program.resize)
        resolved = replace(resolved, config=config, sources={**resolved.sources, "resize": _SOURCE})
    typed = {field for field, name in _NAMES.items() if resolved.sources[name] == "flag"}
    spec = adopted_spec(file, spec_of(config), typed)
    if program and program.relu and not spec.relu:
        reporter.message(f"the ReLU at the end of {program.name}'s head is left out in training; --neck-relu keeps it.")
    found = {name: getattr(spec, field) for field, name in _NAMES.items()}
    changed: dict[str, Any] = {name: value for name, value in found.items() if value != getattr(config, name)}
    if not changed:
        return resolved
    words = [f"{settings()[name].option} {value} (not {getattr(config, name)})" for name, value in changed.items()]
    reporter.message(f"{path.name} says which network it is: {', '.join(words)}.")
    sources = {**resolved.sources, **dict.fromkeys(changed, _SOURCE)}
    for name, value in brought_along("arch", spec.arch).items() if "arch" in changed else ():
        if sources[name] == "default" or sources[name].startswith("recipe "):
            changed[name], sources[name] = value, f"default of {spec.arch}"
    return replace(resolved, config=replace(config, **changed), sources=sources)
