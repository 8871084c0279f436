"""Taking over from a file of starting weights which network it is: a default is not the user's choice.

Imports no torch until such a file is given, so that `--dry-run` answers at once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ccreid_cli.core.checking import validate
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
# What a checkpoint of ccreid records of its images.
_IMAGES = ("height", "width", "resize")


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
    """Replace network, input size and resize of defaults and recipe by those of the weight file, if any; say so.

    Args:
        resolved: The settings.
        reporter: Where it is said.

    Raises:
        UsageError: An option that the user typed contradicts the file.
        UsageError: What the file records of its images is no size or way to resize.
        CheckpointError: The file cannot be read, or fits no known network.
    """
    config = resolved.config
    if config.weights in ("imagenet", "none"):
        return resolved
    from ccreid_cli.models.programs import PROGRAMS
    from ccreid_cli.models.weight_files import adopted_spec, read_weights, recorded_entry

    path = Path(config.weights).expanduser()
    file = read_weights(path)
    program = PROGRAMS.get(file.kind)
    if program and program.resize and resolved.sources["resize"] == "default":
        reporter.message(f"images are resized as {program.name} resizes them: --resize {program.resize}.")
        resolved = _with(resolved, {"resize": program.resize})
    recorded = recorded_entry(file.meta, "preprocess", str(path))
    images = {name: recorded[name] for name in _IMAGES if name in recorded and resolved.sources[name] != "flag"}
    images = {name: value for name, value in images.items() if value != getattr(config, name)}
    if images:
        reporter.message(f"{path.name} says which images it takes: {_in_words(images, config)}.")
        resolved = _with(resolved, images)
        validate(resolved.config.as_json(), str(path))
    config = resolved.config
    typed = {field for field, name in _NAMES.items() if resolved.sources[name] == "flag"}
    spec = adopted_spec(file, spec_of(config), typed)
    if program and program.relu and not spec.relu:
        reporter.message(f"the ReLU at the end of {program.name}'s head is left out in training; --neck-relu keeps it.")
    found = {name: getattr(spec, field) for field, name in _NAMES.items()}
    changed: dict[str, Any] = {name: value for name, value in found.items() if value != getattr(config, name)}
    if not changed:
        return resolved
    reporter.message(f"{path.name} says which network it is: {_in_words(changed, config)}.")
    sources = {**resolved.sources, **dict.fromkeys(changed, _SOURCE)}
    for name, value in brought_along("arch", spec.arch).items() if "arch" in changed else ():
        if sources[name] == "default" or sources[name].startswith("recipe "):
            changed[name], sources[name] = value, f"default of {spec.arch}"
    return replace(resolved, config=replace(config, **changed), sources=sources)


def _with(resolved: ResolvedConfig, values: dict[str, Any]) -> ResolvedConfig:
    sources = {**resolved.sources, **dict.fromkeys(values, _SOURCE)}
    return replace(resolved, config=replace(resolved.config, **values), sources=sources)


def _in_words(values: dict[str, Any], instead_of: TrainConfig) -> str:
    return ", ".join(
        f"{settings()[name].option} {value} (not {getattr(instead_of, name)})" for name, value in values.items()
    )
