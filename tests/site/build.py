"""The docs site: `make site` builds it into site/.

    python -m tests.site.build      builds, checks, says what is wrong (exit status 1) or where the site is

zensical makes the pages and treats its warnings as errors. What it makes for a site with a URL is
removed: the error page names all files from the root, and the map of the site would be empty. Added
are llms.txt, llms-full.txt and the Markdown of each page, to which llms.txt leads.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.site import checks, llms, pages

FOR_A_URL: Final = ("404.html", "sitemap.xml")
COLOURS: Final = re.compile(r"\x1b\[[\d;]*m")


class BuildFailed(Exception):
    """What zensical said."""


def build(root: Path) -> Path:
    """Build the site of a folder with zensical.toml and docs/; gives the folder of the site."""
    result = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    # It colours each letter of the line at fault even where nobody sees colours, and ends in a traceback of its own.
    said = COLOURS.sub("", result.stdout + result.stderr.partition("Traceback")[0])
    if result.returncode or "warning" in said.lower():
        raise BuildFailed(said)
    site = root / "site"
    for name in FOR_A_URL:
        (site / name).unlink(missing_ok=True)
    for page in (root / "docs").rglob("*.md"):
        shutil.copy(page, site / page.relative_to(root / "docs"))
    (site / "llms.txt").write_text(llms.index())
    (site / "llms-full.txt").write_text(llms.full())
    return site


def main() -> int:
    try:
        site = build(pages.ROOT)
    except BuildFailed as failed:
        print(failed, file=sys.stderr)
        return 1
    found = checks.faults(site)
    print("\n".join(found) or f"{site}/index.html", file=sys.stderr if found else sys.stdout)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
