"""Numbers and templates to text: the report's page and the cards."""

from decimal import Decimal
from pathlib import Path
from typing import Any

from stages.parts.run.pages import filled_template

TEMPLATES = Path(__file__).parent / "templates"


def dollars(amount: float) -> str:
    """Format an amount to the cent, smaller ones to two significant digits."""
    return f"${amount:,.2f}" if amount >= 0.1 else f"${Decimal(f'{amount:.2g}'):f}"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """Format a difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def rendered(template: str, **context: Any) -> str:
    """Fill in a file of templates/. HTML is escaped; a name missing from the context is an error."""
    return filled_template(TEMPLATES / template, context, {"percent": percent, "points": points, "dollars": dollars})
