"""Rankings and clusters as HTML. Every name that comes from outside is escaped here."""

from __future__ import annotations

from html import escape

from ccreid_cli.core.words import plural
from ccreid_cli.report.content import Cluster, ClusterGroup, Picture, Ranked, Ranking, RankingGroup, Verdict
from ccreid_cli.report.numbers import count, decimal
from ccreid_cli.report.pictures import data_address

SIGNS = {Verdict.RIGHT: "✓", Verdict.WRONG: "✗", Verdict.JUNK: "–"}


def ranking_group(group: RankingGroup, *, is_open: bool) -> str:
    """Return a collapsible group of rankings."""
    return _group(group.title, group.note, [_ranking(ranking) for ranking in group.rankings], is_open=is_open)


def cluster_group(group: ClusterGroup, *, is_open: bool) -> str:
    """Return a collapsible group of clusters."""
    return _group(group.title, group.note, [_cluster(cluster) for cluster in group.clusters], is_open=is_open)


def outlier_group(pictures: tuple[Picture, ...], num_outliers: int) -> str:
    """Return a collapsible group of images that are in no cluster."""
    tiles = "".join(_tile(picture) for picture in pictures)
    note = f"{plural(len(pictures), 'image')} of {count(num_outliers)}, drawn at random."
    return _group("Outliers", note, [f'<div class="tiles">{tiles}</div>'], is_open=False)


def _group(title: str, note: str, items: list[str], *, is_open: bool) -> str:
    state = " open" if is_open else ""
    return (
        f'<details class="group"{state}><summary><h3>{escape(title)}</h3> <span>{escape(note)}</span></summary>'
        f"{''.join(items)}</details>"
    )


def _tile(picture: Picture, kind: str = "", verdict: str = "") -> str:
    """Return an image with its camera and identity below; the file's name is told to those who hover or listen."""
    address, width, height = data_address(picture.image)
    name = escape(picture.name)
    facts = [f"<b>{verdict}</b>"] if verdict else []
    facts += [] if picture.camera is None else [f"<span>cam {picture.camera}</span>"]
    facts += [] if picture.person_id is None else [f"<span>id {picture.person_id}</span>"]
    return (
        f'<figure class="tile {kind}"><img src="{address}" width="{width}" height="{height}" alt="{name}" '
        f'title="{name}" loading="lazy" decoding="async"><figcaption>{"".join(facts)}</figcaption></figure>'
    )


def _ranking(ranking: Ranking) -> str:
    tiles = "".join(_ranked_tile(ranked) for ranked in ranking.results)
    hidden = ranking.num_junk_hidden
    more = f'<p class="more">{plural(hidden, "more junk image")} in between not shown</p>' if hidden else ""
    first = f"first right image at rank {ranking.first_match_rank:,}"
    return (
        f'<article class="item"><h4><span class="name">{escape(ranking.query.name)}</span> '
        f'<span class="fact">AP <b>{decimal(100 * ranking.average_precision)} %</b></span> '
        f'<span class="fact">{first}</span></h4><div class="ranking">'
        f'{_tile(ranking.query, "query", "query")}<div class="tiles">{tiles}</div></div>{more}'
        "</article>"
    )


def _ranked_tile(ranked: Ranked) -> str:
    place = "" if ranked.rank is None else f'<span class="rank">{ranked.rank}</span> '
    verdict = f"{place}{SIGNS[ranked.verdict]} {ranked.verdict.value}"
    return _tile(ranked.picture, ranked.verdict.value, verdict)


def _cluster(cluster: Cluster) -> str:
    facts = [f"<b>{plural(cluster.num_images, 'image')}</b>"]
    if cluster.num_ids is not None and cluster.purity is not None:
        facts.append(f"{plural(cluster.num_ids, 'identity', 'identities')}")
        facts.append(f"purity <b>{decimal(100 * cluster.purity)} %</b>")
    if cluster.num_cameras is not None:
        facts.append(plural(cluster.num_cameras, "camera"))
    tiles = "".join(_member_tile(picture, cluster) for picture in cluster.pictures)
    heads = " ".join(f'<span class="fact">{fact}</span>' for fact in facts)
    return (
        f'<article class="item"><h4><span class="name">Cluster {cluster.number}</span> {heads}</h4>'
        f'<div class="tiles">{tiles}</div></article>'
    )


def _member_tile(picture: Picture, cluster: Cluster) -> str:
    if cluster.main_id is None or picture.person_id is None or cluster.num_ids == 1:
        return _tile(picture)
    if picture.person_id == cluster.main_id:
        return _tile(picture, "right", "✓ main id")
    return _tile(picture, "wrong", "✗ other id")
