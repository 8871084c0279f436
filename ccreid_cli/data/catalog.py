"""The datasets ccreid knows by name. To add one, add a row to `CATALOG`.

Counts are the published ones, junk (identity -1) left out; the gallery's identities include distractors' 0000.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ccreid_cli.data.layouts import FolderLayout, Layout, is_recognised
from ccreid_cli.data.records import SPLITS
from ccreid_cli.data.special_layouts import mars_tracks, msmt17_lists, prid_cameras, vehicle_id_lists, veri_wild_lists


class Policy(StrEnum):
    """On what conditions a dataset is given out."""

    MADE = "made here"
    FREE = "free for research"
    BY_REQUEST = "by request"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True)
class Source:
    """A place an archive can be downloaded from.

    Attributes:
        url: Address of the archive.
        md5: Published MD5 of the archive, or None where none is published.
        sha256_prefix: Published start of its SHA-256, or None.
        size: Published length in bytes, or None.
    """

    url: str
    md5: str | None = None
    sha256_prefix: str | None = None
    size: int | None = None


@dataclass(frozen=True)
class Counts:
    """Published size of one split; None where nothing is published."""

    num_images: int | None
    num_ids: int | None


@dataclass(frozen=True)
class Place:
    """A folder a dataset may lie in, and how it lies there.

    Attributes:
        folder: Folder below ``<data-dir>/<name>``; empty for that folder itself.
        layout: How the files are laid out in it.
        counts: Published train, query and gallery counts, where they differ from the dataset's own.
    """

    folder: str
    layout: Layout
    counts: tuple[Counts, Counts, Counts] | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """One row of the catalogue.

    Attributes:
        name: What ``-d`` takes, and the folder below the data directory.
        title: What people call it.
        places: Folders it may lie in and how they are laid out, the official one first.
        cameras: Camera numbers as the files give them; their position is the camera id. None: there are no cameras,
            and each image counts as its own, so that evaluation removes nothing.
        counts: Published counts of train, query and gallery.
        height: Usual input height in pixels.
        width: Usual input width in pixels.
        policy: On what conditions it is given out.
        terms: What its authors ask, in plain words.
        homepage: Where its authors describe it or give it out.
        sources: Archives to try, in this order; empty where it cannot be downloaded by a program.
        archive_size: Rough bytes of its own archive, or None where not known.
        test_ids_repeat: Whether test identities are numbered from 0 again, so that they repeat training numbers.
    """

    name: str
    title: str
    places: tuple[Place, ...]
    cameras: tuple[int, ...] | None
    counts: tuple[Counts, Counts, Counts]
    policy: Policy
    terms: str
    homepage: str
    height: int = 256
    width: int = 128
    sources: tuple[Source, ...] = ()
    archive_size: int | None = None
    test_ids_repeat: bool = False

    @property
    def help(self) -> str:
        """What completion says of it."""
        return self.title

    @property
    def folders(self) -> tuple[str, ...]:
        """Names of the accepted folders below ``<data-dir>/<name>``, without repeats."""
        return tuple(dict.fromkeys(place.folder for place in self.places))

    @property
    def parts_text(self) -> str:
        """What a folder must hold to be taken for the dataset, in words."""
        return " or ".join(dict.fromkeys(", ".join(place.layout.parts) for place in self.places))

    def place_at(self, root: Path) -> Place | None:
        """Return the place whose parts `root` holds, one of that folder name first; None when there is none."""
        fitting = [place for place in self.places if is_recognised(place.layout, root)]
        return next((place for place in fitting if place.folder == root.name), fitting[0] if fitting else None)

    def published(self, place: Place) -> dict[str, Counts]:
        """Return the published counts of each split as they are for `place`."""
        return dict(zip(SPLITS, place.counts or self.counts, strict=True))


_BOXES = FolderLayout()
_VERI_BOXES = FolderLayout("image_train", "image_query", "image_test")
_PNG_BOXES = FolderLayout(extensions=(".png", ".jpg"))
_ID_FOLDERS = FolderLayout("train_all", "query", "gallery", is_nested=True)
_DUKE_TRACKS = FolderLayout("train", "query", "gallery", r"(-?[0-9]+)_?C([0-9]+)_?F[0-9]+", is_nested=True)
_LAST_FOLDERS = FolderLayout("train", "test/query", "test/gallery", r"([0-9]+)_", is_nested=True)

BUNDLE_SOURCE = Source("https://virutalbuy-public.oss-cn-hangzhou.aliyuncs.com/share/data.zip")
"""The archive of five datasets that the method's authors published."""
BUNDLE_NAMES = ("market1501", "dukemtmcreid", "msmt17", "personx", "veri")
"""What the bundle holds."""

_ROWS = (
    DatasetInfo(
        name="toy",
        title="Toy",
        places=(Place("", _BOXES),),
        cameras=(1, 2, 3, 4),
        counts=(Counts(896, 32), Counts(96, 24), Counts(424, 25)),
        height=128,
        width=64,
        policy=Policy.MADE,
        terms="Drawn by ccreid itself; use it as you like.",
        homepage="",
    ),
    DatasetInfo(
        name="market1501",
        title="Market-1501",
        places=(Place("Market-1501-v15.09.15", _BOXES), Place("Market-1501-v15.09.15/pytorch", _ID_FOLDERS)),
        cameras=tuple(range(1, 7)),
        counts=(Counts(12_936, 751), Counts(3_368, 750), Counts(15_913, 751)),
        policy=Policy.FREE,
        terms="Photographs of people, given out for academic research only. Do not redistribute them, and cite Zheng "
        "et al., Scalable Person Re-identification: A Benchmark, ICCV 2015.",
        homepage="https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html",
        sources=(
            # Its own archive first: it has a published hash and is a fraction of the bundle's size.
            Source(
                "http://188.138.127.15:81/Datasets/Market-1501-v15.09.15.zip", md5="65005ab7d12ec1c44de4eeafe813e68a"
            ),
            BUNDLE_SOURCE,
        ),
        archive_size=150_000_000,
    ),
    DatasetInfo(
        name="dukemtmcreid",
        title="DukeMTMC-reID",
        places=(Place("DukeMTMC-reID", _BOXES),),
        cameras=tuple(range(1, 9)),
        counts=(Counts(16_522, 702), Counts(2_228, 702), Counts(17_661, 1_110)),
        policy=Policy.WITHDRAWN,
        terms="Its authors withdrew DukeMTMC in 2019, because people were filmed without being asked: do not "
        "redistribute it, consider not using it, and say so where you report on it.",
        homepage="https://github.com/layumi/DukeMTMC-reID_evaluation",
        archive_size=150_000_000,
    ),
    DatasetInfo(
        name="msmt17",
        title="MSMT17",
        places=(
            Place("MSMT17_V1", _BOXES),
            Place("MSMT17_V1", msmt17_lists("train", "test")),
            Place("MSMT17_V2", msmt17_lists("mask_train_v2", "mask_test_v2")),
        ),
        cameras=tuple(range(1, 16)),
        counts=(Counts(32_621, 1_041), Counts(11_659, 3_060), Counts(82_161, 3_060)),
        policy=Policy.BY_REQUEST,
        terms="Photographs of people, given out by the authors to those who sign their release agreement: research "
        "only, no redistribution. Cite Wei et al., Person Transfer GAN, CVPR 2018.",
        homepage="https://www.pkuvmc.com/dataset.html",
        archive_size=2_500_000_000,
        test_ids_repeat=True,
    ),
    DatasetInfo(
        name="personx",
        title="PersonX",
        places=(Place("PersonX", _BOXES),),
        cameras=(3, 4, 8, 10, 11, 12),
        counts=(Counts(9_840, 410), Counts(5_136, 856), Counts(30_816, 856)),
        policy=Policy.FREE,
        terms="Rendered people, no photographs; for research. Cite Sun and Zheng, Dissecting Person Re-identification "
        "from the Viewpoint of Viewpoint, CVPR 2019.",
        homepage="https://github.com/sxzrt/Instructions-of-the-PersonX-dataset",
        sources=(BUNDLE_SOURCE,),
    ),
    DatasetInfo(
        name="veri",
        title="VeRi-776",
        # Copies of VeRi_with_plate differ by a few training images, and no count of it is published.
        places=(
            Place("VeRi", _VERI_BOXES),
            Place("VeRi_with_plate", _VERI_BOXES, (Counts(None, None), Counts(1_678, 200), Counts(11_579, 200))),
        ),
        cameras=tuple(range(1, 21)),
        counts=(Counts(37_778, 576), Counts(1_678, 200), Counts(11_579, 200)),
        height=224,
        width=224,
        policy=Policy.BY_REQUEST,
        terms="Given out by the authors to researchers who write to them: research only, no redistribution. Cite Liu "
        "et al., PROVID, IEEE Transactions on Multimedia 2018.",
        homepage="https://github.com/JDAI-CV/VeRidataset",
        archive_size=1_000_000_000,
    ),
    DatasetInfo(
        name="cuhk03-np",
        title="CUHK03 (new protocol)",
        places=(
            Place("detected", _PNG_BOXES),
            Place("labeled", _PNG_BOXES, (Counts(7_368, 767), Counts(1_400, 700), Counts(5_328, 700))),
        ),
        cameras=(1, 2),
        counts=(Counts(7_365, 767), Counts(1_400, 700), Counts(5_332, 700)),
        policy=Policy.FREE,
        terms="Photographs of people, given out for academic research only, through Google Drive and Baidu. Cite Li et "
        "al., DeepReID, CVPR 2014, and Zhong et al., Re-ranking, CVPR 2017.",
        homepage="https://github.com/zhunzhong07/person-re-ranking/tree/master/CUHK03-NP",
    ),
    DatasetInfo(
        name="occluded-duke",
        title="Occluded-Duke",
        places=(Place("Occluded_Duke", _BOXES),),
        cameras=tuple(range(1, 9)),
        counts=(Counts(15_618, 702), Counts(2_210, 519), Counts(17_661, 1_110)),
        policy=Policy.WITHDRAWN,
        terms="Made from DukeMTMC-reID, which its authors withdrew in 2019: do not redistribute it, and consider not "
        "using it. Cite Miao et al., Pose-Guided Feature Alignment, ICCV 2019.",
        homepage="https://github.com/lightas/Occluded-DukeMTMC-Dataset",
    ),
    DatasetInfo(
        name="vehicleid",
        title="PKU VehicleID (test list of 800)",
        places=(Place("VehicleID_V1.0", vehicle_id_lists("test_list_800.txt")),),
        cameras=None,
        counts=(Counts(113_346, 13_164), Counts(5_693, 800), Counts(800, 800)),
        height=224,
        width=224,
        policy=Policy.BY_REQUEST,
        terms="Given out by the authors to those who sign their agreement: research only, no redistribution. Cite Liu "
        "et al., Deep Relative Distance Learning, CVPR 2016.",
        homepage="https://pkuml.org/resources/pku-vehicleid.html",
    ),
    DatasetInfo(
        name="veri-wild",
        title="VERI-Wild (test set of 3,000)",
        places=(Place("VERI-Wild", veri_wild_lists("test_3000")),),
        cameras=tuple(range(1, 175)),
        counts=(Counts(277_797, 30_671), Counts(3_000, 3_000), Counts(38_861, 3_000)),
        height=224,
        width=224,
        policy=Policy.BY_REQUEST,
        terms="Given out by the authors for academic research on request. Cite Lou et al., VERI-Wild, CVPR 2019.",
        homepage="https://github.com/PKU-IMRE/VERI-Wild",
    ),
    DatasetInfo(
        name="mars",
        title="MARS",
        places=(Place("MARS", mars_tracks()),),
        cameras=tuple(range(1, 7)),
        counts=(Counts(None, 625), Counts(None, None), Counts(None, None)),
        policy=Policy.FREE,
        terms="Photographs of people, for academic research. Every frame of a track counts as an image here. "
        "Cite Zheng et al., MARS, ECCV 2016.",
        homepage="https://www.liangzheng.com.cn/Project/project_mars.html",
    ),
    DatasetInfo(
        name="dukemtmc-videoreid",
        title="DukeMTMC-VideoReID",
        places=(Place("DukeMTMC-VideoReID", _DUKE_TRACKS),),
        cameras=tuple(range(1, 9)),
        counts=(Counts(None, 702), Counts(None, 702), Counts(None, None)),
        policy=Policy.WITHDRAWN,
        terms="Made from DukeMTMC, which its authors withdrew in 2019: do not redistribute it, and consider not using "
        "it. Every frame of a track counts as an image here. Cite Wu et al., Exploit the Unknown Gradually, CVPR 2018.",
        homepage="https://github.com/Yu-Wu/DukeMTMC-VideoReID",
    ),
    DatasetInfo(
        name="prid2011",
        title="PRID2011",
        places=(
            Place("prid_2011/single_shot", prid_cameras()),
            Place("prid_2011/multi_shot", prid_cameras(), (Counts(None, 100), Counts(None, 100), Counts(None, 649))),
        ),
        cameras=(1, 2),
        counts=(Counts(200, 100), Counts(100, 100), Counts(649, 649)),
        policy=Policy.FREE,
        terms="Photographs of people, for research. Persons 1-100, whom both cameras saw, are for training, 101-200 "
        "are queried in camera B; the published splits are drawn at random. Cite Hirzer et al., SCIA 2011.",
        homepage="https://www.tugraz.at/institute/icg/research/team-bischof/lrs/downloads/PRID11/",
    ),
    DatasetInfo(
        name="last",
        title="LaST",
        places=(Place("last", _LAST_FOLDERS), Place("LaST", _LAST_FOLDERS)),
        cameras=None,
        counts=(Counts(71_248, 5_000), Counts(None, None), Counts(None, None)),
        policy=Policy.FREE,
        terms="Scenes of films, given out for academic research only, through Google Drive and Baidu. Cite Shu et al., "
        "Large-Scale Spatio-Temporal Person Re-identification, IEEE TCSVT 2022.",
        homepage="https://github.com/shuxjweb/last",
    ),
)

CATALOG: dict[str, DatasetInfo] = {info.name: info for info in _ROWS}
"""Every dataset by name."""
