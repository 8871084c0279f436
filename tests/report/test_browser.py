"""The page in a real browser, where there is one: no console error, nothing too wide for a phone, names inert."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ccreid_cli.report.content import ReportContent

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *("--enable-logging=stderr", "--virtual-time-budget=2000"),
]

# Runs beside the report, which itself can run nothing, and looks at it.
PROBE = """
<iframe style="width:360px;height:800px;border:0" srcdoc="{page}"></iframe><p id="found"></p>
<script>
  const frame = document.querySelector("iframe");
  window.onload = () => {{
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll("details").forEach((part) => (part.open = true));
    const images = [...page.images];
    images.forEach((image) => (image.loading = "eager"));
    const wide = [...page.querySelectorAll("main *")].filter((part) => !part.closest(".scroll, svg")
      && part.getBoundingClientRect().right > 361);
    setTimeout(() => {{
      document.getElementById("found").textContent = JSON.stringify({{
        width: root.scrollWidth, wide: wide.map((part) => part.outerHTML.slice(0, 80)), images: images.length,
        broken: images.filter((image) => !image.naturalWidth).length,
        sections: [...page.querySelectorAll("section")].map((part) => part.id), title: page.title,
        charts: [...page.querySelectorAll("svg")].filter((part) => part.getBoundingClientRect().height > 100).length,
      }});
    }}, 1000);
  }};
</script>
"""


def _open(address: str, folder: Path, width: int) -> tuple[str, str]:
    assert BROWSER is not None
    flags = [*FLAGS, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},900", "--dump-dom"]
    done = subprocess.run([BROWSER, *flags, address], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout, done.stderr


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_opens_from_disk_without_console_errors(content: ReportContent, text: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    dom, log = _open(file.as_uri(), tmp_path, 1280)
    assert "CONSOLE" not in log, log
    assert all(f'<section id="{part}"' in dom for part in ("results", "training", "retrieval", "clusters", "setup"))
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    assert html.unescape(title[1]) == f"{content.name} · ccreid report"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")
def test_fits_a_phone_and_shows_every_image(content: ReportContent, text: str, tmp_path: Path) -> None:
    file = tmp_path / "probe.html"
    file.write_text(PROBE.format(page=html.escape(text)), encoding="utf-8")
    dom, log = _open(file.as_uri(), tmp_path, 800)
    assert "CONSOLE" not in log, log
    answer = re.search(r'<p id="found">(.*?)</p>', dom)
    assert answer is not None
    assert answer[1], log
    found = json.loads(html.unescape(answer[1]))
    assert found["title"] == f"{content.name} · ccreid report"
    assert found["width"] <= 360
    assert found["wide"] == []
    assert found["images"] == 34
    assert found["broken"] == 0
    assert found["charts"] == 13
