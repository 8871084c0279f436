"""The settings of a run: they survive their file, and what may change on resume alters nothing that is computed."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from ccreid_cli.core import config as config_module
from ccreid_cli.core.checking import validate
from ccreid_cli.core.config import TrainConfig, may_change_on_resume


@settings(max_examples=40, deadline=None)
@given(
    eps=st.floats(0, 1, exclude_min=True, exclude_max=True) | st.just("auto"),
    lr=st.floats(1e-12, 10),
    seed=st.integers(0, 2**31 - 1),
    name=st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1),
)
def test_settings_survive_their_file(eps: float | Literal["auto"], lr: float, seed: int, name: str | None) -> None:
    config = TrainConfig(eps=eps, lr=lr, seed=seed, name=name)
    assert validate(tomllib.loads(config.to_toml())["train"], "file") == config


def test_what_may_change_on_resume() -> None:
    read_from_the_environment = {name for name, field in config_module.settings().items() if field.setting.environment}
    assert read_from_the_environment <= set(may_change_on_resume())
    assert not {"lr", "eps", "batch_size", "arch", "seed", "iters", "momentum"} & set(may_change_on_resume())


def test_help_and_completion_need_no_pydantic() -> None:
    code = "import sys, ccreid_cli.engine.settings; print({'pydantic', 'numpy', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
