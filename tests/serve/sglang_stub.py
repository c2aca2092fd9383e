"""Stands for an SGLang server: what of its protocol differs from vLLM's, as its source has it (0.5.23).

python -m tests.serve.sglang_stub --port 8001 --model NAME --key KEY [--adapter NAME] [--prompt-ids ID ...]

Every path but /health wants the key. Keys that it does not know (structured_outputs) are passed over in silence;
without a grammar it talks freely. An adapter is asked for as BASE:ADAPTER; any other model name is answered by the
base. A query with SIMULATE-REFUSE is too long for it. A prompt's token ids come with the choice, if they are wanted.
"""

import argparse
import re
from typing import Any

from aiohttp import web

from tests.serve.stub_engine import answer

TOO_LONG = "The input (9000 tokens) is longer than the model's context length (8192 tokens)."
CLAMPED = -3.4028234663852886e38  # of a token that the grammar rules out: the least float32


def create_app(model: str, key: str, adapter: str | None, prompt_ids: list[int] | None) -> web.Application:
    last: dict[str, Any] = {"body": {}}

    async def chat(request: web.Request) -> web.Response:
        body = last["body"] = await request.json()
        base, _, wanted = body["model"].partition(":")
        if wanted and wanted != adapter:
            return web.json_response(
                {"message": f"The following requested LoRA adapters are not loaded: {wanted}"}, status=400
            )
        if "SIMULATE-REFUSE" in str(body["messages"]):
            return web.json_response(
                {"object": "error", "message": TOO_LONG, "type": "BadRequestError", "code": 400}, status=400
            )
        quoted = re.findall(r'"((?:[^"\\]|\\.)*)"', body.get("ebnf", ""))
        choices = [re.sub(r"\\(.)", r"\1", choice) for choice in quoted] or ["Sure, let me help!", "Of course!"]
        grammar = {"regex": body["regex"]} if "regex" in body else {"choice": choices}
        completion = answer({**body, "structured_outputs": grammar})
        for entry in completion["choices"][0]["logprobs"]["content"]:
            entry["top_logprobs"] += [{"token": "the", "logprob": CLAMPED, "bytes": None}]
        if body.get("return_token_ids") and prompt_ids:
            completion["choices"][0]["prompt_token_ids"] = prompt_ids
        return web.json_response(completion | {"model": base})

    async def models(_: web.Request) -> web.Response:
        cards = [{"id": model, "object": "model", "root": model, "parent": None}]
        cards += [{"id": adapter, "object": "model", "root": "/some/folder", "parent": model}] if adapter else []
        return web.json_response({"object": "list", "data": cards})

    async def show_last(_: web.Request) -> web.Response:
        return web.json_response(last["body"])

    @web.middleware
    async def check_key(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path not in ("/health", "/last") and request.headers.get("Authorization") != f"Bearer {key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return await handler(request)

    async def health(_: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(middlewares=[check_key])
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models)])
    app.add_routes([web.get("/health", health), web.get("/last", show_last)])
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--adapter")
    parser.add_argument("--prompt-ids", type=int, nargs="+")
    given = parser.parse_args()
    web.run_app(
        create_app(given.model, given.key, given.adapter, given.prompt_ids),
        host="127.0.0.1",
        port=given.port,
        print=None,
    )
