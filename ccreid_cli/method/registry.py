"""The methods that ``--method`` knows. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccreid_cli.core.components import Component

if TYPE_CHECKING:
    from ccreid_cli.core.config import TrainConfig
    from ccreid_cli.method.interface import Method, MethodFactory
    from ccreid_cli.models.reid_net import ReidNet


def _cluster_contrast() -> MethodFactory:
    from ccreid_cli.method.cluster_contrast import ClusterContrast

    return ClusterContrast


def _camera_contrast() -> MethodFactory:
    from ccreid_cli.method.camera_contrast import CameraContrast

    return CameraContrast


METHODS: dict[str, Component[MethodFactory]] = {
    "cluster-contrast": Component("Cluster Contrast (Dai et al., 2021)", _cluster_contrast),
    "camera-contrast": Component(
        "Cluster Contrast with inter-camera proxies (after Cho et al., 2022)", _camera_contrast
    ),
}


def make_method(model: ReidNet, config: TrainConfig) -> Method:
    """Return what a run learns from.

    Args:
        model: The network, on its device.
        config: The run's settings; its method is one of `METHODS`.
    """
    method = METHODS[config.method].load()(model, config)
    if not config.weight_averaging:
        return method
    from ccreid_cli.method.averaging import WeightAveraging

    return WeightAveraging(method, model, config.weight_averaging)
