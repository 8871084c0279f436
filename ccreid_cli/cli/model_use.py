"""What commands that use a trained model share: the options that name it, and how it is opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ccreid_cli.cli import options as opt
from ccreid_cli.cli.common import logs_dir_or_default

if TYPE_CHECKING:
    from ccreid_cli.core.reporter import Reporter
    from ccreid_cli.inference.embedder import Embedder
    from ccreid_cli.inference.loading import ModelRequest
    from ccreid_cli.machine.distributed import Group


@dataclass(frozen=True)
class ModelUse:
    """Options of a command (`opt.bind` makes one of each field): which model, on which images, on what device."""

    resume: opt.Resume = None
    checkpoint: opt.Checkpoint = "last"
    pooling_type: opt.Pooling = None
    logs_dir: opt.LogsDir = None
    height: opt.Height = None
    width: opt.Width = None
    resize: opt.Resize = None
    workers: opt.Workers = None
    batch_size: opt.ExtractBatch = None
    device: opt.Device = None
    precision: opt.Precision = None

    @property
    def logs(self) -> Path:
        """The folder of the runs."""
        return logs_dir_or_default(self.logs_dir)

    def open(
        self,
        num_images: int,
        reporter: Reporter,
        *,
        device: str | None = None,
        precision: str | None = None,
        group: Group | None = None,
    ) -> Embedder:
        """Load the model that the command line names.

        Args:
            num_images: How many images it will see.
            reporter: Where messages go.
            device: The device, in place of the one that is typed.
            precision: The number format where none is typed.
            group: The processes that open it together.

        Raises:
            UsageError: None is named, or an option contradicts it.
            DataError: There is no such run or checkpoint, or it is damaged.
            DeviceError: The device cannot be used.
        """
        from ccreid_cli.inference.embedder import open_embedder

        return open_embedder(
            model_request(self.resume, self.checkpoint, self.pooling_type),
            logs_dir=self.logs,
            device=device or self.device or "auto",
            precision=self.precision or precision or "auto",
            height=self.height,
            width=self.width,
            resize=self.resize,
            num_images=num_images,
            group=group,
            reporter=reporter,
        )


def model_request(resume: str | None, checkpoint: str, pooling_type: str | None) -> ModelRequest:
    """Return which network the command line means.

    Raises:
        UsageError: None is named.
    """
    from ccreid_cli.core.errors import UsageError
    from ccreid_cli.inference.loading import ModelRequest

    if resume is None:
        raise UsageError(
            "no trained model is named.", "Name a run or a checkpoint with --resume; see `ccreid runs list`."
        )
    return ModelRequest(resume, checkpoint, pooling_type=pooling_type)
