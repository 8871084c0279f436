"""The card of an exported model: what it is, how it was trained, how well it does, and what may be done with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ccreid_cli.core.files import atomic_write_text, sha256_of
from ccreid_cli.core.version import __version__
from ccreid_cli.core.words import plural, printable
from ccreid_cli.data.catalog import CATALOG
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.inference.embedder import Embedder
from ccreid_cli.inference.export import ExportCheck, contract_of

CODE_LICENCE = "The code that made this file, ccreid, is under the MIT licence."
WEIGHTS_LICENCE = (
    "The weights inherit the terms of the images they were trained on and of the weights that training started from."
)
PEOPLE = (
    "Re-identification models recognise people across cameras. Where people are in the pictures, the pictures, the "
    "features and search results are personal data: use the model only with a legal basis and the knowledge of those "
    "concerned, and not to decide about a person without a human check. Its errors are not spread evenly over people, "
    "clothes, light and cameras; measure them on your own data first."
)
_OF_THE_MACHINE = {"data_dir", "logs_dir", "workers", "name", "device", "keep", "print_freq", "save_every"}
_SCORES = {"mAP": "mAP", "rank1": "rank-1", "rank5": "rank-5", "rank10": "rank-10", "mINP": "mINP"}


def model_card(
    embedder: Embedder, form: str, file: Path, check: ExportCheck, *, uint8_input: bool, precision: str = "fp32"
) -> dict[str, Any]:
    """Collect what is known of an exported model.

    Args:
        embedder: The network that was exported.
        form: The file's form.
        file: The exported file.
        check: How it was checked.
        uint8_input: Whether its preprocessing is inside the graph.
        precision: The number format of its weights.

    Returns:
        Plain JSON values, without paths of this machine.
    """
    contract = contract_of(embedder, uint8_input)
    if form == "safetensors":
        # Weights have no input or output of their own; what they need is in `preprocess` and `spec`.
        contract = {key: contract[key] for key in ("model", "arch", "preprocess")}
    return {
        "format": "ccreid-model-card",
        "version": 1,
        "ccreid": __version__,
        "file": file.name,
        "file_format": form,
        "file_precision": precision,
        "file_bytes": file.stat().st_size,
        "file_sha256": sha256_of(file),
        **contract,
        "spec": dict(vars(embedder.model.spec)),
        "embedding_dim": embedder.embedding_dim,
        "num_parameters": sum(parameter.numel() for parameter in embedder.model.parameters()),
        "checkpoint": embedder.loaded.path.name if embedder.loaded.path else "",
        **_training(embedder),
        "check": check.as_json(),
        "licence": {"code": CODE_LICENCE, "weights": WEIGHTS_LICENCE},
        "people": PEOPLE,
    }


def _training(embedder: Embedder) -> dict[str, Any]:
    """Return dataset, settings and numbers, as far as the checkpoint and its run know them."""
    meta = embedder.loaded.meta
    progress = meta["training"] if isinstance(meta.get("training"), Mapping) else {}
    settings = {key: value for key, value in embedder.loaded.settings().items() if key not in _OF_THE_MACHINE}
    if "dataset" in settings:
        settings["dataset"] = Path(settings["dataset"]).name
    info = CATALOG.get(settings.get("dataset", ""))
    numbers = {which: _numbers(progress.get(which)) for which in ("last", "best")}
    return {
        "dataset": {"name": settings.get("dataset"), "terms": info.terms if info else None},
        "recipe": _recipe(embedder),
        "epochs_done": progress.get("epoch", meta.get("epoch")),
        "settings": settings,
        "numbers": {which: values for which, values in numbers.items() if values},
    }


def _numbers(text: Any) -> dict[str, Any]:
    found = json.loads(text) if isinstance(text, str) else None
    return found if isinstance(found, dict) else {}


def _recipe(embedder: Embedder) -> dict[str, Any] | None:
    path = embedder.loaded.path
    if path is None or path.parent.name != "checkpoints":
        return None
    recipe = RunFolder(path.parent.parent).read_environment().get("recipe")
    return recipe if isinstance(recipe, dict) else None


def card_files(file: Path) -> tuple[Path, Path]:
    """Return where the cards of an exported file are: ``FILE.json`` and ``FILE.md``."""
    return file.with_name(file.name + ".json"), file.with_name(file.name + ".md")


def write_cards(card: Mapping[str, Any], file: Path) -> tuple[Path, Path]:
    """Write a card beside the exported file, as `card_files` says.

    Raises:
        DataError: They cannot be written.
    """
    as_json, as_text = card_files(file)
    atomic_write_text(as_json, json.dumps(card, indent=2) + "\n")
    atomic_write_text(as_text, card_text(card))
    return as_json, as_text


def card_text(card: Mapping[str, Any]) -> str:
    """Return a card as Markdown."""
    dataset = _as_text(card["dataset"]["name"] or "an unknown dataset")
    sections = [
        f"# {card['arch']} trained on {dataset} by ccreid",
        f"{_as_code(card['file'])} turns pictures of people or vehicles into features of length "
        f"{card['embedding_dim']} whose dot product says how alike two of them are. "
        "It was trained without labels by Cluster Contrast (arXiv 2103.11568).",
        "## Use\n\n" + _use(card),
        "## Numbers\n\n" + _numbers_text(card),
        "## Training\n\n" + _training_text(card),
        "## Check\n\n" + _check_text(card),
        f"## Licence\n\n{card['licence']['code']} {card['licence']['weights']}"
        + (f"\n\n{dataset}: {card['dataset']['terms']}" if card["dataset"]["terms"] else ""),
        f"## Pictures of people\n\n{card['people']}",
    ]
    return "\n\n".join(sections) + "\n"


def _as_text(value: object) -> str:
    """Return a value so that Markdown takes none of its characters for its own."""
    return re.sub(r"[\\`*\[\]<>|:~&$]|(?<!\w)_|_(?!\w)", r"\\\g<0>", printable(str(value)))


def _as_code(text: str) -> str:
    """Return a name as Markdown's code."""
    return f"`` {printable(text)} ``" if "`" in text else f"`{printable(text)}`"


def _use(card: Mapping[str, Any]) -> str:
    preprocess = card["preprocess"]
    size = f"{preprocess['height']} x {preprocess['width']} (height x width)"
    numbers = f"mean {preprocess['mean']}, standard deviation {preprocess['std']} of RGB in [0, 1]"
    if "input" not in card:
        return (
            "Weights only. In Python: "
            + _as_code(f"from ccreid_cli import load_model; load_model({card['file']!r}).embed(['a.jpg'])")
            + ". "
            f"Input: RGB, {size}, {preprocess['resize']} resize; {numbers}."
        )
    rows = ["| | name | type | shape |", "|---|---|---|---|"]
    for side in ("input", "output"):
        entry = card[side]
        shape = " x ".join(str(length) for length in entry["shape"])
        rows.append(f"| {side} | `{entry['name']}` | {entry['dtype']} | {shape} |")
    inside = "Normalisation is inside the graph." if card["preprocess_inside"] else f"Normalise with {numbers}."
    return "\n".join(rows) + f"\n\nPrepare: {card['input']['prepare']}; size {size}. {inside} Features have length one."


def _numbers_text(card: Mapping[str, Any]) -> str:
    if not card["numbers"]:
        return "No evaluation is recorded in the checkpoint."
    head = ["", *_SCORES.values(), "epoch"]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for which, values in card["numbers"].items():
        cells = [f"{100 * values[key]:.1f}" if key in values else "" for key in _SCORES]
        rows.append(f"| {which} | {' | '.join(cells)} | {values.get('epoch', -1) + 1} |")
    note = (
        "In percent, on the dataset's own query and gallery. `best` was chosen by looking at the test labels; without "
        f"labels `last` is the honest one. This file comes from {_as_code(card['checkpoint'])}."
    )
    return "\n".join(rows) + "\n\n" + note


def _training_text(card: Mapping[str, Any]) -> str:
    recipe = card["recipe"] or {}
    named = (
        f"Recipe: {_as_text(recipe['title'])} ({_as_code(recipe['name'])}). "
        if recipe.get("title") and recipe.get("name")
        else ""
    )
    done = f"Epochs done: {card['epochs_done']}. " if card["epochs_done"] is not None else ""
    if not card["settings"]:
        return (named + done + "The checkpoint does not say with which settings it was trained.").strip()
    settings = "\n".join(f"| {key} | {_as_text(value)} |" for key, value in card["settings"].items())
    return f"{(named + done).strip()}\n\n| setting | value |\n|---|---|\n{settings}".strip()


def _check_text(card: Mapping[str, Any]) -> str:
    check = card["check"]
    return (
        f"Compared with PyTorch on {plural(check['num_images'], 'image')} ({check['images']}): largest difference "
        f"{check['max_abs_difference']:.1e}, cosine {check['mean_cosine']:.6f} on average, {check['min_cosine']:.6f} "
        "at least.\n\n"
        f"Model fingerprint `{card['model']}`, file SHA-256 `{card['file_sha256']}`."
    )
