"""The embedded dataset: people drawn with Pillow, laid out and named like Market-1501.

Small enough to train on a CPU in a minute or two, yet with the field's difficulties in kind: clothing that people
share, cameras that differ in light, tint, background, scale and crop, occlusion, junk boxes and distractors.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ccreid_cli.core.errors import DataError
from ccreid_cli.core.reporter import Reporter, SilentReporter, track
from ccreid_cli.data.toy_figures import Colour, Figure, Look, difference, draw_look, draw_pose

FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
WIDTH, HEIGHT = 64, 128
TRAIN_IDENTITIES, TEST_IDENTITIES = 32, 24
TRAIN_IMAGES, GALLERY_IMAGES = 7, 4
"""Pictures of one identity by one camera."""
NUM_JUNK, NUM_DISTRACTORS = 40, 40
_LOOKS_TRIED = 6
"""Of so many ways to dress, an identity gets the one least like everybody before."""
_DRAWN_AT = 2
"""Pictures are drawn this many times larger and reduced, which smooths the edges."""


@dataclass(frozen=True)
class Camera:
    """How one camera renders a scene: `gain` of light, `tint` per channel, `gamma`, ground colours, `scale`, noise."""

    gain: float
    tint: tuple[float, float, float]
    gamma: float
    wall: Colour
    floor: Colour
    furniture: str
    scale: float
    shift: float
    noise: float


CAMERAS = (
    Camera(1.0, (1.0, 1.0, 1.0), 1.0, (150, 155, 150), (120, 118, 110), "tiles", 0.97, 0.0, 3.0),
    Camera(0.91, (0.97, 0.99, 1.04), 1.04, (132, 145, 132), (106, 111, 97), "bushes", 0.92, 0.03, 5.0),
    Camera(1.05, (1.04, 1.0, 0.96), 0.96, (160, 158, 150), (133, 126, 114), "bricks", 1.02, -0.02, 3.0),
    Camera(0.95, (1.02, 0.98, 1.0), 1.06, (140, 139, 142), (113, 111, 107), "posts", 0.98, 0.02, 6.0),
)


@dataclass(frozen=True)
class _Shot:
    """One file to draw: its folder and name, who is in it (None: nobody) and who sees it."""

    folder: str
    name: str
    look: Look | None
    camera: int
    junk: bool = False


def make_toy(folder: Path, seed: int = 0, reporter: Reporter | None = None) -> None:
    """Draw the toy dataset: the same bytes for the same seed.

    Nothing is left behind when drawing stops half-way, and a dataset already there is left as it is.

    Args:
        folder: What is to hold ``bounding_box_train``, ``query`` and ``bounding_box_test``.
        seed: Which people, poses and mishaps.
        reporter: Where progress is shown.

    Raises:
        DataError: `folder` holds something else, or cannot be written.
    """
    reporter = reporter or SilentReporter()
    if _is_complete(folder):
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} holds something that is not the whole toy dataset.", "Remove it and try again.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _draw_all(unfinished, seed, reporter)
            unfinished.chmod(0o755)
            _move_into_place(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"could not write the toy dataset to {folder}: {error.strerror or error}.",
            "Choose another folder with --data-dir.",
        ) from error


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_dir() for name in FOLDERS)


def _move_into_place(unfinished: Path, folder: Path) -> None:
    try:
        unfinished.replace(folder)
    except OSError:
        if not _is_complete(folder):  # else another process drew the same pictures first
            raise


def _draw_all(folder: Path, seed: int, reporter: Reporter) -> None:
    for name in FOLDERS:
        (folder / name).mkdir()
    shots = list(_shots(seed))
    for shot in track(reporter, shots, "drawing the toy dataset", len(shots), "img"):
        (folder / shot.folder / shot.name).write_bytes(draw_shot(shot, seed))


def _people(seed: int) -> list[Look]:
    """Dress everybody. Identities share shirts or trousers, never both; distractors wear anything."""
    random = Random(f"{seed}/people")
    people = [draw_look(random)]

    def novelty(look: Look) -> float:
        return min(difference(look, other) for other in people)

    while len(people) < TRAIN_IDENTITIES + TEST_IDENTITIES:
        best = max((draw_look(random) for _ in range(_LOOKS_TRIED)), key=novelty)
        if novelty(best) > 0:
            people.append(best)
    return people + [draw_look(random) for _ in range(NUM_DISTRACTORS)]


def _shots(seed: int) -> Iterator[_Shot]:
    """List every file of the dataset, in a fixed order."""
    people, frame = _people(seed), 0
    train, query, gallery = FOLDERS
    for person, look in enumerate(people[: TRAIN_IDENTITIES + TEST_IDENTITIES], start=1):
        for camera in range(len(CAMERAS)):
            known = person <= TRAIN_IDENTITIES
            for index in range(TRAIN_IMAGES if known else 1 + GALLERY_IMAGES):
                frame += 1
                split = train if known else query if index == 0 else gallery
                yield _Shot(split, _file_name(person, camera, frame), look, camera)
    for look in people[-NUM_DISTRACTORS:]:
        frame += 1
        camera = frame % len(CAMERAS)
        yield _Shot(gallery, _file_name(0, camera, frame), look, camera)
    for index in range(NUM_JUNK):
        frame += 1
        camera = index // 2 % len(CAMERAS)
        look_or_nobody = people[TRAIN_IDENTITIES + index % TEST_IDENTITIES] if index % 2 else None
        yield _Shot(gallery, _file_name(-1, camera, frame), look_or_nobody, camera, junk=True)


def _file_name(person: int, camera: int, frame: int) -> str:
    identity = "-1" if person < 0 else f"{person:04d}"
    return f"{identity}_c{camera + 1}s1_{frame:06d}_01.jpg"


def draw_shot(shot: _Shot, seed: int) -> bytes:
    """Return one picture of the dataset as JPEG bytes, 64 wide and 128 high."""
    random, camera = Random(f"{seed}/{shot.name}"), CAMERAS[shot.camera]
    width, height = WIDTH * _DRAWN_AT, HEIGHT * _DRAWN_AT
    scene = _background(random, camera, width, height)
    if shot.look is not None:
        size = height * 0.93 * camera.scale * random.uniform(0.94, 1.06) * (1.8 if shot.junk else 1)
        middle = width * (0.5 + camera.shift + random.uniform(-0.05, 0.05) + (0.3 if shot.junk else 0))
        top = (height - size) * 0.5 + height * random.uniform(-0.025, 0.025)
        Figure(scene, shot.look, draw_pose(random), top=top, middle=middle, size=size).draw()
    if random.random() < 0.15:
        _occlude(random, scene)
    developed = _develop(scene.reduce(_DRAWN_AT), camera, random)
    file = BytesIO()
    developed.save(file, "JPEG", quality=90)
    return file.getvalue()


def _shade(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, round(channel * factor)) for channel in colour)
    return red, green, blue


def _background(random: Random, camera: Camera, width: int, height: int) -> Image.Image:
    """Draw the place that a camera watches; every picture shows another part of it."""
    scene = Image.new("RGB", (width, height), _shade(camera.wall, random.uniform(0.92, 1.08)))
    pen = ImageDraw.Draw(scene)
    horizon = height * random.uniform(0.55, 0.8)
    pen.rectangle([0, horizon, width, height], _shade(camera.floor, random.uniform(0.92, 1.08)))
    shift = random.randrange(24)
    if camera.furniture == "tiles":
        for left in range(-shift, width, 24):
            pen.line([left, horizon, left * 1.5 - width / 4, height], _shade(camera.floor, 0.8), 2)
    elif camera.furniture == "bushes":
        for _ in range(14):
            x, y, radius = random.uniform(0, width), random.uniform(0, horizon), random.uniform(8, 24)
            pen.ellipse([x - radius, y - radius, x + radius, y + radius], _shade(camera.wall, random.uniform(0.7, 1.3)))
    elif camera.furniture == "bricks":
        for y in range(-shift, round(horizon), 16):
            pen.line([0, y, width, y], _shade(camera.wall, 0.85), 2)
    else:
        for left in range(-shift, width, 36):
            pen.rectangle([left, 0, left + 8, horizon], _shade(camera.wall, 0.7))
    return scene


def _occlude(random: Random, scene: Image.Image) -> None:
    """Put a post, a bench or a passer-by's shadow before the person."""
    width, height = scene.size
    grey = random.randrange(40, 160)
    colour = (grey, grey, round(grey * 0.9))
    pen = ImageDraw.Draw(scene)
    if random.random() < 0.5:
        x = random.uniform(0, width * 0.85)
        pen.rectangle([x, 0, x + width * 0.12, height], colour)
    else:
        pen.rectangle([0, height * random.uniform(0.7, 0.88), width, height], colour)


def _develop(scene: Image.Image, camera: Camera, random: Random) -> Image.Image:
    """Apply a camera's light, tint, gamma and noise."""
    light: NDArray[np.float64] = np.asarray(scene, dtype=np.float64) / 255
    light = light**camera.gamma * camera.gain * random.uniform(0.94, 1.06) * np.array(camera.tint)
    noise = np.random.Generator(np.random.PCG64(random.getrandbits(64))).standard_normal(light.shape)
    return Image.fromarray(np.clip(np.rint(light * 255 + noise * camera.noise), 0, 255).astype(np.uint8))
