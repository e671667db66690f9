"""The built pages: links and anchors, alt texts, mathematics, and no network.

Run after a build: `make html` does.
"""

import os
import re
import shutil
import subprocess
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from chapter_statistics import CHAPTERS, measure, read

HTML = Path(__file__).resolve().parent.parent / "_build" / "html"
PAGES = sorted(HTML.glob("book/*.html"))
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """The anchors, links, resources and pictures of one page."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.resources, self.pictures = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") in ("stylesheet", "preload", "icon"):
            self.resources.append(found.get("href", ""))
        if tag in ("script", "img", "source") and found.get("src"):
            self.resources.append(found["src"])
        if tag == "img":
            self.pictures.append(found)


@cache
def parsed(path):
    """One page, parsed once."""
    return Page(path.read_text(encoding="utf-8"))


pages = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def test_every_chapter_has_a_page():
    assert CHAPTERS
    missing = [
        c.stem for c in CHAPTERS if not (HTML / "book" / f"{c.stem}.html").exists()
    ]
    assert not missing
    assert (HTML / "index.html").exists()


@pages
def test_internal_links_and_anchors_resolve(path):
    for link in parsed(path).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = path
        if parts.path:
            target = Path(os.path.normpath(path.parent / unquote(parts.path)))
        assert target.is_file(), f"{link} leads nowhere"
        if parts.fragment and target.suffix == ".html":
            anchors = parsed(target).anchors
            assert unquote(parts.fragment) in anchors, f"no anchor for {link}"


@pages
def test_nothing_is_fetched_from_the_network(path):
    for resource in parsed(path).resources:
        parts = urlsplit(resource)
        assert not parts.netloc, f"{resource} needs the network"
        if parts.scheme != "data":
            assert (path.parent / unquote(parts.path)).is_file(), f"no {resource}"


@pages
def test_pictures_have_alt_texts_that_are_not_file_names(path):
    for picture in parsed(path).pictures:
        alt = picture.get("alt", "")
        assert alt, f"{picture['src']} has no alt text"
        assert not re.search(r"\.(png|svg|jpe?g)$|_images/", alt), alt


@pages
def test_nothing_is_left_raw(path):
    text = path.read_text(encoding="utf-8")
    assert 'class="system-message' not in text
    assert 'class="problematic' not in text
    body = re.sub(r"<(pre|script|style)\b.*?</\1>", "", text, flags=re.S)
    assert not re.search(r"\{(cite|ref|eq|numref|prf)[:}]", body)
    assert "```" not in body and ":::" not in body


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.stem)
def test_exercises_and_figures_arrive_on_the_page(chapter):
    text = (HTML / "book" / f"{chapter.stem}.html").read_text(encoding="utf-8")
    counts = measure(read(chapter))
    assert text.count('class="exercise admonition"') == counts["exercises"]
    assert text.count('class="solution dropdown admonition"') == counts["exercises"]
    assert text.count("<figcaption>") == counts["figures"]


@pytest.mark.skipif(BROWSER is None, reason="no chromium: mathematics not rendered")
def test_mathematics_is_typeset_without_network():
    page = HTML / "book" / f"{CHAPTERS[0].stem}.html"
    formulas = page.read_text(encoding="utf-8").count('class="math notranslate')
    command = [
        BROWSER,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=30000",
        "--dump-dom",
        page.as_uri(),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.stdout.count("<mjx-container") >= formulas > 0
    assert "<mjx-merror" not in run.stdout
