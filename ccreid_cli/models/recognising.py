"""Finding out which program wrote a weight file, and bringing its tensors under the names that they have here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ccreid_cli.core.errors import CheckpointError
from ccreid_cli.models.fitting import nearest_arch, some, with_shapes
from ccreid_cli.models.key_maps import rename_start, strip_wrappers
from ccreid_cli.models.programs import BACKBONE_PROGRAMS, PROGRAMS, TRAINING, Program, State
from ccreid_cli.models.vit_files import transformer_at, transformer_places

_HEADS = (*TRAINING, "fc.", "head.", "heads.")
# Of several networks in one file, the one meant for use: the query encoder, the averaged teacher.
_PREFERRED = ("encoder_q.", "base_encoder.", "online_encoder.", "teacher.", "ema.", "model_ema.")
_SCORED = "Extract features with that program; `ccreid score` and `ccreid cluster` take them from a file."


@dataclass(frozen=True)
class Recognised:
    """What a state dict was found to be.

    Attributes:
        kind: A name of `PROGRAMS` for a whole network, else ``ibn``, ``torchvision`` or ``transformer`` for a backbone.
        state: Under ccreid's names for a whole network, under its release's for a backbone.
        program: What the file looks like, for messages; empty where the plain form of a release needs no name.
        left_out: Tensors not in `state`, under the names that they have in the file.
        remarks: How the network computes differently from the program's own.
    """

    kind: str
    state: State
    program: str = ""
    left_out: State = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def notes(self, file_name: str) -> tuple[str, ...]:
        """Say what the file was taken for and what was left out of it; nothing for a plain file used whole."""
        lines = []
        if self.program and self.kind not in ("ccreid", "official"):
            what = "the whole network" if self.kind in PROGRAMS else "its backbone"
            lines.append(f"{file_name} looks like a file of {self.program}; {what} is read.")
        if self.left_out and not self._is_release():
            lines.append(f"{file_name}: left out, since it is of no use here: {with_shapes(self.left_out)}.")
        program = PROGRAMS.get(self.kind)
        if program and self.kind != "ccreid" and not program.pooling and "pooling.p" not in self.state:
            lines.append(f"{file_name} does not say how it pools: by average, unless `--pooling-type max` is given.")
        return (*lines, *self.remarks)

    def _is_release(self) -> bool:
        """Whether all that was left out is the classifier of ImageNet's 1,000 classes, which no one expects to keep."""
        heads = all(key.startswith(("fc.", "classifier.")) for key in self.left_out)
        return not self.program and heads and any(len(value) == 1000 for value in self.left_out.values() if value.ndim)


def recognise(state: Mapping[str, Tensor], meta: Mapping[str, Any], source: str) -> Recognised:
    """Find out which program wrote a state dict, and bring it under the names that it has here.

    Args:
        state: The tensors of a file.
        meta: What else the file holds.
        source: What to call the file in an error.

    Raises:
        CheckpointError: There are several networks, and nothing tells which is meant.
    """
    plain, averaged = _unwrapped(state)
    for kind, program in PROGRAMS.items():
        roots = _roots(plain, program.marks)
        if roots and not any(_has(plain, (mark,)) for mark in program.unlike):
            found = _read(kind, program, plain, _one_of(roots, source), source)
            if found is not None:
                return found
    places = transformer_places(plain)
    if places:
        found_there = transformer_at(plain, _one_of(places, source))
        left_out = {key: value for key, value in plain.items() if key not in found_there.inside}
        return Recognised("transformer", found_there.state, found_there.program, left_out)
    name = "PyTorch Lightning" if "pytorch-lightning_version" in meta else averaged
    name = next((name for name, marks in BACKBONE_PROGRAMS.items() if _has(plain, marks)), name)
    return _bare_backbone(plain, name, source)


def _unwrapped(state: Mapping[str, Tensor]) -> tuple[State, str]:
    """Remove what wraps every key, and the counter of averaged weights; also name the program that averaged them."""
    plain, name = strip_wrappers(state), ""
    while "n_averaged" in plain:
        plain, name = strip_wrappers({k: v for k, v in plain.items() if k != "n_averaged"}), "PyTorch's SWA"
    return plain, name


def _has(state: State, marks: tuple[str, ...]) -> bool:
    return all(any(f".{mark.removeprefix('.')}" in f".{key}" for key in state) for mark in marks)


def _roots(state: State, marks: tuple[str, ...]) -> list[str]:
    """Return the places (starts of keys, mostly only the empty one) under which all `marks` occur."""
    places = []
    for mark in marks:
        found = (f".{key}".find(f".{mark}") for key in state)
        places.append({key[:at] for key, at in zip(state, found, strict=True) if at >= 0})
    return sorted(set.intersection(*places))


def _one_of(roots: list[str], source: str) -> str:
    preferred = [root for root in roots if any(f".{name}" in f".{root}" for name in _PREFERRED)]
    chosen = roots if len(roots) == 1 else preferred
    if len(chosen) != 1:
        raise CheckpointError(
            f"{source} holds several networks, under {some(roots)}, and nothing tells which is meant.",
            "Save the tensors of one of them in a file of its own.",
        )
    return chosen[0]


def _read(kind: str, program: Program, plain: State, root: str, source: str) -> Recognised | None:
    """Bring a program's state dict under ccreid's names; None where there is no backbone under `root`."""
    names = {key: rename_start(key.removeprefix(root), program.names) for key in plain if key.startswith(root)}
    if len(set(names.values())) != len(names):
        raise CheckpointError(f"{source} mixes the key names of {program.name} with ccreid's.")
    kept = {key: name for key, name in names.items() if not name.startswith(program.left_out)}
    state = {name: plain[key] for key, name in kept.items()}
    if lacks := program.lacks(state):
        raise CheckpointError(
            f"{source} looks like a file of {program.name}, {lacks}: no network here computes that.", _SCORED
        )
    state = program.finish(state)
    if any(key.startswith("neck.") for key in state):
        left_out = {key: value for key, value in plain.items() if key not in kept}
        remarks = [text for start, text in program.remarks.items() if any(n.startswith(start) for n in names.values())]
        return Recognised(kind, state, program.name, left_out, tuple(remarks))
    bare = {key: name.removeprefix("backbone.") for key, name in kept.items() if name.startswith("backbone.")}
    left_out = {key: value for key, value in plain.items() if key not in bare}
    return _backbone({name: plain[key] for key, name in bare.items()}, program.name, left_out) if bare else None


def _backbone(state: State, program: str, left_out: State) -> Recognised:
    return Recognised("ibn" if any(".IN." in key for key in state) else "torchvision", state, program, left_out)


def _bare_backbone(plain: State, program: str, source: str) -> Recognised:
    """Find the backbone in tensors that are no whole network, wherever it lies."""
    candidates = {root: _under(plain, root) for root in _backbone_places(plain)} or {"": _under(plain, "")}
    fits = {root: nearest_arch(state)[1] for root, state in candidates.items()} if len(candidates) > 1 else {}
    whole = [root for root, difference in fits.items() if not difference.missing and not difference.reshaped]
    # Where none fits, the one with the most tensors of known names is what an error should speak of.
    known = {root: len(candidates[root]) - len(difference.unknown) for root, difference in fits.items()}
    root = _one_of(whole, source) if whole else max(candidates, key=lambda root: known.get(root, 0))
    inside = {f"{root}{key}" for key in candidates[root]}
    if root and not program:
        program = f'a program that keeps its backbone under "{root.removesuffix(".")}"'
    return _backbone(candidates[root], program, {key: value for key, value in plain.items() if key not in inside})


def _backbone_places(plain: State) -> list[str]:
    """Return the starts of keys under which a backbone may begin: every part of the path to a convolution of RGB."""
    stems = [key for key, value in plain.items() if value.ndim == 4 and value.shape[1] == 3 and value.shape[2] > 1]
    paths = [key.split(".")[:-1] for key in stems]
    return sorted({"".join(f"{part}." for part in path[:depth]) for path in paths for depth in range(len(path) + 1)})


def _under(plain: State, root: str) -> State:
    """Return the tensors under `root` by their names there, without heads."""
    state = {key.removeprefix(root): value for key, value in plain.items() if key.startswith(root)}
    return {key: value for key, value in state.items() if not key.startswith(_HEADS)}
