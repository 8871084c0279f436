"""What the stages of `ccreid bench` share: settings, device, network and images, and the form of a result."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from ccreid_cli.bench.measure import Machine, Measurement, measure
from ccreid_cli.bench.synthetic import made_images
from ccreid_cli.core.config import TrainConfig
from ccreid_cli.core.errors import UsageError
from ccreid_cli.core.reporter import Reporter
from ccreid_cli.engine.adopting import spec_of
from ccreid_cli.images.opening import keep_on_device
from ccreid_cli.images.store import ImageStore
from ccreid_cli.inference.feature_file import normalize_rows, read_features
from ccreid_cli.machine.device import choose_fastest_convolutions, resolve_device
from ccreid_cli.models.placing import place, probe_precision
from ccreid_cli.models.reid_net import ReidNet, build_model

BASELINE_NETWORK = "fp32 channels first, network alone"
"""What `Bench.baseline_model` is."""


@dataclass(frozen=True)
class BenchSettings:
    """What to measure.

    Attributes:
        config: A recipe with the flags applied: network, image size, thresholds, and the epoch that is projected.
        num_images: Images (features for `labels`) of every stage; None takes what suits stage and device.
        batch_size: Images of a step or an extraction batch; None takes what suits the device.
        dim: Width of made features.
        num_queries: Queries of `eval`.
        num_gallery: Gallery images of `eval`.
        features: Features (N, D) for `labels` instead of made ones.
        features_name: Their name in the result.
        growth: Whether `labels` is measured at an eighth, a quarter, a half and the whole of its size.
        budget: Seconds after which a measurement is not repeated, but for the one repetition on a GPU.
    """

    config: TrainConfig
    num_images: int | None = None
    batch_size: int | None = None
    dim: int = 2048
    num_queries: int = 3368
    num_gallery: int = 15913
    features: torch.Tensor | None = None
    features_name: str = ""
    growth: bool = False
    budget: float = 8.0


@dataclass(frozen=True)
class StageResult:
    """What was measured of one stage.

    Attributes:
        stage: ``labels``, ``step``, ``extract``, ``eval``, ``store build`` or ``store read``.
        size: What it worked on, in words.
        count: How many images (`eval`: queries) it worked through.
        seconds: Median of the runs.
        peak_bytes: Peak memory above what was in use before; None where not known.
        ceiling: The operation whose speed limits it, in words.
        ceiling_share: Time that the ceiling alone would need / time it took.
        baseline_seconds: Time of a baseline for the same work; None where that is not measured.
        baseline: What the baseline is.
        parts: Seconds of parts of the stage.
        note: Anything else to show.
        numbers: Sizes that a projection needs.
        error: Why there is no result.
    """

    stage: str
    size: str = ""
    count: int = 0
    seconds: float = 0.0
    peak_bytes: int | None = None
    ceiling: str = ""
    ceiling_share: float | None = None
    baseline_seconds: float | None = None
    baseline: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    note: str = ""
    numbers: dict[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def rate(self) -> float:
        """Images (`eval`: queries) per second."""
        return self.count / self.seconds if self.seconds else 0.0

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the baseline."""
        return self.baseline_seconds / self.seconds if self.baseline_seconds and self.seconds else None

    def as_json(self) -> dict[str, Any]:
        """Return everything, with rate and ratio."""
        return {**asdict(self), "rate": self.rate, "ratio": self.ratio}


class Bench:
    """What the stages share: settings, device, and the network with its precision, made on first use.

    Args:
        settings: What to measure.
        reporter: Where messages go.

    Attributes:
        device: Where everything computes.
        machine: The ceilings of that device.
    """

    def __init__(self, settings: BenchSettings, reporter: Reporter) -> None:
        self.settings = settings
        self.reporter = reporter
        choose_fastest_convolutions()  # as training does
        self.choice = resolve_device(settings.config.device)
        self.device = self.choice.device
        self.machine = Machine(self.device, min(1.0, settings.budget))
        self._model: ReidNet | None = None
        self._precision = ""

    @property
    def on_gpu(self) -> bool:
        """Whether it is a CUDA GPU: sizes are larger then."""
        return self.device.type == "cuda"

    @property
    def model(self) -> ReidNet:
        """The network with random weights, on the device."""
        if self._model is None:
            config = self.settings.config
            torch.manual_seed(config.seed)
            self._model = place(
                build_model(spec_of(config), weights="none", samples_per_bn=config.samples_per_bn), self.device
            )
        return self._model

    @property
    def precision(self) -> str:
        """The number format of the network, found as training finds it."""
        if not self._precision:
            config = self.settings.config
            self._precision = probe_precision(config.precision, self.model, self.device, config.height, config.width)
        return self._precision

    def forget_model(self) -> None:
        """Free the network: a stage that ran out of memory may have left it with gradients."""
        self._model = None

    def baseline_model(self) -> ReidNet:
        """Return a copy of the network as PyTorch makes it: float32, channels first."""
        return copy.deepcopy(self.model).to(memory_format=torch.contiguous_format)

    @torch.no_grad()
    def forward_flops(self) -> float:
        """Count the operations of the network for one image, forward; a training step takes three times as many."""
        config = self.settings.config
        images = torch.zeros(1, 3, config.height, config.width, device=self.device)
        with FlopCounterMode(display=False) as counter:
            self.model.eval()(images)
        return float(counter.get_total_flops())

    def image_store(self, num_images: int) -> ImageStore:
        """Return a store of made images, on the device where they fit."""
        store = ImageStore(made_images(num_images, self.settings.config.height, self.settings.config.width))
        keep_on_device(store, self.device)
        return store

    def measure(self, action: Callable[[], Any], *, share: float = 1.0, most: int = 5) -> Measurement:
        """Time `action` on the device, for a share of the budget: see `measure.measure`."""
        return measure(action, self.device, budget=share * self.settings.budget, most=most)

    def images_or(self, on_cpu: int, on_gpu: int) -> int:
        """Return the number of images asked for, else what suits the device."""
        return self.settings.num_images or (on_gpu if self.on_gpu else on_cpu)


def read_rows(path: Path) -> torch.Tensor:
    """Read the features of an ``.npz`` file as unit rows, (N, D) float32.

    Raises:
        DataError: The file is missing, damaged or holds no features.
    """
    return torch.from_numpy(normalize_rows(read_features(path, need_ids=False).features))


def check_sizes(settings: BenchSettings) -> None:
    """Refuse sizes nothing can be measured at.

    Raises:
        UsageError: One is too small.
    """
    for option, value, least in (
        ("-n", settings.num_images, 2),
        ("--batch-size", settings.batch_size, 2),
        ("--dim", settings.dim, 1),
        ("--queries", settings.num_queries, 1),
        ("--gallery", settings.num_gallery, 1),
    ):
        if value is not None and value < least:
            raise UsageError(f"{option} is {value}, but must be at least {least}.")
