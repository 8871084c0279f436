"""`ccreid export`: a trained model as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ccreid_cli.cli import completion_values, output
from ccreid_cli.cli import options as opt
from ccreid_cli.cli.common import logs_dir_or_default, named_data_dir, refuse_existing
from ccreid_cli.cli.extract import model_request
from ccreid_cli.core.words import plural


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("export", rich_help_panel="Use a model")(export)


def export(
    run: opt.Model,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="onnx (pip install 'ccreid\\[onnx]'), torchscript or safetensors.",
            rich_help_panel=opt.OUTPUT,
            autocompletion=completion_values.choices("onnx", "torchscript", "safetensors"),
        ),
    ] = "onnx",
    out: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The file to write. Default: RUN.onnx here, likewise.", rich_help_panel=opt.OUTPUT
        ),
    ] = None,
    uint8_input: Annotated[
        bool,
        typer.Option(
            "--uint8-input",
            help="Put the normalisation inside: N x H x W x 3 uint8 in. Default: N x 3 x H x W float32, normalised.",
            rich_help_panel=opt.OUTPUT,
        ),
    ] = False,
    force: opt.Force = False,
    checkpoint: opt.Checkpoint = "last",
    pooling_type: opt.Pooling = None,
    data_dir: opt.DataDir = None,
    logs_dir: opt.LogsDir = None,
    height: opt.Height = None,
    width: opt.Width = None,
    resize: opt.Resize = None,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Write a trained model as ONNX, TorchScript or safetensors, with a model card (FILE.json, FILE.md) beside it.

    The file is compared with PyTorch before it is kept, on images of the run's dataset when they are at hand. ONNX and
    TorchScript take `images`, N x 3 x height x width float32 (RGB, ImageNet mean and deviation) and give `features`,
    N x D float32 rows of length one, as trackers expect of re-identification models.

    Examples: `ccreid export logs/RUN --format onnx -o reid.onnx`, `ccreid export RUN --format safetensors`.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.side_tasks import side_task
    from ccreid_cli.inference.embedder import open_embedder
    from ccreid_cli.inference.export import SUFFIXES, check_request, export_model, sample_images
    from ccreid_cli.inference.loading import checkpoint_file
    from ccreid_cli.inference.model_card import card_files, model_card, write_cards

    check_request(form, uint8_input, out)
    request, logs = model_request(run, checkpoint, pooling_type), logs_dir_or_default(logs_dir)
    file = out or Path(_stem(checkpoint_file(run, checkpoint, logs)) + SUFFIXES[form])
    refuse_existing(force, file)
    refuse_existing(force, *card_files(file))
    datasets = named_data_dir(data_dir)
    reporter = make_reporter(progress)
    embedder = open_embedder(
        request,
        logs_dir=logs,
        device="cpu",
        precision="fp32",
        height=height,
        width=width,
        resize=resize,
        reporter=reporter,
    )
    images, about_images = sample_images(embedder, datasets)
    reporter.message(f"writing {form} and checking it on {plural(len(images), 'image')}: {about_images}")
    check = export_model(embedder, form, file, images, about_images, uint8_input=uint8_input, reporter=reporter)
    card: dict[str, Any] = {}
    cards: tuple[Path, ...] = ()
    with side_task("the model card was not written", reporter):
        card = model_card(embedder, form, file, check, uint8_input=uint8_input)
        cards = write_cards(card, file)
    if as_json:
        output.print_json({"output": str(file), "cards": [str(path) for path in cards], "card": card})
        return
    output.print_line(
        f"{file}: checked on {plural(check.num_images, 'image')} ({check.images}), largest difference "
        f"{check.max_abs_difference:.1e}, smallest cosine {check.min_cosine:.6f}"
    )


def _stem(path: Path) -> str:
    """Return what to call the file: the run's name, or the checkpoint's."""
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name.split(".")[0]
