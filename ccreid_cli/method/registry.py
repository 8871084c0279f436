"""The methods that ``--method`` knows. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccreid_cli.core.components import Component

if TYPE_CHECKING:
    from ccreid_cli.method.interface import MethodFactory


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
