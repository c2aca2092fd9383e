"""Adapters beside a base: what engines can't do with them, and vLLM's routes to load and unload them while it runs.

vLLM knows an adapter, and what it computed with it (the prefix cache), by name and path: changed weights need others.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import aiohttp

from stages.parts.engines.http_client import EngineClient, EngineError
from stages.parts.run.errors import UserError


def refuse_trained_modules(adapters: Iterable[Path], engine: str) -> None:
    """Raise UserError for an adapter that brings whole modules, such as trained embeddings: none has a place for them
    beside a base.
    """
    for folder in adapters:
        if json.loads((folder / "adapter_config.json").read_text()).get("modules_to_save"):
            raise UserError(
                f"{folder} brings trained embeddings, which {engine} can't serve beside a base: set "
                f"runtime.weights to merged, or train it "
                "with train.embeddings false"
            )


async def load_adapter(client: EngineClient, name: str, folder: Path) -> None:
    """Make a running vLLM serve an adapter's folder, an absolute path on its machine; raises EngineError, with vLLM's
    reason.
    """
    await change(client, "load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})


async def unload_adapter(client: EngineClient, name: str) -> None:
    """Make a running vLLM forget an adapter: from then on its name is a 404. Raises EngineError."""
    await change(client, "unload_lora_adapter", {"lora_name": name})


async def change(client: EngineClient, route: str, body: dict[str, str]) -> None:
    try:
        async with client.session.post(f"{client.api_base}/{route}", json=body) as response:
            if response.status != 200:
                raise EngineError(
                    f"{route} of {body['lora_name']}: {response.status}: "
                    f"{(await response.text(errors='replace'))[:300]}"
                )
    except (TimeoutError, aiohttp.ClientError) as error:
        raise EngineError(f"the engine failed: {type(error).__name__}") from None
