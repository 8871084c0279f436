"""What labels take in one process of several: bytes received from others, as its kernel counts them, and seconds."""

from __future__ import annotations

import os
import socket
import struct
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ccreid_cli.bench.plan import Workload
from ccreid_cli.machine.distributed import process_group
from ccreid_cli.pseudo_labels import jaccard
from ccreid_cli.pseudo_labels.clustering import ClusterSettings
from ccreid_cli.pseudo_labels.neighbors import FeatureTable
from ccreid_cli.pseudo_labels.pipeline import pseudo_labels

SETTINGS = ClusterSettings(eps=0.5)
_BYTES_RECEIVED = 128
"""Where `struct tcp_info` of Linux has tcpi_bytes_received."""


def bytes_received() -> int:
    """Sum what came over this process's open TCP connections so far; payload, without headers."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            is_socket = str(entry.readlink()).startswith("socket:")
        except FileNotFoundError:  # the descriptor that lists the folder
            continue
        if not is_socket:
            continue
        with socket.socket(fileno=os.dup(int(entry.name))) as found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
                info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                total += struct.unpack_from("<Q", info, _BYTES_RECEIVED)[0]
    return total


def received_for_labels(features: Tensor, known: int) -> tuple[int, int]:
    """Return bytes received for labels, of a share of the features, and for `known` bytes of each that are gathered."""
    torch.set_num_threads(1)
    with process_group(torch.device("cpu"), 300) as group:
        before = bytes_received()
        group.maximum(0)  # waits for all, after each count: nothing is on its way, and all connections are open
        group.gather_rows(torch.zeros(known, dtype=torch.uint8), [known] * group.world)
        between = bytes_received()
        group.maximum(0)
        start, stop = group.bounds(len(features))
        pseudo_labels(features[start:stop].clone(), SETTINGS, total=len(features), group=group)
        after = bytes_received()
        group.maximum(0)
    return after - between, between - before


def seconds_of_labels(file: Path) -> tuple[dict[str, float], int, float]:
    """Return seconds of each stage, bytes received, and bytes per second of an exchange; features from an ``.npy``."""
    torch.set_num_threads(1)
    features = np.load(file, mmap_mode="r")
    with process_group(torch.device("cpu"), 3000) as group:
        sent = torch.zeros(1 << 26, dtype=torch.uint8)
        begin = time.perf_counter()
        group.gather_rows(sent, [len(sent)] * group.world)
        rate = len(sent) * (group.world - 1) / (time.perf_counter() - begin)
        own = torch.from_numpy(features[slice(*group.bounds(len(features)))].copy())
        pseudo_labels(own[:500], SETTINGS)  # whatever is slow the first time
        before = bytes_received()
        group.maximum(0)
        found = pseudo_labels(own, SETTINGS, total=len(features), group=group)
        received = bytes_received() - before
        group.maximum(0)
    return found.seconds, received, rate


def workload(features: Tensor, world: int) -> Workload:
    """Describe labels of these features to the plan: how long their sparse rows are is measured."""
    table, k1, k2 = FeatureTable(features), SETTINGS.k1, SETTINGS.k2
    similarities, indices = table.nearest(k1)
    half, unit = jaccard.half_size(k1), jaccard.weight_unit(k2)
    mutual, _ = jaccard.reciprocal_neighbors(table, indices, half)
    expanded = jaccard.expansion_weights(table, similarities, indices, half=half, unit=unit)
    averaged = jaccard.average_weights(table, expanded, indices, k2)
    members = [float(int(count) / len(table)) for count in (mutual.sum(), expanded.offsets[-1], averaged.offsets[-1])]
    reciprocal, *entries = members
    return Workload(
        len(table), world, features.shape[1], reciprocal=reciprocal, expanded=entries[0], averaged=entries[1]
    )
