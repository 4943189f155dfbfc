"""What is wrong with a built site, a folder of HTML.

- A link within the site leads to a file that is there, and to an anchor that is there. It is relative, and names a
  file, not a folder: the site works from a folder and under any path.
- What a page loads (scripts, styles, pictures, fonts) lies in the site.
- Links that leave the site are looked at by their form alone.
- No Markdown is left unrendered: a list or a table without a blank line before it comes out as text.

    faults(site)    one line for each
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

LOADED: Final = {
    "script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src", "audio": "src", "object": "data",
    "embed": "src", "input": "src", "use": "href",
}  # fmt: skip
LOADED_RELS: Final = {"stylesheet", "icon", "preload", "modulepreload", "preconnect", "dns-prefetch", "manifest"}
CSS_URL: Final = re.compile(r"""(?:url\(\s*["']?|@import\s+["'])([^"')\s]+)""")
UNRENDERED: Final = re.compile(r"\n\s*(?:[-*] |\d+\. |\|)|^\s*(?:\||```)")
HOST: Final = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+", re.IGNORECASE)
LOCAL_HOSTS: Final = {"localhost", "127.0.0.1"}


class _Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids = set[str]()
        self.links: list[str] = []
        self.assets: list[str] = []
        self.paragraphs: list[str] = []
        self.headings = 0
        self._in_paragraph = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        self.headings += tag == "h1"
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and LOADED_RELS & set(values.get("rel", "").split()):
            self.assets.append(values.get("href", ""))
        elif tag == "link" and "href" in values:
            self.links.append(values["href"])
        elif source := values.get(LOADED.get(tag, "")):
            self.assets.append(source)
        self.assets += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        self.assets += CSS_URL.findall(values.get("style", ""))
        if tag in ("p", "li", "td"):
            self._in_paragraph = True
            self.paragraphs.append("")
        elif tag == "pre":
            self._in_paragraph = False

    def handle_endtag(self, tag: str) -> None:
        if tag in ("p", "li", "td"):
            self._in_paragraph = False

    def handle_data(self, data: str) -> None:
        if self._in_paragraph:
            self.paragraphs[-1] += data


def faults(site: Path) -> list[str]:
    pages = {path: _Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = [f"{path.relative_to(site)}: {fault}" for path in pages for fault in _of_page(path, site, pages)]
    return [*found, *_of_styles(site)] if pages else ["no pages"]


def _of_page(path: Path, site: Path, pages: dict[Path, _Page]) -> Iterator[str]:
    page = pages[path]
    for link in page.links:
        if why := _wrong_link(link, path, site, pages):
            yield f"link {link!r}: {why}"
    for asset in page.assets:
        if why := _wrong_asset(asset, path, site):
            yield f"loads {asset!r}: {why}"
    for text in page.paragraphs:
        if UNRENDERED.search(text.strip()):
            yield f"unrendered: {text.strip()[:60]!r}"
    if page.headings != 1:
        yield f"{page.headings} headings of level 1"


def _wrong_link(link: str, path: Path, site: Path, pages: dict[Path, _Page]) -> str:
    """Why a link is wrong; empty if it is not."""
    parts = urlsplit(link)
    if parts.scheme in ("http", "https"):
        good = parts.hostname in LOCAL_HOSTS or (parts.hostname and HOST.fullmatch(parts.hostname))
        return "" if good and not re.search(r"[\s<>]", link) else "not a URL"
    if parts.scheme or parts.netloc:
        return "neither http nor relative"
    if why := _not_there(parts.path, path, site):
        return why
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in pages[target].ids:
        return "no such anchor"
    return ""


def _wrong_asset(asset: str, path: Path, site: Path) -> str:
    parts = urlsplit(asset)
    if parts.scheme == "data":
        return ""
    if parts.scheme or parts.netloc:
        return "it lies elsewhere"
    return _not_there(parts.path, path, site)


def _not_there(relative: str, path: Path, site: Path) -> str:
    if relative.startswith("/"):
        return "not relative"
    target = (path.parent / unquote(relative)).resolve() if relative else path
    if site.resolve() not in target.parents:
        return "outside the site"
    if target.is_dir():
        return "a folder"
    return "" if target.exists() else "no such file"


def _of_styles(site: Path) -> Iterator[str]:
    for path in sorted(site.rglob("*.css")):
        for url in CSS_URL.findall(path.read_text()):
            if not url.startswith("#") and (why := _wrong_asset(url, path, site)):
                yield f"{path.relative_to(site)}: loads {url!r}: {why}"
