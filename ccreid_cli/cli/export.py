"""`ccreid export`: a trained model as a file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ccreid_cli.cli import options as opt
from ccreid_cli.cli import output
from ccreid_cli.cli.common import logs_dir_or_default, named_data_dir, refuse_existing
from ccreid_cli.cli.completion import values as completion_values
from ccreid_cli.cli.model_use import model_request
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
            help="onnx (pip install 'ccreid\\[onnx]'), openvino ('ccreid\\[openvino]'), torchscript or safetensors.",
            rich_help_panel=opt.OUTPUT,
            autocompletion=completion_values.choices("onnx", "openvino", "torchscript", "safetensors"),
        ),
    ] = "onnx",
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="fp32, fp16 (onnx, openvino) or int8 (onnx; calibrated on training images).",
            rich_help_panel=opt.OUTPUT,
            autocompletion=completion_values.choices("fp32", "fp16", "int8"),
        ),
    ] = "fp32",
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
    dataset: opt.Dataset = None,
    columns: opt.Columns = None,
    pattern: opt.Pattern = None,
    data_dir: opt.DataDir = None,
    logs_dir: opt.LogsDir = None,
    height: opt.Height = None,
    width: opt.Width = None,
    resize: opt.Resize = None,
    as_json: opt.Json = False,
    progress: opt.ProgressStyle = "auto",
) -> None:
    """Write a trained model as ONNX, OpenVINO, TorchScript or safetensors, with a model card (FILE.json, FILE.md).

    The file is compared with PyTorch before it is kept, on images of the run's dataset when they are at hand (or of
    -d): the cosine of features must be 0.9999, in fp16 and int8 0.99, and there mAP before and after is shown too. All
    but safetensors take `images`, N x 3 x height x width float32 (RGB, ImageNet mean and deviation) and give
    `features`, N x D float32 rows of length one, as trackers expect of re-identification models.

    Examples: `ccreid export logs/RUN --format onnx -o reid.onnx`, `ccreid export RUN --precision int8`.
    """
    from ccreid_cli.cli.progress import make_reporter
    from ccreid_cli.core.side_tasks import side_task
    from ccreid_cli.inference.embedder import open_embedder
    from ccreid_cli.inference.export import (
        FORMS,
        NUM_CHECK_IMAGES,
        SUFFIXES,
        calibration_images,
        check_request,
        dataset_at_hand,
        export_model,
        files_of,
        open_exported,
        sample_images,
    )
    from ccreid_cli.inference.export_onnx import tensorrt_command
    from ccreid_cli.inference.exported_scores import score_both
    from ccreid_cli.inference.loading import checkpoint_file
    from ccreid_cli.inference.model_card import card_files, model_card, write_cards

    check_request(form, uint8_input, out, precision)
    request, logs = model_request(run, checkpoint, pooling_type), logs_dir_or_default(logs_dir)
    file = out or Path(_stem(checkpoint_file(run, checkpoint, logs)) + SUFFIXES[form])
    refuse_existing(force, *files_of(file, form))
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
    found = dataset_at_hand(embedder, datasets, dataset, columns, pattern)
    images, about_images = sample_images(embedder, found, NUM_CHECK_IMAGES[precision])
    reporter.message(f"writing {form} and checking it on {plural(len(images), 'image')}: {about_images}")
    check = export_model(
        embedder,
        form,
        file,
        images,
        about_images,
        uint8_input=uint8_input,
        precision=precision,
        calibration=calibration_images(embedder, found) if precision == "int8" else None,
        reporter=reporter,
    )
    if form == "onnx" and not uint8_input:
        reporter.message(f"a TensorRT engine of it: {tensorrt_command(file, *embedder.input_size)}")
    if form in FORMS and (misread := FORMS[form].boxmot_misreads(file, *embedder.input_size)):
        reporter.warning(misread)
    scores: dict[str, float] = {}
    if precision != "fp32" and found is not None and not found.why_not_scored:
        with side_task("the exported file was not scored", reporter):
            compute = open_exported(file, form, uint8_input)
            scores = score_both(embedder, compute, found, datasets or Path("data"), reporter)
    card: dict[str, Any] = {}
    cards: tuple[Path, ...] = ()
    with side_task("the model card was not written", reporter):
        card = model_card(embedder, form, file, check, uint8_input=uint8_input, precision=precision)
        cards = write_cards(card, file)
    if as_json:
        output.print_json({"output": str(file), "cards": [str(path) for path in cards], "card": card, "mAP": scores})
        return
    output.print_line(
        f"{file}: checked on {plural(check.num_images, 'image')} ({check.images}), largest difference "
        f"{check.max_abs_difference:.1e}, cosine {check.mean_cosine:.6f} on average, {check.min_cosine:.6f} at least"
    )
    if scores:
        output.print_line(f"mAP: {scores['before']:.2%} by PyTorch in fp32, {scores['after']:.2%} by the file")


def _stem(path: Path) -> str:
    """Return what to call the file: the run's name, or the checkpoint's."""
    return path.parent.parent.name if path.parent.name == "checkpoints" else path.name.split(".")[0]
