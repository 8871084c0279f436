"""The catalogue says what was published, and every row is usable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ccreid_cli.core.errors import UsageError
from ccreid_cli.data.catalog import BUNDLE_NAMES, CATALOG, DatasetInfo, Policy
from ccreid_cli.data.install import install_dataset

PUBLISHED = {
    "market1501": (12_936, 3_368, 15_913, 751, 750, 6, "Market-1501-v15.09.15"),
    "dukemtmcreid": (16_522, 2_228, 17_661, 702, 702, 8, "DukeMTMC-reID"),
    "msmt17": (32_621, 11_659, 82_161, 1_041, 3_060, 15, "MSMT17_V1"),
    "personx": (9_840, 5_136, 30_816, 410, 856, 6, "PersonX"),
    "veri": (37_778, 1_678, 11_579, 576, 200, 20, "VeRi"),
}


@pytest.mark.parametrize("name", BUNDLE_NAMES)
def test_published_counts(name: str) -> None:
    info = CATALOG[name]
    train, query, gallery = info.counts
    assert info.cameras is not None
    assert PUBLISHED[name] == (
        train.num_images,
        query.num_images,
        gallery.num_images,
        train.num_ids,
        query.num_ids,
        len(info.cameras),
        info.places[0].folder,
    )


@pytest.mark.parametrize("info", CATALOG.values(), ids=lambda info: info.name)
def test_rows_are_whole(info: DatasetInfo) -> None:
    assert info.terms and info.title and info.places
    assert (info.height, info.width) in {(224, 224), (256, 128), (128, 64)}
    assert info.policy is Policy.MADE or info.homepage.startswith("https://")
    for source in info.sources:
        assert re.match(r"https?://", source.url)
        assert source.md5 is None or re.fullmatch("[0-9a-f]{32}", source.md5)


@pytest.mark.parametrize("name", ["msmt17", "veri", "dukemtmcreid", "vehicleid", "veri-wild", "cuhk03-np"])
def test_sets_that_are_not_downloaded_say_why_and_take_an_archive(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(CATALOG[name].homepage)) as caught:
        install_dataset(CATALOG[name], tmp_path, accepted=True)
    assert "--archive" in (caught.value.hint or "")
    assert not any(tmp_path.iterdir())
