"""The pages that people look at: one style, and what each shows of its service, in one file."""

import json
from pathlib import Path
from typing import Any

STYLE = Path(__file__).with_name("pages.css")
PAGE_HEADERS = {"Content-Security-Policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'"}


def filled_page(page: Path, facts: Any) -> str:
    """The page with the shared style in the place of STYLE, and `facts` as JSON in the place of FACTS."""
    text = page.read_text(encoding="utf-8").replace("STYLE", STYLE.read_text(encoding="utf-8"), 1)
    return text.replace("FACTS", json.dumps(facts).replace("<", "\\u003c"), 1)
