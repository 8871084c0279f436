"""`ccreid weights`: the starting weights, and checkpoints in other programs' forms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.common import logs_dir_or_default, refuse_existing
from ccreid_cli.cli.completion import values as completion_values

weights_app = typer.Typer(help="Fetch starting weights, convert checkpoints.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    app.add_typer(weights_app, name="weights", rich_help_panel="Data and weights")


@weights_app.command("list")
def list_weights(as_json: opt.Json = False) -> None:
    """List the released ImageNet weights and which are here. Example: `ccreid weights list`."""
    from ccreid_cli.models.registry import BACKBONES

    released = {arch: row for arch, row in BACKBONES.items() if row.url}
    if as_json:
        found = {
            arch: {
                "url": row.url,
                "path": str(row.path),
                "present": row.path.is_file(),
                "bytes": row.num_bytes,
                "licence": row.licence,
            }
            for arch, row in released.items()
        }
        output.print_json(found)
        return
    rows = [[arch, row.path.is_file(), f"{row.num_bytes / 1e6:.0f} MB", row.licence] for arch, row in released.items()]
    output.print_table("", ["arch", "here", "size", "made by, terms"], rows)


@weights_app.command("fetch")
def fetch(
    archs: Annotated[
        list[str],
        typer.Argument(
            help="Architectures, or all. Example: resnet50 resnet_ibn50a",
            autocompletion=completion_values.rows("arch", "all"),
        ),
    ],
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Download released ImageNet weights into torch.hub's folder, checked by hash.

    Example: `ccreid weights fetch all`.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.models.registry import BACKBONES
    from ccreid_cli.models.weights import ensure_weights, find_weights

    names = [arch for arch, row in BACKBONES.items() if row.url] if archs == ["all"] else archs
    for name in names:
        find_weights(name)  # a wrong name is refused before anything is downloaded
    reporter = make_reporter(progress)
    paths = {name: str(ensure_weights(name, reporter)) for name in names}
    if as_json:
        output.print_json(paths)
        return
    for name, path in paths.items():
        output.say(f"{name}: {path}")


@weights_app.command("where")
def where() -> None:
    """Print the folder where weights are kept: torch.hub's own. Example: `ccreid weights where`."""
    from ccreid_cli.core.paths import torch_hub_checkpoints

    output.print_line(str(torch_hub_checkpoints()))


@weights_app.command("convert")
def convert(
    source: Annotated[
        str, typer.Argument(help="A run (name or folder) or a checkpoint file.", autocompletion=completion_values.runs)
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="The form: official, safetensors, torchreid (OSNet, for trackers) or torchvision (backbone only).",
            autocompletion=completion_values.choices("official", "safetensors", "torchreid", "torchvision"),
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file. Default: beside the checkpoint.")
    ] = None,
    checkpoint: opt.Checkpoint = "last",
    pooling_type: opt.Pooling = None,
    logs_dir: opt.LogsDir = None,
    force: opt.Force = False,
) -> None:
    """Write a checkpoint in another program's form. Example: `ccreid weights convert RUN --to official`."""
    from ccreid_cli.core.errors import UsageError
    from ccreid_cli.inference.loading import checkpoint_file
    from ccreid_cli.models.file_forms import EXPORT_SUFFIXES, export_backbone, export_weights
    from ccreid_cli.models.reid_net import ReidNet
    from ccreid_cli.models.weight_files import load_reid_weights, read_weights, resolve_spec

    if to not in EXPORT_SUFFIXES:
        raise UsageError(f'there is no form "{to}".', f"Use one of: {', '.join(EXPORT_SUFFIXES)}.")
    path = checkpoint_file(source, checkpoint, logs_dir_or_default(logs_dir))
    file = read_weights(path)
    for note in file.notes:
        output.say(note)
    if not file.is_reid and to != "torchvision":
        raise UsageError(
            f"{file.title} holds a backbone only, no whole re-identification network.",
            "`--to torchvision` writes that backbone; for the other forms give a run or a whole checkpoint.",
        )
    target = out or path.with_name(f"{path.name.split('.')[0]}-{to}{EXPORT_SUFFIXES[to]}")
    refuse_existing(force, target)
    if not file.is_reid:
        export_backbone(file, target)
    else:
        epoch = file.meta.get("epoch", 0)
        network = ReidNet(resolve_spec(file, pooling_type=pooling_type), initialize_backbone=False)
        load_reid_weights(network, file.state_dict, source=file.title)
        export_weights(network.state_dict(), network.spec, target, to, epoch if isinstance(epoch, int) else 0)
    output.print_line(str(target))
