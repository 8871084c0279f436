from __future__ import annotations

import hashlib
import subprocess
import sys
import types
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import get_model_weights, mobilenet_v2

from ccreid_cli.core.errors import CheckpointError, NetworkError, UsageError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.models import weights
from ccreid_cli.models.registry import BACKBONES, BackboneRow
from ccreid_cli.models.reid_net import ModelSpec, build_model
from ccreid_cli.models.weights import ensure_weights, find_weights


@pytest.fixture(autouse=True)
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_every_backbone_has_released_weights() -> None:
    assert all(len(row.sha256_prefix) == 8 and int(row.sha256_prefix, 16) for row in BACKBONES.values() if row.url)
    assert BACKBONES["resnet_ibn50a"].sha256_prefix == "d9d0bb7b"
    assert BACKBONES["resnet_ibn101a"].file_name == "resnet101_ibn_a-59ea0ac6.pth"


@pytest.mark.parametrize("arch", [arch for arch, row in BACKBONES.items() if row.url and "ibn" not in arch])
def test_addresses_are_torchvisions_own(arch: str) -> None:
    published = get_model_weights(arch).IMAGENET1K_V1
    assert BACKBONES[arch].url == published.url
    assert BACKBONES[arch].num_bytes == pytest.approx(published.meta["_file_size"] * 2**20, rel=0.01)


def test_files_lie_where_torch_hub_looks(hub: Path) -> None:
    assert BACKBONES["resnet50"].path == hub / "resnet50-0676ba61.pth"
    assert Path(torch.hub.get_dir()) / "checkpoints" == hub


def _put(monkeypatch: pytest.MonkeyPatch, arch: str, content: bytes) -> BackboneRow:
    """Publish `content` as the weights of `arch`."""
    prefix = hashlib.sha256(content).hexdigest()[:8]
    source = replace(BACKBONES[arch], url=f"https://weights.invalid/{arch}-{prefix}.pth")
    monkeypatch.setitem(BACKBONES, arch, source)
    return source


class _Downloads:
    """Stands in for the downloader."""

    def __init__(self, content: bytes | None) -> None:
        self.content, self.calls = content, []

    def download(self, urls: Sequence[str], target: Path, **options: Any) -> Path:
        self.calls.append((list(urls), target, options))
        if self.content is None:
            raise NetworkError("the server cannot be reached.")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(self.content)
        return target


def _install(monkeypatch: pytest.MonkeyPatch, content: bytes | None) -> _Downloads:
    downloads = _Downloads(content)
    module = types.ModuleType("ccreid_cli.transfer.download")
    module.download = downloads.download  # type: ignore[attr-defined]  # a stand-in for the real module
    monkeypatch.setitem(sys.modules, "ccreid_cli.transfer.download", module)
    return downloads


def test_file_that_is_there_is_checked_and_not_downloaded(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    downloads = _install(monkeypatch, None)
    source = _put(monkeypatch, "resnet18", b"weights")
    assert find_weights("resnet18") is None
    hub.mkdir(parents=True)
    source.path.write_bytes(b"weights")
    assert find_weights("resnet18") == source.path == ensure_weights("resnet18", SilentReporter())
    source.path.write_bytes(b"spoilt!")
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        ensure_weights("resnet18", SilentReporter())
    assert "ccreid weights fetch resnet18" in str(caught.value.hint)
    assert downloads.calls == [] and source.path.read_bytes() == b"spoilt!"


def test_download_is_asked_for_the_published_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    downloads = _install(monkeypatch, b"weights")
    source = _put(monkeypatch, "resnet18", b"weights")
    assert ensure_weights("resnet18", SilentReporter()) == source.path
    [(urls, target, options)] = downloads.calls
    assert (urls, target, options["sha256_prefix"]) == ([source.url], source.path, source.sha256_prefix)


def test_no_network_says_how_to_get_the_file_by_hand(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    _install(monkeypatch, None)
    with pytest.raises(NetworkError, match="cannot be reached") as caught:
        build_model(ModelSpec("resnet50"))
    hint = caught.value.hint or ""
    for part in (BACKBONES["resnet50"].url, str(hub), "--weights none", "--weights FILE"):
        assert part in hint


def test_imagenet_start_uses_the_downloaded_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = mobilenet_v2().state_dict()
    torch.save(state, tmp_path / "made.pth")
    content = (tmp_path / "made.pth").read_bytes()
    _install(monkeypatch, content)
    _put(monkeypatch, "mobilenet_v2", content)
    loaded = build_model(ModelSpec("mobilenet_v2")).backbone.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(UsageError) as caught:
        find_weights("resnet_ibn50b")
    assert (caught.value.hint or "").startswith('did you mean "resnet_ibn50a"?')


def test_the_catalogue_needs_no_torch() -> None:
    code = f"import sys, {weights.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
