"""The settings of a training run. One field is one setting: type, default, limits, help and option.

`checking` makes one of values from a file or a command line; importing this loads no pydantic.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from ccreid_cli.core.setting import Setting, SettingField, setting_fields

DATA = "Data"
BATCHES = "Batches"
LABELS = "Pseudo-labels"
MODEL = "Model"
METHOD = "Method"
OPTIMIZER = "Optimisation"
RUN = "Run"


@dataclass(frozen=True)
class TrainConfig:
    """Every setting of a training run. `checking.validate` makes one whose names and values are checked."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "allow_inf_nan": False}

    dataset: Annotated[
        str,
        Setting(
            "Dataset by name ({names}), or a path to images of your own. Example: -d market1501",
            DATA,
            short="-d",
            names="dataset",
            besides="path",
            default="",
            min_length=1,
        ),
    ] = "market1501"
    columns: Annotated[
        str,
        Setting(
            "What a manifest calls path, id, camera, split, query, gallery, tracklet, frame, time, checked; a folder "
            "takes id=names or id=folders. "
            "Example: --columns id=who,camera=site",
            DATA,
            default="by the first line",
        ),
    ] = ""
    pattern: Annotated[
        str,
        Setting(
            "Regular expression for the names of own images in a folder; what its groups id, camera, tracklet and "
            "frame match is taken. Example: --pattern '(?P<camera>.)_'",
            DATA,
            default="names of a tracker's crops are known",
        ),
    ] = ""
    data_dir: Annotated[
        Path, Setting("Folder of the datasets.", DATA, environment="CCREID_DATA_DIR", may_change=True)
    ] = Path("data")
    height: Annotated[int, Setting("Input height in pixels.", DATA, default="{}; recipes differ", ge=16, le=4096)] = 256
    width: Annotated[int, Setting("Input width in pixels.", DATA, default="{}; recipes differ", ge=16, le=4096)] = 128
    resize: Annotated[
        str,
        Setting(
            "How images are resized: bicubic, linear, or opencv (linear without antialiasing).",
            DATA,
            names=("bicubic", "linear", "opencv"),
            default="{}; torchreid's files: linear",
        ),
    ] = "bicubic"
    workers: Annotated[
        int, Setting("Threads that decode images, once.", DATA, short="-j", may_change=True, ge=0, le=256)
    ] = 4
    shard_images: Annotated[
        bool | None,
        Setting(
            "Let each process decode and hold only its share of the images.",
            DATA,
            option="--shard-images/--no-shard-images",
            default="auto: on with several machines",
            may_change=True,
        ),
    ] = None

    batch_size: Annotated[int, Setting("Images per step, over all GPUs.", BATCHES, short="-b", ge=2)] = 256
    num_instances: Annotated[
        int, Setting("Images of each cluster in a batch; 0 for a sixteenth of the batch.", BATCHES, ge=0)
    ] = 16
    use_cameras: Annotated[
        bool,
        Setting("Draw a cluster's images without regard to cameras.", BATCHES, option="--no-cam", inverted=True),
    ] = True

    colour_jitter: Annotated[
        float,
        Setting(
            "How strongly to change the colours of half of the images (light, contrast and so on); 1 is usual, 0 none.",
            BATCHES,
            ge=0,
        ),
    ] = 0.0

    cluster: Annotated[str, Setting("Clusterer: {names}.", LABELS, names="clusterer")] = "dbscan"
    eps: Annotated[
        float | Literal["auto"],
        Setting(
            "Largest Jaccard distance between neighbours (dbscan; auto: the best one at the start of each epoch), or "
            "smallest similarity (infomap).",
            LABELS,
            default="{}; recipes differ",
            names=("auto",),
            besides="number",
            gt=0,
            lt=1,
        ),
    ] = 0.6
    k1: Annotated[int, Setting("Nearest neighbours per image.", LABELS, ge=1)] = 30
    k2: Annotated[
        int,
        Setting(
            "Neighbours averaged over (dbscan); clusters of at most this size are dropped (infomap).", LABELS, ge=1
        ),
    ] = 6
    min_samples: Annotated[int, Setting("Neighbours that make a DBSCAN core point.", LABELS, ge=1)] = 4

    neighbors: Annotated[
        str,
        Setting(
            "exact, or approximate: most of the neighbours in a fraction of the time, for many images.",
            LABELS,
            names=("exact", "approximate"),
        ),
    ] = "exact"
    recall: Annotated[
        float,
        Setting(
            "With approximate neighbours: share of the true ones that is to be found; measured and shown.",
            LABELS,
            gt=0,
            lt=1,
        ),
    ] = 0.95

    camera_norm: Annotated[
        bool, Setting("Standardise features within each camera before they are clustered.", LABELS)
    ] = False
    camera_batch_norm: Annotated[
        bool,
        Setting(
            "Compute the features for labels and first centroids with batch-norm statistics of each image's camera; "
            "replaces --camera-norm.",
            LABELS,
        ),
    ] = False
    drop_single_camera: Annotated[
        bool,
        Setting(
            "Give no label to clusters that only one camera sees, once most clustered images are in others.", LABELS
        ),
    ] = False

    background_norm: Annotated[
        bool,
        Setting(
            "Remove from features what the colours at the images' edges predict of them, before they are clustered.",
            LABELS,
        ),
    ] = False

    arch: Annotated[str, Setting("Backbone: {names}.", MODEL, short="-a", names="architecture")] = "resnet50"
    weights: Annotated[
        str, Setting("Starting weights: imagenet, none, or a file.", MODEL, names=("imagenet", "none"), besides="path")
    ] = "imagenet"
    pooling_type: Annotated[str, Setting("Pooling: {names}.", MODEL, names="pooling")] = "gem"
    features: Annotated[int, Setting("Size of a linear embedding after the pooling; 0 for none.", MODEL, ge=0)] = 0
    neck_relu: Annotated[bool, Setting("ReLU after the neck, as torchreid's networks end.", MODEL)] = False
    dropout: Annotated[float, Setting("Dropout of the feature while training, 0 to 1.", MODEL, ge=0, lt=1)] = 0.0
    with_pooled: Annotated[
        bool, Setting("Keep the pooled feature beside the embedding of --features, as PCL-CLIP does.", MODEL)
    ] = False
    drop_path: Annotated[
        float, Setting("Largest rate of stochastic depth of a network of timm, 0 to 1.", MODEL, ge=0, lt=1)
    ] = 0.0
    freeze_patch_embed: Annotated[bool, Setting("Leave the layer that makes patches into tokens as it is.", MODEL)] = (
        False
    )
    grad_checkpointing: Annotated[
        bool,
        Setting(
            "Compute activations twice instead of keeping them: less memory, the same result.", MODEL, may_change=True
        ),
    ] = False
    samples_per_bn: Annotated[
        int, Setting("Images that share batch-norm statistics, whatever the number of GPUs.", MODEL, ge=2)
    ] = 64

    method: Annotated[str, Setting("What a step learns from: {names}.", METHOD, names="method")] = "cluster-contrast"
    momentum: Annotated[float, Setting("Share of the old centroid kept in an update, 0 to 1.", METHOD, ge=0, le=1)] = (
        0.1
    )
    temp: Annotated[float, Setting("Temperature of the contrastive loss.", METHOD, gt=0)] = 0.05
    use_hard: Annotated[
        bool, Setting("Update a centroid with its least similar image of the batch, not with all.", METHOD)
    ] = False
    proxy_weight: Annotated[
        float,
        Setting(
            "Weight of the inter-camera proxies (camera-contrast), times the share of images in clusters that several "
            "cameras see.",
            METHOD,
            ge=0,
        ),
    ] = 1.0

    weight_averaging: Annotated[
        float,
        Setting(
            "Share that a step keeps of a running mean of the weights, which is scored, saved and exported in place of "
            "the network itself; 0 for none. Example: --weight-averaging 0.98",
            METHOD,
            ge=0,
            lt=1,
        ),
    ] = 0.0

    optimizer: Annotated[
        str, Setting("adam, adamw, or sgd (momentum 0.9).", OPTIMIZER, names=("adam", "adamw", "sgd"))
    ] = "adam"
    lr: Annotated[float, Setting("Learning rate.", OPTIMIZER, gt=0)] = 3.5e-4
    weight_decay: Annotated[float, Setting("Weight decay.", OPTIMIZER, ge=0)] = 5e-4
    epochs: Annotated[int, Setting("Epochs.", OPTIMIZER, may_change=True, ge=1)] = 50
    iters: Annotated[int, Setting("Steps per epoch.", OPTIMIZER, ge=1)] = 200
    step_size: Annotated[int, Setting("Epochs after which the learning rate falls to a tenth.", OPTIMIZER, ge=1)] = 20
    milestones: Annotated[
        str,
        Setting(
            "Epochs after which the learning rate falls to a tenth, in place of --step-size. "
            "Example: --milestones 20,40",
            OPTIMIZER,
            default="none",
        ),
    ] = ""
    warmup: Annotated[
        int, Setting("Epochs in which the learning rate rises evenly to its value at first.", OPTIMIZER, ge=0)
    ] = 0
    warmup_factor: Annotated[
        float, Setting("Share of the learning rate that --warmup begins with.", OPTIMIZER, gt=0, le=1)
    ] = 0.01

    logs_dir: Annotated[Path, Setting("Folder of the runs.", RUN, environment="CCREID_LOGS_DIR", may_change=True)] = (
        Path("logs")
    )
    name: Annotated[str | None, Setting("Name of the run's folder.", RUN, default="dataset-arch-time")] = None
    seed: Annotated[int, Setting("Seed of everything random.", RUN, ge=0, lt=2**31)] = 1
    eval_step: Annotated[int, Setting("Epochs between evaluations.", RUN, may_change=True, ge=1)] = 10
    print_freq: Annotated[int, Setting("Steps between shown losses.", RUN, may_change=True, ge=1)] = 10
    save_every: Annotated[
        int,
        Setting("Also save within an epoch, every N steps; 0 saves after epochs only.", RUN, may_change=True, ge=0),
    ] = 0
    keep: Annotated[int, Setting("Newest checkpoints to keep beside best.", RUN, may_change=True, ge=1)] = 2
    device: Annotated[
        str,
        Setting(
            "auto, cpu, cuda, cuda:N or mps.",
            RUN,
            names=("auto", "cpu", "cuda", "cuda:0", "mps"),
            besides="text",
            default="{}: the freest GPU, else the CPU",
            may_change=True,
        ),
    ] = "auto"
    precision: Annotated[
        str,
        Setting(
            "fp32, bf16, or auto: the faster one here, as a short trial finds.", RUN, names=("auto", "fp32", "bf16")
        ),
    ] = "auto"
    deterministic: Annotated[bool, Setting("The same bits in every run on one GPU, a little slower.", RUN)] = False
    tensorboard: Annotated[
        bool,
        Setting("Also write TensorBoard event files (pip install 'ccreid[tensorboard]').", RUN, may_change=True),
    ] = False
    wandb: Annotated[bool, Setting("Also log to Weights & Biases, through its own package.", RUN, may_change=True)] = (
        False
    )

    def milestone_epochs(self) -> tuple[int, ...]:
        """Return `milestones` as numbers, each larger than the one before.

        Raises:
            ValueError: They are not that.
        """
        epochs = tuple(int(part) for part in self.milestones.split(",")) if self.milestones else ()
        if any(later <= earlier for earlier, later in zip((0, *epochs), epochs, strict=False)):
            raise ValueError(self.milestones)
        return epochs

    def as_json(self) -> dict[str, Any]:
        """Return the settings by name, paths as texts: what JSON and TOML can hold."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}

    def to_json(self) -> str:
        """Return the settings as JSON text, as checkpoints keep them."""
        return json.dumps(self.as_json())

    def to_toml(self) -> str:
        """Return the settings as a recipe file that gives the same run."""
        values = {name: value for name, value in self.as_json().items() if value is not None}
        # TOML reads JSON's strings, but neither its surrogate pairs nor a bare DEL.
        lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items()]
        return "[train]\n" + "".join(lines).replace("\x7f", "\\u007f")


def settings() -> dict[str, SettingField]:
    """Return every setting by name, in the order of the fields."""
    return setting_fields(TrainConfig)


def may_change_on_resume() -> list[str]:
    """Return the settings that do not alter what is computed. Every other one is fixed by the checkpoint."""
    return [name for name, field in settings().items() if field.setting.may_change]
