"""Templates to text: the report's page and the cards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.parts.numbers.arms import dollars, percent, points

TEMPLATES = Path(__file__).parent / "templates"


def rendered(template: str, facts: Mapping[str, Any]) -> str:
    """A file of templates/ filled in; HTML is escaped, and a name that the facts lack is an error."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "points": points, "dollars": dollars}
    return environment.get_template(template).render(facts)
