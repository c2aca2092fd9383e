"""Templates filled in: the report, the cards, and the pages of the services. Pages share head.html and pages.css."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

SHARED = Path(__file__).parent
PAGE_HEADERS = {"Content-Security-Policy": "default-src 'self' 'unsafe-inline'; frame-ancestors 'none'"}


def filled_template(
    template: Path, values: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]] | None = None
) -> str:
    """Return a Jinja template filled in; HTML is escaped, and a name that `values` lacks is an error.

    A template may include files beside it and beside this module (`{% include "pages.css" %}`).
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, SHARED]),
        autoescape=template.suffix == ".html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(template.name).render(values)
