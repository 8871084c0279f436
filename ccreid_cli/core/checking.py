"""Settings of values from a file or a command line, checked by pydantic, in plain words.

pydantic is imported where it is needed: `--help` and completion answer without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from ccreid_cli.core.config import TrainConfig, settings
from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.suggest import did_you_mean

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

_CLUSTERS = 16
"""Clusters of a batch where `num_instances` is 0: those of 256 images with 16 of each, as published."""


def validate(values: Mapping[str, Any], where: str) -> TrainConfig:
    """Check settings and return them completed by the defaults, with a number of images for `num_instances` 0.

    Args:
        values: Setting name -> value.
        where: What to call the source of the values in an error.

    Raises:
        UsageError: An unknown name or a value out of range, in plain words.
    """
    for key in values:
        if key not in settings():
            guess = did_you_mean(key, settings())
            raise UsageError(f'{where}: unknown setting "{key}"; {guess or "see `ccreid train --help`."}')
    config: TrainConfig = check_fields(TrainConfig, values, where)
    if config.num_instances == 0:
        config = replace(config, num_instances=max(2, config.batch_size // _CLUSTERS))
    _check_together(config, where)
    return config


def check_fields(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Make a dataclass of values from a file or a command line.

    Raises:
        UsageError: A name that is not a field, a field without a value, or a value of another type or out of range.
    """
    from pydantic import ValidationError

    try:
        return _adapter(kind).validate_python(dict(values))
    except ValidationError as error:
        raise UsageError(f"{where}: {_first_problem(error)}") from error


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"])
    text = problem["msg"].replace("Input should be", "it should be")
    return f"{name} = {problem['input']!r}: {text}."


def _check_together(config: TrainConfig, where: str) -> None:
    if config.num_instances > config.batch_size:
        raise UsageError(
            f"{where}: --num-instances {config.num_instances} is more than the batch size {config.batch_size}.",
            "A batch holds batch-size / num-instances clusters; make it at least one, better four.",
        )
    try:
        config.milestone_epochs()
    except ValueError as error:
        raise UsageError(
            f'{where}: --milestones "{config.milestones}" are no rising numbers of epochs.',
            "Write them with commas, as in --milestones 20,40.",
        ) from error
