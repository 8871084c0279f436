"""Train recipes on the protocols that decide what stays in ccreid, and write the table of their scores.

Run it from a checkout with ccreid installed:

    python tests/accuracy.py a c --market Market-1501-v15.09.15 --weights WEIGHTS --recipes plain camera --seeds 1 2

Protocols:
    a  a cut of Market-1501 (150 training identities), MobileNetV2 from ImageNet, 128x64, 12 epochs x 40 steps of 64
    b  as a, on another cut that shares no identity with it: for choosing nothing on, only to confirm
    c  the cut of a, from osnet_x0_25_msmt17, 256x128, 6 epochs x 40 steps of 64
    d  the whole of Market-1501, from osnet_x0_25_msmt17, 256x128, 10 epochs x 100 steps of 64
    e  the whole of Market-1501, MobileNetV2 from ImageNet, 256x128, the paper's schedule (takes a GPU)

WEIGHTS is a folder with mobilenet_v2_imagenet.pth and osnet_x0_25_msmt17.pth. A run that is there is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ccreid_cli.cli.progress import make_reporter
from ccreid_cli.engine.run_folder import RunFolder
from ccreid_cli.engine.settings import resolve_config
from ccreid_cli.engine.start import train

SPLITS = ("bounding_box_train", "query", "bounding_box_test")
COMMON: dict[str, Any] = {
    "batch_size": 64,
    "num_instances": 8,
    "iters": 40,
    "momentum": 0.1,
    "eps": 0.5,
    "k1": 30,
    "k2": 6,
    "precision": "fp32",
}
SMALL_IMAGENET = {
    **COMMON,
    "arch": "mobilenet_v2",
    "weights": "mobilenet_v2_imagenet.pth",
    "height": 128,
    "width": 64,
    "epochs": 12,
    "step_size": 8,
}
FROM_TRACKER = {**COMMON, "arch": "osnet_x0_25", "weights": "osnet_x0_25_msmt17.pth", "height": 256, "width": 128}


@dataclass(frozen=True)
class Protocol:
    """What is trained on what.

    Attributes:
        images: "first" or "second" cut of Market-1501, or "whole".
        settings: What is trained where no recipe says otherwise; the file of weights by its name.
    """

    images: str
    settings: Mapping[str, Any]


PROTOCOLS = {
    "a": Protocol("first", SMALL_IMAGENET),
    "b": Protocol("second", SMALL_IMAGENET),
    "c": Protocol("first", {**FROM_TRACKER, "epochs": 6}),
    "d": Protocol("whole", {**FROM_TRACKER, "epochs": 10, "iters": 100, "step_size": 7}),
    "e": Protocol(
        "whole", {"arch": "mobilenet_v2", "weights": "mobilenet_v2_imagenet.pth", "height": 256, "width": 128}
    ),
}


def cut(market: Path, folder: Path, seed: int, taken: Iterable[str] = ()) -> Path:
    """Link 150 training and 75 test identities of Market-1501 into a folder of the same layout.

    Args:
        market: The folder Market-1501-v15.09.15.
        folder: Where it goes; one that is there is taken as it is.
        seed: Which identities are drawn.
        taken: Identities that are left out.
    """
    if folder.exists():
        return folder
    drawn = random.Random(seed)
    left_out = {*taken, "-1", "0000"}
    chosen = {}
    for split, count in (("bounding_box_train", 150), ("query", 75)):
        known = sorted(identities(market, split) - left_out)
        chosen[split] = set(drawn.sample(known, min(count, len(known))))
    chosen["bounding_box_test"] = chosen["query"]
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
        for image in (market / split).glob("*.jpg"):
            if image.name.split("_")[0] in chosen[split]:
                os.link(image, folder / split / image.name)
    return folder


def identities(market: Path, split: str) -> set[str]:
    """Return the identities of a split's file names."""
    return {image.name.split("_")[0] for image in (market / split).glob("*.jpg")}


def images_of(protocol: Protocol, market: Path, out: Path, mini: Path | None) -> Path:
    """Return the folder of a protocol's images; the first cut is `mini` where that is given."""
    if protocol.images == "whole":
        return market
    first = mini or cut(market, out / "first-cut", seed=1)
    if protocol.images == "first":
        return first
    return cut(market, out / "second-cut", seed=2, taken=identities(first, SPLITS[0]) | identities(first, "query"))


def run_one(name: str, recipe: str, seed: int, options: argparse.Namespace, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Train once, unless that was done, and return the line of the last epoch and the seconds."""
    protocol = PROTOCOLS[name]
    run = RunFolder(options.out / f"{name}-{recipe}-{seed}")
    if not (run.path / "result.json").exists():
        options.out.mkdir(parents=True, exist_ok=True)
        base = options.out / f"protocol-{name}.toml"
        base.write_text(
            "[train]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in protocol.settings.items())
        )
        settings = {
            "dataset": str(images_of(protocol, options.market, options.out, options.mini)),
            "weights": str(options.weights / protocol.settings["weights"]),
            "data_dir": options.out / "data",
            "logs_dir": options.out,
            "name": run.path.name,
            "seed": seed,
            "eval_step": 10_000,  # only the final score counts, and those before it would cost time
            **extra,
        }
        recipes = [] if recipe == "plain" else recipe.split("+")
        started = time.perf_counter()
        train(resolve_config(settings, {}, [str(base), *recipes]), reporter=make_reporter("auto"))
        (run.path / "seconds.json").write_text(json.dumps(time.perf_counter() - started))
    seconds = json.loads((run.path / "seconds.json").read_text()) if (run.path / "seconds.json").exists() else 0.0
    return {**run.read_metrics()[-1], "whole_seconds": seconds}


def table(found: Mapping[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Return the Markdown table of the means, with half the range over the seeds as spread.

    Args:
        found: (protocol, recipe) -> the last epoch of each seed.
    """
    rows = ["| protocol | recipe | runs | mAP | rank-1 | ARI of labels | minutes |", "|---|---|---|---|---|---|---|"]
    for (protocol, recipe), lines in found.items():
        scores = [_mean([100 * line[key] for line in lines]) for key in ("mAP", "rank1")]
        aris = [line["ari"] for line in lines if "ari" in line]
        ari = f"{statistics.mean(aris):.3f}" if aris else "–"
        minutes = statistics.mean(line["whole_seconds"] for line in lines) / 60
        rows.append(f"| {protocol} | {recipe} | {len(lines)} | {' | '.join(scores)} | {ari} | {minutes:.1f} |")
    return "\n".join(rows)


def _mean(values: list[float]) -> str:
    spread = (max(values) - min(values)) / 2
    return f"{statistics.mean(values):.1f}" + (f" ± {spread:.1f}" if len(values) > 1 else "")


def main() -> None:
    """Read the command line, train, print the table and keep it in the folder of the runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocols", nargs="+", choices=sorted(PROTOCOLS))
    parser.add_argument("--market", type=Path, required=True, help="the folder Market-1501-v15.09.15")
    parser.add_argument("--mini", type=Path, help="the first cut, where it was made by other means")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=["plain", "camera", "nocamera"], help="joined by + for layers")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings that differ, for trials")
    parser.add_argument("--out", type=Path, default=Path("logs/accuracy"))
    options = parser.parse_args()
    extra = {name: _value(text) for name, text in (pair.split("=", 1) for pair in options.set)}
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for protocol in options.protocols:
        for recipe in options.recipes:
            for seed in options.seeds:
                found[protocol, recipe].append(run_one(protocol, recipe, seed, options, extra))
                (options.out / "table.md").write_text(table(found) + "\n")
    print(table(found))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


if __name__ == "__main__":
    main()
