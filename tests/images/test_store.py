from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import SilentReporter
from ccreid_cli.images import cache as image_cache
from ccreid_cli.images import decoding
from ccreid_cli.images import store as image_store
from ccreid_cli.images.store import ImageStore, open_store

CPU = torch.device("cpu")


class Listener(SilentReporter):
    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.done: list[int] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    @contextmanager
    def task(self, description: str, total: int, unit: str = "it") -> Iterator[Listener]:
        yield self
        assert sum(self.done) == total

    def advance(self, amount: int = 1) -> None:
        self.done.append(amount)

    def note(self, **fields: object) -> None:
        pass


def write_image(path: Path, seed: int, size: tuple[int, int] = (20, 40)) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
    return path


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    return [write_image(folder / f"{index:02d}.jpg", index) for index in range(40)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's own cache folder out of the tests."""
    folder = tmp_path / "user"
    monkeypatch.setattr(image_store, "user_cache_folder", lambda: folder)
    return folder


@contextmanager
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_: object) -> None:
        raise AssertionError("an image was decoded again")

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "decode_chunk", refuse)
        yield


def expected(paths: list[Path], height: int = 32, width: int = 16) -> np.ndarray:
    """Decode with Pillow, one image after the other."""
    resized = [Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC) for path in paths]
    return np.stack([np.asarray(image) for image in resized])


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_pixels_are_pillows_in_the_order_of_the_paths(paths: list[Path], cache: Path, workers: int) -> None:
    order = paths[::-1]
    for folder in (None, cache):
        store = open_store(order, 32, 16, cache_folder=folder, workers=workers)
        assert len(store) == 40 and store.height == 32 and store.width == 16
        assert store.images.dtype == np.uint8
        np.testing.assert_array_equal(store.images, expected(order))


def test_gather_picks_any_images_without_changing_them(paths: list[Path], cache: Path) -> None:
    for folder in (None, cache):
        store = open_store(paths, 32, 16, cache_folder=folder)
        chosen = np.array([7, 0, 39, 7])
        for indices in (chosen, torch.from_numpy(chosen)):
            batch = store.gather(indices, CPU)
            assert batch.shape == (4, 3, 32, 16) and batch.dtype == torch.uint8
            assert batch.is_contiguous(memory_format=torch.channels_last)
            np.testing.assert_array_equal(batch.permute(0, 2, 3, 1).numpy(), expected(paths)[chosen])
        batch.zero_()
        np.testing.assert_array_equal(store.images, expected(paths))


def test_batches_do_not_share_memory(paths: list[Path]) -> None:
    store = open_store(paths, 32, 16, cache_folder=None)
    first = store.gather(np.arange(4), CPU)
    kept = first.clone()
    store.gather(np.arange(4, 8), CPU)
    assert torch.equal(first, kept)


def test_second_opening_reads_the_cache(paths: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_store(paths, 32, 16, cache_folder=cache)
    with no_decoding(monkeypatch):
        second = open_store(paths, 32, 16, cache_folder=cache)
    assert isinstance(second.images, np.memmap)
    np.testing.assert_array_equal(first.images, second.images)
    assert sorted(path.suffix for path in cache.iterdir()) == [".bin", ".json"]


def test_changed_files_are_noticed(paths: list[Path], cache: Path) -> None:
    open_store(paths, 32, 16, cache_folder=cache)
    write_image(paths[3], 99)
    np.testing.assert_array_equal(open_store(paths, 32, 16, cache_folder=cache).images, expected(paths))
    np.testing.assert_array_equal(open_store(paths, 32, 16, cache_folder=cache).images, expected(paths))
    assert len(list(cache.glob("*.bin"))) == 1


def test_a_file_of_the_same_size_but_another_time_is_noticed(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "picture.bmp"
    for seed in (1, 2):
        write_image(file, seed)
        os.utime(file, ns=(seed, seed))
        np.testing.assert_array_equal(open_store([file], 32, 16, cache_folder=cache).images, expected([file]))


def test_added_removed_and_reordered_files_are_noticed(paths: list[Path], cache: Path) -> None:
    open_store(paths, 32, 16, cache_folder=cache)
    added = [*paths, write_image(paths[0].with_name("zz.jpg"), 77)]
    for other in (added, paths[:-1], paths[::-1]):
        np.testing.assert_array_equal(open_store(other, 32, 16, cache_folder=cache).images, expected(other))


def test_each_size_has_its_cache(paths: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(paths, 32, 16, cache_folder=cache)
    open_store(paths, 16, 32, cache_folder=cache)
    with no_decoding(monkeypatch):
        for height, width in ((32, 16), (16, 32)):
            store = open_store(paths, height, width, cache_folder=cache)
            np.testing.assert_array_equal(store.images, expected(paths, height, width))


def _truncate(file: Path) -> None:
    os.truncate(file, 1000)


def _overwrite(file: Path) -> None:
    with file.open("rb+") as stream:
        stream.seek(32 * 16 * 3 * 20 + 7)
        stream.write(bytes(range(50)))


def _spoil_sidecar(file: Path) -> None:
    file.with_suffix(".json").write_text('{"count": ')


def _strange_sidecar(file: Path) -> None:
    file.with_suffix(".json").write_text(json.dumps({"count": 3, "surprise": True}))


def _list_sidecar(file: Path) -> None:
    file.with_suffix(".json").write_text("[1, 2]")


@pytest.mark.parametrize(
    "damage", [_truncate, _overwrite, _spoil_sidecar, _strange_sidecar, _list_sidecar, Path.unlink]
)
def test_a_damaged_cache_is_made_anew(paths: list[Path], cache: Path, damage: object) -> None:
    del_store = open_store(paths, 32, 16, cache_folder=cache)
    del del_store
    damage(next(cache.glob("*.bin")))  # type: ignore[operator]
    np.testing.assert_array_equal(open_store(paths, 32, 16, cache_folder=cache).images, expected(paths))
    np.testing.assert_array_equal(open_store(paths, 32, 16, cache_folder=cache).images, expected(paths))


def test_writing_to_the_images_does_not_reach_the_cache(paths: list[Path], cache: Path) -> None:
    open_store(paths, 32, 16, cache_folder=cache).images[:] = 0
    np.testing.assert_array_equal(open_store(paths, 32, 16, cache_folder=cache).images, expected(paths))


def break_images(paths: list[Path], how_many: int) -> None:
    for index in range(how_many):
        paths[3 * index].write_bytes(paths[3 * index].read_bytes()[:900])


@pytest.mark.parametrize("workers", [1, 2])
def test_broken_images_are_named(paths: list[Path], cache: Path, workers: int) -> None:
    break_images(paths, 7)
    paths[0].write_text("this is no image")
    paths[3].unlink()
    for folder in (None, cache):
        with pytest.raises(DataError) as caught:
            open_store(paths, 32, 16, cache_folder=folder, workers=workers)
        message = caught.value.message
        assert "7 of 40 images" in message and "and 2 more" in message
        assert f"{paths[0]} (not an image)" in message
        assert f"{paths[3]} (no such file or directory)" in message
        assert "runcated" in message and str(paths[6]) in message
        assert str(paths[18]) not in message
        assert caught.value.hint
    assert list(cache.iterdir()) == []


def test_no_images(cache: Path) -> None:
    store = open_store([], 32, 16, cache_folder=cache)
    assert len(store) == 0
    assert store.gather(np.empty(0, dtype=np.int64), CPU).shape == (0, 3, 32, 16)


def test_little_room_on_the_disk(paths: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "free_bytes", lambda folder: 100)
    listener = Listener()
    store = open_store(paths, 32, 16, cache_folder=cache, reporter=listener)
    np.testing.assert_array_equal(store.images, expected(paths))
    assert not isinstance(store.images, np.memmap)
    assert "no room" in listener.warnings[0]


def test_disk_full_while_writing(paths: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ccreid_cli.core.files.os.fsync", fail)
    listener = Listener()
    with monkeypatch.context() as patch:
        patch.setattr(listener, "task", SilentReporter().task)
        store = open_store(paths, 32, 16, cache_folder=cache, reporter=listener)
    np.testing.assert_array_equal(store.images, expected(paths))
    assert "No space left" in listener.warnings[0]
    assert list(cache.iterdir()) == []


def test_unwritable_cache_folder(paths: list[Path], tmp_path: Path, user_cache: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    listener = Listener()
    store = open_store(paths, 32, 16, cache_folder=blocked / "cache", reporter=listener)
    assert isinstance(store.images, np.memmap) and not listener.warnings
    assert list((user_cache / "images").glob("*.bin"))


def test_no_writable_cache_folder_at_all(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setattr(image_store, "user_cache_folder", lambda: blocked)
    listener = Listener()
    store = open_store(paths, 32, 16, cache_folder=blocked / "cache", reporter=listener)
    np.testing.assert_array_equal(store.images, expected(paths))
    assert "not writable" in listener.warnings[0]


def test_progress_counts_every_image(paths: list[Path]) -> None:
    break_images(paths, 2)
    listener = Listener()
    with pytest.raises(DataError, match="2 of 40"):
        open_store(paths, 32, 16, cache_folder=None, reporter=listener)
    assert sum(listener.done) == 40


@pytest.mark.parametrize("workers", [1, 2])
def test_an_interruption_leaves_nothing_behind(paths: list[Path], cache: Path, workers: int) -> None:
    class Impatient(Listener):
        @contextmanager
        def task(self, description: str, total: int, unit: str = "it") -> Iterator[Listener]:
            yield self

        def advance(self, amount: int = 1) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_store(paths, 32, 16, cache_folder=cache, workers=workers, reporter=Impatient())
    assert list(cache.iterdir()) == []


def test_stays_in_ram_when_the_device_has_too_little(paths: list[Path]) -> None:
    store = open_store(paths, 32, 16, cache_folder=None)
    assert store.to_device(CPU, max_bytes=0)  # nothing to move
    assert not store.to_device(torch.device("meta"), max_bytes=store.images.nbytes - 1)
    np.testing.assert_array_equal(store.gather(np.array([5]), CPU)[0].permute(1, 2, 0), expected(paths[5:6])[0])


@pytest.mark.gpu
def test_cuda_batches_are_the_same_with_and_without_a_resident_store(paths: list[Path]) -> None:
    store: ImageStore = open_store(paths, 32, 16, cache_folder=None)
    device = torch.device("cuda", torch.cuda.current_device())
    chosen = np.array([3, 39, 3, 0])
    sent = store.gather(chosen, device)
    assert store.to_device(device, max_bytes=10**9)
    resident = store.gather(chosen, device)
    for batch in (sent, resident):
        assert batch.is_cuda and batch.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(batch.permute(0, 2, 3, 1).cpu().numpy(), expected(paths)[chosen])
