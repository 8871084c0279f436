"""The server: what strangers get, what the page gets, and what it can do."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from ccreid_cli.core.errors import UsageError
from ccreid_cli.review.graph import DIFFERENT, SAME
from ccreid_cli.review.server import LARGEST_BODY, listen

from .conftest import HOSTILE, TOKEN, Site

SUMMARY = f"/{TOKEN}/data/summary"


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        (SUMMARY, {"Host": "evil.example"}, 403),  # a name that leads here (DNS rebinding)
        (SUMMARY, {"Host": "127.0.0.1:1"}, 403),
        (SUMMARY, {"Host": ""}, 403),
        (SUMMARY, {"Origin": "https://evil.example"}, 403),
        (SUMMARY, {"Origin": "null"}, 403),
        (SUMMARY, {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/data/summary", {}, 404),
        ("/", {}, 404),
        (f"/{TOKEN[:-1]}/data/summary", {}, 404),
        (f"/x{TOKEN}/data/summary", {}, 404),
        (f"/{TOKEN}/../../etc/passwd", {}, 404),
        (f"/{TOKEN}/..%2f..%2fetc%2fpasswd", {}, 404),
        (f"/{TOKEN}//etc/passwd", {}, 404),
        (f"/{TOKEN}/page.py", {}, 404),
        (f"/{TOKEN}/page.html", {}, 404),
        (f"/{TOKEN}/image/%2fetc%2fpasswd/small", {}, 404),
        (f"/{TOKEN}/image/-1/small", {}, 404),
        (f"/{TOKEN}/image/18/small", {}, 404),
        (f"/{TOKEN}/image/00000000000000000000001/small", {}, 404),
        (f"/{TOKEN}/image/1/..%2flarge", {}, 404),
        (f"/{TOKEN}/image/1/huge", {}, 404),
    ],
)
def test_strangers_and_paths_outside_the_list_get_nothing(
    site: Site, path: str, headers: dict[str, str], status: int
) -> None:
    found, body, _ = site.send("GET", path, headers=headers)
    assert found == status
    assert set(json.loads(body)) == {"message", "hint"}


def test_what_is_sent_must_be_json_of_this_page_and_not_too_large(site: Site) -> None:
    path, action = f"/{TOKEN}/act", {"action": {"do": "junk", "images": [0]}, "revision": 0}
    assert site.send("POST", path, action, {"Origin": "http://evil.example"})[0] == 403
    assert site.send("POST", path, action, {"Content-Type": "text/plain"})[0] == 415
    assert site.send("POST", path, b"[1", {})[0] == 422
    assert site.send("POST", path, b"[" * 100_000, {})[0] == 422
    assert site.send("POST", path, [1], {})[0] == 422
    assert site.send("POST", path, {"action": 1, "revision": 0}, {})[0] == 422
    assert site.send("POST", path, {**action, "revision": True}, {})[0] == 422
    assert site.send("POST", path, b" " * (LARGEST_BODY + 1), {})[0] == 422
    assert site.send("GET", path, None, {})[0] == 404
    assert site.get("data/summary")["revision"] == 0
    assert site.send("POST", path, action, {"Origin": f"http://127.0.0.1:{site.port}"})[0] == 200


def test_the_page_may_run_only_its_own_script_and_names_are_data(site: Site) -> None:
    status, page, headers = site.send("GET", f"/{TOKEN}/")
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert b"<script>" not in page
    _, body, headers = site.send("GET", f"/{TOKEN}/data/identities?order=name")
    assert headers["content-type"] == "application/json"
    assert HOSTILE in {row["name"] for row in json.loads(body)["rows"]}


def test_images_are_served_by_number_and_a_missing_file_is_grey(site: Site, identities: Path) -> None:
    (identities.parent / "crops" / "03.png").unlink()
    for number, colour in ((0, (200, 40, 40)), (3, (128, 128, 128))):
        status, data, headers = site.send("GET", f"/{TOKEN}/image/{number}/small")
        assert (status, headers["content-type"].split("/")[0]) == (200, "image")
        pixel = Image.open(BytesIO(data)).convert("RGB").getpixel((10, 20))
        assert isinstance(pixel, tuple)
        assert max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) < 12


def test_a_question_is_answered_as_the_page_sends_it_and_taken_back(site: Site) -> None:
    question = site.get("data/question")
    groups = question["groups"]
    sent = [{"images": group["images"], "whole": group["whole"]} for group in groups]
    relations = [SAME if group["inside"] else DIFFERENT for group in groups[1:]]
    assert DIFFERENT in relations
    bands = [group["band"] for group in groups[1:]]
    status, answer = site.act({"do": "answer", "groups": sent, "relations": relations, "bands": bands})
    assert status == 200
    assert answer["revision"] == 1
    assert answer["left"]["answered"] == len(relations)
    assert site.act({"do": "undo"})[1]["left"]["answered"] == 0
    assert site.get("data/question") == question | {"revision": 2}


def test_a_window_that_has_not_seen_an_action_is_refused(site: Site) -> None:
    assert site.act({"do": "name", "identity": 0, "name": "Ada"}, revision=0)[0] == 200
    status, answer = site.act({"do": "name", "identity": 0, "name": "Bob"}, revision=0)
    assert status == 409
    assert "another window" in answer["message"]
    assert site.get("data/members/0")["name"] == "Ada"
    assert site.act({"do": "name", "identity": 77, "name": "Bob"})[0] == 422


def test_lists_come_in_pages(site: Site) -> None:
    assert site.get("data/members/outliers?first=1&count=1")["images"][0]["path"] == "crops/16.png"
    assert site.get("data/members/outliers?first=x&count=-3")["total"] == 3
    assert site.get("data/members/999999999999999")["total"] == 0
    assert [row["size"] for row in site.get("data/identities?order=size&first=1&count=1")["rows"]] == [5]
    assert site.get("data/identities?search=ONERROR")["total"] == 1


def test_only_this_machine_can_connect_and_a_taken_port_is_said(site: Site) -> None:
    with listen(0) as socket:
        assert socket.getsockname()[0] == "127.0.0.1"
    with pytest.raises(UsageError, match=f"port {site.port} cannot be used"):
        listen(site.port)
