"""Stands for an engine outside this machine: OpenAI's chat protocol with vLLM's additions, a fixed latency, and
failures on demand.

python -m tests.serve.stub_engine --port 8001 --model NAME --key KEY [--latency-ms 100]

A query with SIMULATE-500, SIMULATE-HANG, SIMULATE-GARBAGE or SIMULATE-REFUSE fails in that way. GET /last is the last
request's body, as it came; GET /counts has the requests that came, the different queries among them, and how many
requests their client gave up. The query of those who check the engine, "ready?", is not counted and takes no time.
"""

import argparse
import asyncio
import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path

from aiohttp import web

SURE = 0.6  # the likeliest label's probability


def answer(body: dict) -> dict:
    """A valid answer: one of the labels that the request allows, the same for the same query."""
    wanted = body["structured_outputs"]
    labels = wanted.get("choice") or [
        re.sub(r"\\(.)", r"\1", name) for name in wanted["regex"].rpartition("(")[2].rstrip(")").split("|")
    ]
    prompt = [message["content"] for message in body["messages"] if message["role"] == "user"][-1]
    first = int(hashlib.sha256(prompt.encode(errors="replace")).hexdigest(), 16) % len(labels)
    chances = [SURE if index == first else (1 - SURE) / (len(labels) - 1) for index in range(len(labels))]
    top = [
        {"token": label, "logprob": math.log(chance), "bytes": None}
        for label, chance in zip(labels, chances, strict=True)
    ]
    tokens = [{**top[first], "top_logprobs": top[: body["top_logprobs"]]}]
    if "regex" in wanted:
        before = {"token": "It says so.\n\n[[ ## label ## ]]\n", "logprob": 0.0, "bytes": None, "top_logprobs": []}
        tokens.insert(0, before)
    return {
        "id": "chatcmpl-stub",
        "object": "chat.completion",
        "created": 0,
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "".join(token["token"] for token in tokens)},
                "logprobs": {"content": tokens},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": len(tokens), "total_tokens": 100 + len(tokens)},
    }


def create_app(model: str, key: str, latency_s: float) -> web.Application:
    last = {"body": b"{}"}
    served: dict[str, str] = {model: ""}  # names and adapters' folders
    queries: Counter[str] = Counter()
    cancelled = 0

    async def chat(request: web.Request) -> web.Response:
        nonlocal cancelled
        if key and request.headers.get("Authorization") != f"Bearer {key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        last["body"] = await request.read()
        body = json.loads(last["body"])
        if body["model"] not in served:
            return web.json_response({"error": {"message": f"The model `{body['model']}` does not exist."}}, status=404)
        query = body["messages"][-2]["content"]
        checking = "ready?" in query
        if not checking:
            queries[query] += 1
        if "SIMULATE-500" in query:
            return web.json_response({"error": "the engine broke"}, status=500)
        if "SIMULATE-REFUSE" in query:
            return web.json_response(
                {"error": {"message": "This model's maximum context length is 4096 tokens."}}, status=400
            )
        if "SIMULATE-400" in query:
            return web.json_response({"error": {"message": "max_logprobs is 5"}}, status=400)
        if "SIMULATE-ODD" in query:  # a gateway that answers its own errors with 200
            return web.json_response({"error": {"message": "upstream"}})
        if "SIMULATE-GARBAGE" in query:
            return web.Response(text="<html>a proxy's error page", content_type="text/html")
        try:
            await asyncio.sleep(3600 if "SIMULATE-HANG" in query else 0 if checking else latency_s)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return web.json_response(answer(body))

    async def models(_: web.Request) -> web.Response:
        cards = [
            {"id": name, "object": "model", "root": path, "parent": None if name == model else model}
            for name, path in served.items()
        ]
        return web.json_response({"object": "list", "data": cards})

    async def load(request: web.Request) -> web.Response:
        wanted = await request.json()
        if not Path(wanted["lora_path"], "adapter_config.json").is_file():
            return web.json_response({"error": {"message": f"No adapter found for {wanted['lora_path']}"}}, status=404)
        if wanted["lora_name"] in served:
            return web.json_response({"error": {"message": "has already been loaded"}}, status=400)
        served[wanted["lora_name"]] = wanted["lora_path"]
        return web.Response(text="Success")

    async def unload(request: web.Request) -> web.Response:
        wanted = await request.json()
        return web.Response(text="Success") if served.pop(wanted["lora_name"], None) else web.Response(status=404)

    async def show_last(_: web.Request) -> web.Response:
        return web.Response(body=last["body"], content_type="application/json")

    async def show_counts(_: web.Request) -> web.Response:
        counts = {"requests": queries.total(), "queries": len(queries), "cancelled": cancelled}
        return web.json_response(counts)

    app = web.Application(client_max_size=2**24)
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/v1/models", models)])
    app.add_routes([web.post("/v1/load_lora_adapter", load), web.post("/v1/unload_lora_adapter", unload)])
    app.add_routes([web.get("/last", show_last), web.get("/counts", show_counts)])
    return app


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--key", default="")
    parser.add_argument("--latency-ms", type=float, default=0)
    given = parser.parse_args()
    app = create_app(given.model, given.key, given.latency_ms / 1000)
    web.run_app(app, host="127.0.0.1", port=given.port, print=None, handler_cancellation=True)
