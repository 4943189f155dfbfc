"""llms.txt and llms-full.txt: the docs for readers that are programs (https://llmstxt.org).

index()     a list of the pages, each with what it is for; links lead to the Markdown, which the
            site holds beside the HTML
full()      all pages in one file, but for the decision records
"""

from __future__ import annotations

from itertools import groupby
from typing import Final

from tests.site import pages

OPTIONAL: Final = """\
## Optional

- [All pages in one file](llms-full.txt)
- [JSON schemas of the frames](schema/defs.json)
"""


def index() -> str:
    parts = [f"# chatd\n\n> {pages.PROJECT['site_description']}\n"]
    for section, members in groupby(pages.in_order(), key=lambda page: page.section):
        lines = [f"- [{page.title}]({page.path}): {page.about}" for page in members]
        parts.append("\n".join([f"## {section}", "", *lines, ""]))
    parts.append(OPTIONAL)
    return "\n".join(parts)


def full() -> str:
    return "\n".join(f"<!-- {page.path} -->\n\n{page.text}" for page in pages.in_order())
