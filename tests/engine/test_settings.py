"""Settings: defaults < recipe < environment < flags, and wrong ones in plain words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ccreid_cli.core.checking import validate
from ccreid_cli.core.components import find_row
from ccreid_cli.core.config import settings
from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.recipes import load_recipe, recipe_names
from ccreid_cli.engine.settings import REGISTRIES, check_names, label_settings, resolve_config
from ccreid_cli.models.registry import BACKBONES
from ccreid_cli.pseudo_labels.registry import CLUSTERERS

DATASETS = ("market1501", "dukemtmcreid", "msmt17", "personx", "veri")


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid_and_name_real_things(name: str) -> None:
    recipe = load_recipe(name)
    config = validate(recipe.values, name)
    if config.arch.startswith("timm:"):
        pytest.importorskip("timm")
    assert recipe.about.title
    assert recipe.about.source or name == "toy"
    check_names(config)
    if "dataset" in recipe.values:  # one without goes over a dataset's own
        assert config.dataset in REGISTRIES["dataset"]
        assert name.startswith(config.dataset)
    for arch in recipe.about.published:
        find_row(BACKBONES, "architecture", arch)


def test_both_paper_versions_are_there_for_every_dataset() -> None:
    expected = {dataset + suffix for dataset in DATASETS for suffix in ("", "-nov2021", "-nov2021-infomap")}
    assert expected | {"toy"} <= set(recipe_names())


PUBLISHED_V1 = {
    "market1501": {"eps": 0.4, "iters": 200},
    "dukemtmcreid": {"eps": 0.7, "iters": 200},
    "dukemtmcreid-ibn": {"eps": 0.6, "iters": 200, "arch": "resnet_ibn50a"},
    "personx": {"eps": 0.7, "iters": 200},
    "msmt17": {"eps": 0.7, "iters": 400},
    "veri": {"eps": 0.7, "iters": 400, "height": 224, "width": 224},
    "market1501-ibn-hard": {"eps": 0.4, "iters": 400, "use_hard": True, "arch": "resnet_ibn50a"},
    "dukemtmcreid-ibn-hard": {"eps": 0.6, "iters": 400, "use_hard": True, "arch": "resnet_ibn50a"},
    "market1501-nov2021": {"eps": 0.6, "iters": 200, "cluster": "dbscan"},
    "msmt17-nov2021-infomap": {"eps": 0.5, "k1": 15, "k2": 4, "iters": 400, "cluster": "infomap"},
}


@pytest.mark.parametrize("name", sorted(PUBLISHED_V1))
def test_recipes_hold_the_published_settings(name: str) -> None:
    config = resolve_config({}, {}, [name]).config
    common = {"batch_size": 256, "epochs": 50, "momentum": 0.1, "num_instances": 16, "pooling_type": "gem"}
    common |= {"lr": 3.5e-4, "weight_decay": 5e-4, "step_size": 20, "temp": 0.05}
    for key, value in {**common, **PUBLISHED_V1[name]}.items():
        assert getattr(config, key) == value, key


TRANSFORMERS = {
    "market1501-vit": {"eps": 0.6, "num_instances": 8, "use_hard": True, "momentum": 0.2, "drop_path": 0.3},
    "msmt17-vit": {"eps": 0.7, "num_instances": 8, "use_hard": True, "momentum": 0.2, "epochs": 50, "step_size": 20},
    "market1501-clip": {"eps": 0.5, "num_instances": 16, "features": 512, "with_pooled": True, "warmup": 10},
    "msmt17-clip": {"eps": 0.7, "freeze_patch_embed": True, "milestones": "20,40", "epochs": 60, "momentum": 0.1},
}


@pytest.mark.parametrize("name", sorted(TRANSFORMERS))
def test_recipes_of_transformers_hold_the_published_settings(name: str) -> None:
    pytest.importorskip("timm")
    config = resolve_config({}, {}, [name]).config
    common = {"batch_size": 256, "optimizer": "sgd", "lr": 3.5e-4, "weight_decay": 5e-4, "iters": 200}
    common |= {"height": 256, "width": 128, "pooling_type": "class", "temp": 0.05}
    for key, value in {**common, **TRANSFORMERS[name]}.items():
        assert getattr(config, key) == value, key


def test_a_transformer_brings_its_pooling_along() -> None:
    pytest.importorskip("timm")
    found = resolve_config({"dataset": "market1501", "arch": "timm:test_vit"}, {})
    assert (found.config.pooling_type, found.sources["pooling_type"]) == ("class", "default of timm:test_vit")
    assert resolve_config({"dataset": "market1501", "arch": "timm:test_resnet"}, {}).config.pooling_type == "gem"


def test_precedence() -> None:
    environment = {"CCREID_DATA_DIR": "/env/data", "CCREID_LOGS_DIR": "/env/logs", "CCREID_EPOCHS": "3"}
    resolved = resolve_config({"dataset": "veri", "logs_dir": Path("/flag"), "iters": 7}, environment)
    config, sources = resolved.config, resolved.sources
    assert (config.height, sources["height"]) == (224, "recipe veri")
    assert (config.data_dir, sources["data_dir"]) == (Path("/env/data"), "environment CCREID_DATA_DIR")
    assert (config.logs_dir, sources["logs_dir"]) == (Path("/flag"), "flag")
    assert (config.iters, sources["iters"]) == (7, "flag")
    assert (config.print_freq, sources["print_freq"]) == (10, "default")
    assert set(sources) == set(settings())
    assert resolved.recipe is not None and resolved.recipe.name == "veri"


def test_environment_may_be_empty() -> None:
    assert resolve_config({"dataset": "toy"}, {"CCREID_DATA_DIR": ""}).config.data_dir == Path("data")


def test_a_recipe_can_name_the_dataset() -> None:
    assert resolve_config({}, {}, ["msmt17-nov2021"]).config.dataset == "msmt17"


def test_a_flag_wins_over_the_dataset_of_the_recipe() -> None:
    resolved = resolve_config({"dataset": "personx"}, {}, ["market1501"])
    assert (resolved.config.dataset, resolved.config.eps) == ("personx", 0.4)


def test_own_images_need_no_recipe() -> None:
    resolved = resolve_config({"dataset": "some/folder"}, {})
    assert resolved.recipe is None
    assert resolved.config.eps == 0.6


def test_another_clusterer_brings_its_own_settings() -> None:
    resolved = resolve_config({"dataset": "market1501", "cluster": "infomap", "k1": 20}, {})
    assert (resolved.config.eps, resolved.sources["eps"]) == (0.5, "default of infomap")
    assert (resolved.config.k1, resolved.sources["k1"]) == (20, "flag")
    same = resolve_config({"dataset": "market1501", "cluster": "dbscan"}, {})
    assert (same.config.eps, same.sources["eps"]) == (0.4, "recipe market1501")


def test_defaults_are_those_of_dbscan() -> None:
    for key, value in CLUSTERERS["dbscan"].defaults.items():
        assert settings()[key].default == value


@pytest.mark.parametrize(
    ("flags", "recipe", "words"),
    [
        ({}, None, "no dataset"),
        ({"dataset": "toy"}, "toi", 'did you mean "toy"'),
        ({"dataset": "toy"}, "no/such.toml", "no/such.toml does not exist"),
        ({"dataset": "toy", "epochs": 0}, None, "epochs = 0"),
        ({"dataset": "toy", "lr": -1.0}, None, "lr = -1"),
        ({"dataset": "toy", "momentum": 1.5}, None, "momentum = 1.5"),
        ({"dataset": "toy", "cluster": "kmeans"}, None, "dbscan"),
        ({"dataset": "toy", "arch": "resnet5"}, None, 'did you mean "resnet50"'),
        ({"dataset": "toy", "method": "cluster"}, None, "cluster-contrast"),
        (
            {"dataset": "toy", "eps": 1.0},
            None,
            "eps = 1.0: it should be auto or a number greater than 0 and less than 1",
        ),
        ({"dataset": "toy", "eps": "best"}, None, "it should be auto or a number"),
        (
            {"dataset": "toy", "eps": "auto", "cluster": "infomap"},
            None,
            "--eps auto does not go with --cluster infomap",
        ),
        ({"dataset": "toy", "lr": float("nan")}, None, "lr = nan"),
        ({"dataset": "toy", "precision": "fp8"}, None, "'fp32'"),
        ({"dataset": "toy", "pooling_type": "mean"}, None, "gem"),
        ({"dataset": "toy", "epoch": 3}, None, 'did you mean "epochs"'),
        ({"dataset": "toy", "batch_size": 8, "num_instances": 16}, None, "--num-instances 16"),
    ],
)
def test_wrong_settings(flags: dict[str, Any], recipe: str | None, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_config(flags, {}, [recipe] if recipe else [])
    assert words in f"{caught.value.message} {caught.value.hint}"
    assert "pydantic" not in caught.value.message


@pytest.mark.parametrize(("batch_size", "expected"), [(256, 16), (64, 4), (100, 6), (12, 2)])
def test_sixteen_clusters_make_a_batch(batch_size: int, expected: int) -> None:
    flags = {"dataset": "market1501", "batch_size": batch_size}
    found = resolve_config(flags, {}, ["camera"])
    assert found.config.num_instances == expected and found.sources["num_instances"] == "recipe camera"
    assert resolve_config({**flags, "num_instances": 3}, {}, ["camera"]).config.num_instances == 3


def test_a_recall_goes_with_approximate_neighbours() -> None:
    with pytest.raises(UsageError, match="--recall says how many"):
        resolve_config({"dataset": "toy", "recall": 0.9}, {})
    with pytest.raises(UsageError, match="--recall says how many"):
        label_settings({}, {"recall": 0.9})
    assert label_settings({"neighbors": "approximate"}, {"recall": 0.9}).recall == 0.9
    assert resolve_config({"dataset": "toy", "recall": 0.9, "neighbors": "approximate"}, {}).config.recall == 0.9


def test_a_recipe_file_is_read_by_its_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[train]\ndataset = "toy"\nepochs = 3\n')
    resolved = resolve_config({}, {}, [str(file)])
    assert resolved.config.epochs == 3
    assert resolved.sources["epochs"] == f"recipe {file}"


def test_recipes_go_over_one_another_and_over_that_of_the_dataset(tmp_path: Path) -> None:
    first, second = tmp_path / "first.toml", tmp_path / "second.toml"
    first.write_text("[train]\nk1 = 20\niters = 7\n")
    second.write_text("[train]\niters = 9\n")
    resolved = resolve_config({"dataset": "veri", "epochs": 3}, {}, [str(first), str(second)])
    values = resolved.config
    assert (values.height, values.k1, values.iters, values.epochs) == (224, 20, 9, 3)
    assert resolved.sources["height"] == "recipe veri"
    assert resolved.sources["k1"] == f"recipe {first}"
    assert resolved.sources["iters"] == f"recipe {second}"
    assert resolved.recipe is not None and resolved.recipe.name == f"veri + {first} + {second}"
    assert not resolved.recipe.about.published

    over_another = resolve_config({"dataset": "veri"}, {}, [str(first), "market1501-nov2021"])
    assert (over_another.config.height, over_another.config.eps, over_another.config.k1) == (256, 0.6, 20)


def test_recipes_of_two_datasets_do_not_mix() -> None:
    with pytest.raises(UsageError, match="market1501 and veri are each for a dataset"):
        resolve_config({}, {}, ["market1501", "veri"])
