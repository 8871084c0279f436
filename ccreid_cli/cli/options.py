"""Every option that commands share, once. Defaults named in the help are checked against `core.config` by a test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ccreid_cli.cli import completing

DATA = "Data"
BATCHES = "Batches"
LABELS = "Pseudo-labels"
MODEL = "Model"
MEMORY = "Memory"
OPTIMIZER = "Optimisation"
RUN = "Run"
OUTPUT = "Output"

Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        help="Dataset by name (toy, market1501, dukemtmcreid, msmt17, personx, veri, ...), or a path to images of your "
        "own. Example: -d market1501",
        rich_help_panel=DATA,
        autocompletion=completing.datasets,
    ),
]
RecipeName = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Published settings to start from, by name or TOML file; flags override them. Default: the recipe named "
        "like the dataset. Example: --recipe market1501-nov2021",
        rich_help_panel=DATA,
        autocompletion=completing.recipes,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Folder of the datasets. Default: $CCREID_DATA_DIR, else ./data.", rich_help_panel=DATA
    ),
]
LogsDir = Annotated[
    Path | None,
    typer.Option("--logs-dir", help="Folder of the runs. Default: $CCREID_LOGS_DIR, else ./logs.", rich_help_panel=RUN),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-j",
        help="Threads that decode images, once. Default: 4.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
ShardImages = Annotated[
    bool | None,
    typer.Option(
        "--shard-images/--no-shard-images",
        help="Let each process decode and hold only its share of the images. Default: auto: on with several machines.",
        rich_help_panel=DATA,
        show_default=False,
    ),
]
Height = Annotated[
    int | None,
    typer.Option(
        "--height", help="Input height in pixels. Default: 256; veri 224.", rich_help_panel=DATA, show_default=False
    ),
]
Width = Annotated[
    int | None,
    typer.Option(
        "--width", help="Input width in pixels. Default: 128; veri 224.", rich_help_panel=DATA, show_default=False
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", "-b", help="Images per step, over all GPUs. Default: 256.", rich_help_panel=BATCHES),
]
ExtractBatch = Annotated[
    int | None,
    typer.Option("--batch-size", "-b", help="Images at once. Default: what suits the device.", rich_help_panel=DATA),
]
NumInstances = Annotated[
    int | None,
    typer.Option("--num-instances", help="Images of each cluster in a batch. Default: 16.", rich_help_panel=BATCHES),
]
NoCam = Annotated[
    bool | None,
    typer.Option(
        "--no-cam", help="Draw a cluster's images without regard to cameras. Default: off.", rich_help_panel=BATCHES
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="Clusterer: dbscan, or infomap (pip install 'ccreid\\[infomap]'). Default: dbscan.",
        rich_help_panel=LABELS,
        autocompletion=completing.clusterers,
    ),
]
Eps = Annotated[
    float | None,
    typer.Option(
        "--eps",
        help="Largest Jaccard distance between neighbours (dbscan), or smallest similarity (infomap). "
        "Default: 0.6; infomap 0.5; recipes differ.",
        rich_help_panel=LABELS,
    ),
]
K1 = Annotated[
    int | None,
    typer.Option("--k1", help="Nearest neighbours per image. Default: 30; infomap 15.", rich_help_panel=LABELS),
]
K2 = Annotated[
    int | None,
    typer.Option(
        "--k2",
        help="Neighbours averaged over (dbscan); clusters of at most this size are dropped (infomap). "
        "Default: 6; infomap 4.",
        rich_help_panel=LABELS,
    ),
]
MinSamples = Annotated[
    int | None,
    typer.Option("--min-samples", help="Neighbours that make a DBSCAN core point. Default: 4.", rich_help_panel=LABELS),
]
Arch = Annotated[
    str | None,
    typer.Option(
        "--arch",
        "-a",
        help="Backbone: resnet18, 34, 50, 101 or 152, resnet_ibn50a, resnet_ibn101a, mobilenet_v2, efficientnet_b0, "
        "convnext_tiny. Default: resnet50.",
        rich_help_panel=MODEL,
        autocompletion=completing.architectures,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        help="Starting weights: imagenet, none, or a file. Default: imagenet.",
        rich_help_panel=MODEL,
        autocompletion=completing.starting_weights,
    ),
]
Pooling = Annotated[
    str | None,
    typer.Option(
        "--pooling-type",
        help="Pooling: gem, avg or max. Default: gem.",
        rich_help_panel=MODEL,
        autocompletion=completing.poolings,
    ),
]
Features = Annotated[
    int | None,
    typer.Option(
        "--features",
        help="Size of a linear embedding after the pooling; 0 for none. Default: 0.",
        rich_help_panel=MODEL,
    ),
]
Dropout = Annotated[
    float | None,
    typer.Option("--dropout", help="Dropout of the feature while training, 0 to 1. Default: 0.", rich_help_panel=MODEL),
]
SamplesPerBn = Annotated[
    int | None,
    typer.Option(
        "--samples-per-bn",
        help="Images that share batch-norm statistics, whatever the number of GPUs. Default: 64.",
        rich_help_panel=MODEL,
    ),
]
Momentum = Annotated[
    float | None,
    typer.Option(
        "--momentum", help="Share of the old centroid kept in an update, 0 to 1. Default: 0.1.", rich_help_panel=MEMORY
    ),
]
Temp = Annotated[
    float | None,
    typer.Option("--temp", help="Temperature of the contrastive loss. Default: 0.05.", rich_help_panel=MEMORY),
]
UseHard = Annotated[
    bool | None,
    typer.Option(
        "--use-hard",
        help="Update a centroid with its least similar image of the batch, not with all. Default: off.",
        rich_help_panel=MEMORY,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--lr", help="Learning rate of Adam. Default: 0.00035.", rich_help_panel=OPTIMIZER),
]
WeightDecay = Annotated[
    float | None, typer.Option("--weight-decay", help="Weight decay. Default: 0.0005.", rich_help_panel=OPTIMIZER)
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Epochs. Default: 50.", rich_help_panel=OPTIMIZER)]
Iters = Annotated[int | None, typer.Option("--iters", help="Steps per epoch. Default: 200.", rich_help_panel=OPTIMIZER)]
StepSize = Annotated[
    int | None,
    typer.Option(
        "--step-size",
        help="Epochs after which the learning rate falls to a tenth. Default: 20.",
        rich_help_panel=OPTIMIZER,
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of everything random. Default: 1.", rich_help_panel=RUN)]
EvalStep = Annotated[
    int | None, typer.Option("--eval-step", help="Epochs between evaluations. Default: 10.", rich_help_panel=RUN)
]
PrintFreq = Annotated[
    int | None, typer.Option("--print-freq", help="Steps between shown losses. Default: 10.", rich_help_panel=RUN)
]
SaveEvery = Annotated[
    int | None,
    typer.Option(
        "--save-every",
        help="Also save within an epoch, every N steps; 0 saves after epochs only. Default: 0.",
        rich_help_panel=RUN,
    ),
]
Keep = Annotated[
    int | None,
    typer.Option("--keep", help="Newest checkpoints to keep beside best. Default: 2.", rich_help_panel=RUN),
]
RunName = Annotated[
    str | None,
    typer.Option("--name", help="Name of the run's folder. Default: dataset-arch-time.", rich_help_panel=RUN),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="auto, cpu, cuda, cuda:N or mps. Default: auto: the freest GPU, else the CPU.",
        rich_help_panel=RUN,
        autocompletion=completing.devices,
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="fp32, bf16, or auto: the faster one here, as a short trial finds. Default: auto.",
        rich_help_panel=RUN,
        autocompletion=completing.precisions,
    ),
]
Deterministic = Annotated[
    bool | None,
    typer.Option(
        "--deterministic",
        help="The same bits in every run on one GPU, a little slower. Default: off.",
        rich_help_panel=RUN,
    ),
]
Tensorboard = Annotated[
    bool | None,
    typer.Option(
        "--tensorboard",
        help="Also write TensorBoard event files (pip install 'ccreid\\[tensorboard]'). Default: off.",
        rich_help_panel=RUN,
    ),
]
Wandb = Annotated[
    bool | None,
    typer.Option(
        "--wandb", help="Also log to Weights & Biases, through its own package. Default: off.", rich_help_panel=RUN
    ),
]
Report = Annotated[
    bool,
    typer.Option("--report/--no-report", help="Write RUN/report.html at the end. Default: on.", rich_help_panel=RUN),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout", help="Seconds that one process of several waits for the others.", min=1, rich_help_panel=RUN
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus", help="GPUs to train on, one process each. Default: every visible GPU.", rich_help_panel=RUN, min=1
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.", rich_help_panel=OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.", rich_help_panel=OUTPUT)]
ProgressStyle = Annotated[
    str,
    typer.Option(
        "--progress",
        help="auto, rich (live bars), plain (lines), json (lines) or none.",
        rich_help_panel=OUTPUT,
        autocompletion=completing.progress_styles,
    ),
]
Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        help="A run (name or folder) or a checkpoint file, ours or the official code's. Example: --resume logs/RUN",
        rich_help_panel=MODEL,
        autocompletion=completing.runs,
    ),
]
Checkpoint = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        help="Which checkpoint of a run: last or best.",
        rich_help_panel=MODEL,
        autocompletion=completing.checkpoints,
    ),
]
Rerank = Annotated[bool, typer.Option("--rerank", help="Score k-reciprocal re-ranked distances.", rich_help_panel=DATA)]
