"""What engines can't do with an adapter beside a base."""

import json
from collections.abc import Iterable
from pathlib import Path

from stages.parts.run.errors import UserError


def refuse_trained_modules(adapters: Iterable[Path], engine: str) -> None:
    """Raise UserError for an adapter that brings whole modules, such as trained embeddings: none has a place for them beside a base."""
    for folder in adapters:
        if json.loads((folder / "adapter_config.json").read_text()).get("modules_to_save"):
            raise UserError(f"{folder} brings trained embeddings, which {engine} can't serve beside a base: set runtime.weights to merged")
