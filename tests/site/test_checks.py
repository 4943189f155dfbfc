"""The checker of a built site finds what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.site import checks

GOOD = """<html><head><link rel="stylesheet" href="style.css"></head><body><h1 id="top">A</h1>
<p>text - <code>| no table |</code> and <a href="#top">here</a>, <a href="sub/b.html#there">there</a>,
<a href="https://example.org/a#b">outside</a></p><img src="a.svg"><pre><code>
- no list
| no table |</code></pre></body></html>"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "index.html").write_text(GOOD)
    (tmp_path / "sub/b.html").write_text('<h1 id="there">B</h1><a href="../index.html">A</a>')
    (tmp_path / "a.svg").write_text("<svg/>")
    (tmp_path / "style.css").write_text('.a { background: url("a.svg") } .b { fill: url(#c) }')
    return tmp_path


def test_nothing_is_wrong_with_a_good_site(site: Path) -> None:
    assert checks.faults(site) == []


@pytest.mark.parametrize(
    ("html", "why"),
    [
        ('<a href="c.html">', "no such file"),
        ('<a href="sub/b.html#nowhere">', "no such anchor"),
        ('<a href="#nowhere">', "no such anchor"),
        ('<a href="/index.html">', "not relative"),
        ('<a href="sub/">', "a folder"),
        ('<a href="../elsewhere.html">', "outside the site"),
        ('<a href="//example.org/">', "neither http nor relative"),
        ('<a href="http://example">', "not a URL"),
        ('<a href="https:///path">', "not a URL"),
        ('<a href="https://example.org/<name>">', "not a URL"),
        ('<script src="https://example.org/a.js"></script>', "it lies elsewhere"),
        ('<link rel="stylesheet" href="//fonts.example.org/a.css">', "it lies elsewhere"),
        ('<link rel="preconnect" href="https://fonts.example.org">', "it lies elsewhere"),
        ('<img src="b.png">', "no such file"),
        ('<img src="a.svg" srcset="a.svg 1x, https://example.org/b.png 2x">', "it lies elsewhere"),
        ('<p style="background: url(https://example.org/b.png)"></p>', "it lies elsewhere"),
        ("<p>so:\n- one\n- two</p>", "unrendered"),
        ("<p>| a | b |\n|---|---|</p>", "unrendered"),
        ("<h1>B</h1>", "2 headings"),
    ],
)
def test_a_seeded_fault_is_found(site: Path, html: str, why: str) -> None:
    (site / "index.html").write_text(GOOD + html)
    (found,) = checks.faults(site)
    assert why in found


@pytest.mark.parametrize("style", ["@import 'https://example.org/a.css';", ".a { src: url(//example.org/font.woff2) }"])
def test_what_a_style_loads_from_elsewhere_is_found(site: Path, style: str) -> None:
    (site / "style.css").write_text(style)
    (found,) = checks.faults(site)
    assert "it lies elsewhere" in found


def test_an_empty_site_is_no_good_site(tmp_path: Path) -> None:
    assert checks.faults(tmp_path) == ["no pages"]
