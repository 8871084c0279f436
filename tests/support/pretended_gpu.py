"""A GPU that is none: tensors that compute on the CPU but insist on being on ``cuda:0`` or ``mps:0``.

Inside `pretended` PyTorch says that it has one GPU. Whatever is made on it or copied to it is a tensor of the CPU with
another class, which answers with the GPU when asked for its device, refuses what a tensor on a GPU refuses (NumPy,
tensors of the CPU beside it, double precision on Apple's), and notes where the program waits for the GPU. So the paths
that GPUs take run on any machine: their devices, their calls and their waits are tested; a GPU's kernels, their speed
and their rounding are not.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

FREE_BYTES, TOTAL_BYTES = 8 << 30, 16 << 30

_WAITING = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select", "unique"}
_DEVICES = {"cpu", "cuda", "mps"}
_COPYING = {"to", "cpu", "as_tensor", "tensor"}
_REFUSED = {"numpy", "__array__"}
_TAKES_BOTH = {"copy_", "__set__", "to", "type_as", "_has_compatible_shallow_copy_type"}


class Pretend(Tensor):
    """A tensor that claims to be on the GPU; saved, it is a tensor of the CPU."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return self.detach().as_subclass(Tensor).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            copied = self.detach().as_subclass(Tensor).clone()
            if isinstance(self, nn.Parameter):
                copied = nn.Parameter(copied, self.requires_grad)
        return memo.setdefault(id(self), _as_pretended(copied))


class PretendParameter(Pretend, nn.Parameter):
    """A parameter that claims to be on the GPU."""


class PretendedGpu(TorchFunctionMode):
    """Makes, checks and follows the tensors of a GPU that is none.

    Args:
        kind: ``cuda`` or ``mps``.

    Attributes:
        device: The GPU.
        waits: Where the program waited for the GPU: the call and the functions of this project's code that led there.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.device = torch.device(kind, 0)
        self.waits: list[str] = []
        self._properties = {"device": self.device, "is_cuda": kind == "cuda", "is_mps": kind == "mps", "is_cpu": False}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        owner = getattr(getattr(func, "__self__", None), "__name__", "")
        given = list(_tensors((args, kwargs)))
        on_gpu = any(isinstance(value, Pretend) for value in given)
        if name == "__get__" and on_gpu and owner in self._properties:
            return self._properties[owner]
        if name in _REFUSED and on_gpu:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() first.")
        args, kwargs, target = _redirect(name, args, kwargs)
        self._note_wait(name, args, kwargs, target, on_gpu)
        if on_gpu:
            self._check(name, args, given)
        if self.device.type == "mps" and "batch_norm" in str(func):
            self._check_whole(given)
        if self.device.type == "mps" and on_gpu and name in {"sort", "argsort"}:
            raise RuntimeError(f"{name}: wrong results on some of Apple's systems")
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        if name == "__set__":
            _follow_data(owner, args)
        stays = target.type != "cpu" if target else on_gpu
        if stays:
            self._check_types(result)
        if target and given and name in {"to", "cpu"}:
            return self._moved(given[0], result, stays)
        return _as_pretended(result) if stays else result

    def _moved(self, source: Tensor, result: Tensor, stays: bool) -> Tensor:
        if stays == isinstance(source, Pretend):
            return result if result is source or not stays else _as_pretended(result)  # of another number format
        if result is source or result.data_ptr() == source.data_ptr():
            result = result.clone()  # a copy between devices never shares memory
        return _as_pretended(result) if stays else _as_plain(result)

    def _note_wait(
        self, name: str, args: Any, kwargs: dict[str, Any], target: torch.device | None, on_gpu: bool
    ) -> None:
        copies = target is not None and (target.type == "cpu") == on_gpu and name in _COPYING
        waits = (copies and not kwargs.get("non_blocking")) or (on_gpu and name in _WAITING)
        if name in {"__getitem__", "__setitem__"} and on_gpu:
            masks = [part for part in _parts(args[1]) if isinstance(part, Tensor) and part.dtype == torch.bool]
            waits = any(part.ndim > 0 for part in masks)
        if name == "repeat_interleave" and on_gpu and kwargs.get("output_size") is None:
            waits = True
        if waits:
            self.note(name)

    def note(self, name: str) -> None:
        """Note a wait in `name`, with the lines of the program that led to it."""
        # Without the lines of source, which take most of the time of `extract_stack`.
        frames = ((frame.f_code, line) for frame, line in traceback.walk_stack(inspect.currentframe()))
        ours = [f"{code.co_name}:{line}" for code, line in frames if "/ccreid_cli/" in code.co_filename]
        self.waits.append(" < ".join([name, *ours]))

    def _check_types(self, result: Any) -> None:
        if self.device.type == "mps" and isinstance(result, Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64: the MPS framework doesn't support it.")

    def _check_whole(self, given: list[Tensor]) -> None:
        """Refuse what Apple's batch norm takes and computes wrongly: slices, and images in channels_last."""
        with torch._C.DisableTorchFunctionSubclass():
            if any(value.storage_offset() or not value.is_contiguous() for value in given):
                raise RuntimeError("batch norm of a slice or in channels_last: wrong results on a real GPU")

    def _check(self, name: str, args: tuple[Any, ...], given: list[Tensor]) -> None:
        if torch._C._current_autograd_node() is not None:  # gradients come as plain tensors
            return
        if name in {"__getitem__", "__setitem__"}:
            # Places may be on the CPU, but not those of a tensor on the CPU; values put at places must be beside it.
            places = [part for part in _parts(args[1]) if isinstance(part, Tensor)]
            given = [args[0], *places[: not isinstance(args[0], Pretend)], *(args[2:] if places else ())]
            given = [value for value in given if isinstance(value, Tensor)]
        elif name in _TAKES_BOTH:
            return
        if len({isinstance(value, Pretend) for value in given if value.ndim > 0}) > 1:
            raise RuntimeError(f"{name}: expected all tensors on the same device, but found {self.device} and cpu!")


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Find the tensors in nested tuples, lists and dicts, in a fraction of the time that PyTorch's own search takes."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _parts(index: Any) -> tuple[Any, ...]:
    return index if isinstance(index, tuple) else (index,)


def _redirect(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any], torch.device | None]:
    """Send a call to the CPU; the third result is the device that it asked for, if any."""
    target: torch.device | None = None
    if name == "cpu" and args and isinstance(args[0], Tensor):
        return args, kwargs, torch.device(name)

    def is_device(value: Any) -> bool:
        return isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in _DEVICES)

    positions = [place for place, value in enumerate(args) if is_device(value)] if name == "to" else []
    for place in positions:
        target = torch.device(args[place])
        args = (*args[:place], torch.device("cpu"), *args[place + 1 :])
    if kwargs.get("device") is not None and name not in {"manual_seed"}:
        target = torch.device(kwargs["device"])
        kwargs["device"] = torch.device("cpu") if target.type in _DEVICES else target
    if kwargs.pop("pin_memory", False) and target is not None and target.type != "cpu":
        raise RuntimeError("only dense CPU tensors can be pinned")
    if target is not None and target.type == "meta":
        target = None
    return args, kwargs, target


def _follow_data(owner: str, args: tuple[Any, ...]) -> None:
    """Let a tensor whose data are replaced be where the new data are."""
    if owner == "data":
        (_as_pretended if isinstance(args[1], Pretend) else _as_plain)(args[0])


def _as_pretended(result: Any) -> Any:
    def mark(value: Tensor) -> Tensor:
        if not isinstance(value, Pretend):
            value.__class__ = PretendParameter if isinstance(value, nn.Parameter) else Pretend
        return value

    return mark(result) if isinstance(result, Tensor) else tree_map_only(Tensor, mark, result)


def _as_plain(value: Tensor) -> Tensor:
    if isinstance(value, Pretend):
        value.__class__ = nn.Parameter if isinstance(value, nn.Parameter) else Tensor
    return value


class _Stream:
    def is_capturing(self) -> bool:
        return False


_COLLECTIVES = ("all_gather", "all_reduce", "all_to_all_single", "broadcast")


def _collective(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Exchange tensors as NCCL does: those on a GPU only."""
    if not all(isinstance(value, Pretend) for value in _tensors((args, kwargs))):
        raise RuntimeError("No backend type associated with device type cpu")
    return original(*args, **kwargs)


def _join(original: Callable[..., Any], backend: str, **options: Any) -> Any:
    """Join a group that believes to be one of NCCL."""
    assert backend == "nccl", backend
    return original("gloo", **options)


def _generator(kind: type[torch.Generator], device: Any = "cpu") -> torch.Generator:
    return kind("cpu")


@contextmanager
def pretended(kind: str = "cuda") -> Iterator[PretendedGpu]:
    """Let this machine have a GPU: of NVIDIA with 16 GiB, half of it free, or of Apple (``mps``)."""
    mode = PretendedGpu(kind)
    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: "Pretended GPU",
        "mem_get_info": lambda device=None: (FREE_BYTES, TOTAL_BYTES),
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda device=None: mode.note("synchronize"),
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 1 << 20,
        "reset_peak_memory_stats": lambda device=None: None,
        "is_current_stream_capturing": lambda: False,
        "_lazy_init": lambda: None,
    }
    with ExitStack() as stack:
        if kind == "cuda":
            for name, answer in answers.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, answer))
            for name in _COLLECTIVES:
                stack.enter_context(mock.patch.object(dist, name, partial(_collective, getattr(dist, name))))
            joining = partial(_join, dist.init_process_group)
            stack.enter_context(mock.patch.object(dist, "init_process_group", joining))
        else:
            stack.enter_context(mock.patch.object(torch.backends.mps, "is_available", lambda: True))
            stack.enter_context(mock.patch.object(torch.mps, "synchronize", lambda: mode.note("synchronize")))
        stack.enter_context(mock.patch.object(torch.accelerator, "current_stream", lambda device=None: _Stream()))
        stack.enter_context(mock.patch.object(torch, "Generator", partial(_generator, torch.Generator)))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(mode)
        yield mode
