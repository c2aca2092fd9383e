"""A teacher that is wrong in ways one chooses, behind OpenAI's protocol with usage, log-probabilities, faults and the
batch API.

    python -m tests.teachers.simulated_teacher --port 9001 --rows truth.csv [--accuracy 0.8 --errors class] [--fault
    500=0.02]

`--rows` is a CSV file with text and label (or category), or JSON lines; texts it does not hold get some label. Errors
are the same whenever a text is asked, unless `--sampled` and the temperature is above 0; faults come by chance, from
`--seed`. GET /stats says what it was asked.

errors   random: any other label, for any row alike
         hard: the second-best label, for the rows that a linear model finds hardest
         class: whole classes are taken for another each
taught   what rids it of its errors where the prompt has it: descriptions (of the true label), examples (with the true
label),
         instruction (a sentence that it writes itself, as GEPA's and MIPROv2's reflection)
faults   429, 500, cut (the connection, half-way), html, hang, truncated (finish_reason length), no_label, form,
         error200 (an error with status 200), no_choices, memory (500), daily (a limit a day)
forms    of every answer, as vendors differ: together (log-probabilities as lists), null, nan, infinity, positive,
         strings, absent (log-probabilities); parts, events, list (content and body); no_usage, zero_usage,
         text_usage, hidden_usage (reasoning in the total alone); outputs (what no reader knows), huge (2 MiB)
"""

import argparse
import asyncio
import csv
import hashlib
import json
import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from stages.parts.task.text import safe_text

QUERY = re.compile(r"\[\[ ## query ## \]\]\n(.*?)\n\nRespond with", re.DOTALL)
FIELD = re.compile(r"`\[\[ ## (\w+) ## \]\]`")
CURRENT = re.compile(r"\[\[ ## (?:current|basic)_instruction ## \]\]\n(.*?)\n\n\[\[ ## ", re.DOTALL)
ERRORS = ("random", "hard", "class")
TAUGHT = ("descriptions", "examples", "instruction")
INSIGHT = "Decide by what the customer wants done."
FAULTS = (
    "429",
    "500",
    "cut",
    "html",
    "hang",
    "truncated",
    "no_label",
    "form",
    "error200",
    "no_choices",
    "memory",
    "daily",
)
FAULTY: dict[str, tuple[int, dict[str, Any]]] = {
    "500": (500, {"error": {"message": "internal error"}}),
    "error200": (200, {"error": {"message": "Provider returned error", "code": 502}}),
    "no_choices": (200, {"id": "chatcmpl-1", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}),
    "memory": (500, {"error": "model requires more system memory (42.1 GiB) than is available (15.2 GiB)"}),
    "daily": (429, {"error": {"message": "Limit 200 requests per day reached.", "code": "rate_limit_exceeded"}}),
}
FORMS = (
    "together null nan infinity positive strings absent parts events list no_usage zero_usage text_usage hidden_usage"
    " outputs huge"
).split()
BATCH_ODDS = (
    "blank cut foreign twice events created text no_status null_error empty outputs ended upper unheard unnamed".split()
)
HUGE = 2 * 2**20
WRONG_KEY = (401, "invalid_api_key", "Incorrect API key provided.")
ANSWERED = web.AppKey("answered", list)
PRICE = (0.15, 0.60)  # dollars for a million tokens: gpt-4o-mini's in DSPy's table
CORRUPTED = 0.9  # share of a corrupted class's rows that are taken for another class


def read_rows(path: Path) -> dict[str, str]:
    """Labels by text."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [json.loads(line) for line in file] if path.suffix == ".jsonl" else list(csv.DictReader(file))
    return {row["text"]: row.get("label") or row["category"] for row in rows}


def wrong_labels(
    truth: Mapping[str, str], errors: str, accuracy: float, seed: int
) -> tuple[dict[str, str], dict[str, str]]:
    """What the teacher says for each text, and the corrupted classes with what they are taken for (errors by class
    alone).
    """
    texts, actual = list(truth), list(truth.values())
    labels = sorted(set(actual))
    chance = random.Random(seed)
    said, pairs = dict(truth), {}
    if errors == "random":
        for text in chance.sample(texts, round((1 - accuracy) * len(texts))):
            said[text] = chance.choice([label for label in labels if label != truth[text]])
    elif errors == "hard":
        for text, other in hardest(texts, actual, labels)[: round((1 - accuracy) * len(texts))]:
            said[text] = other
    else:
        wrong, classes = 0, chance.sample(labels, len(labels))
        for label, other in zip(classes, classes[1:] + classes[:1], strict=True):
            rows = [text for text in texts if truth[text] == label]
            if wrong >= (1 - accuracy) * len(texts) - len(rows) / 2:
                break
            pairs[label] = other
            for text in chance.sample(rows, round(CORRUPTED * len(rows))):
                said[text] = other
                wrong += 1
    return said, pairs


def hardest(texts: Sequence[str], actual: Sequence[str], labels: Sequence[str]) -> list[tuple[str, str]]:
    """Texts and the best wrong label of each, the smallest margin of a cross-validated linear model first."""
    import numpy as np  # here, since a teacher with other errors starts in a second without
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=200)
    )
    likely = cross_val_predict(model, texts, actual, cv=3, method="predict_proba")
    rows, right = np.arange(len(texts)), np.array([labels.index(label) for label in actual])
    others = likely.copy()
    others[rows, right] = -1
    margin = likely[rows, right] - others.max(axis=1)
    return [(texts[number], labels[int(others[number].argmax())]) for number in np.argsort(margin)]


def label_tokens(label: str) -> list[str]:
    """A label in pieces of four characters, as a tokenizer would have several."""
    return [label[place : place + 4] for place in range(0, len(label), 4)]


def share(*parts: object) -> float:
    """A number in [0, 1) that is always the same for the same parts."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big") / 2**48


def formed(completion: dict[str, Any], form: str | None) -> web.Response:
    """An answer in the form of a vendor who keeps to OpenAI's protocol in all but one thing."""
    found: dict[str, Any] = json.loads(json.dumps(completion))
    [choice], usage = found["choices"], found["usage"]
    tokens = choice["logprobs"]["content"] if choice["logprobs"] else []
    odd: dict[str, Any] = {"null": None, "nan": math.nan, "infinity": math.inf, "positive": 0.7}
    if form in odd or form == "strings":
        for token in tokens:
            for each in (token, *token.get("top_logprobs", ())):
                each["logprob"] = odd[form] if form in odd else str(each["logprob"])
    elif form == "together":
        others = [{each["token"]: each["logprob"] for each in token.get("top_logprobs", ())} for token in tokens]
        names, numbers = [token["token"] for token in tokens], [token["logprob"] for token in tokens]
        choice["logprobs"] = {"tokens": names, "token_logprobs": numbers, "top_logprobs": others, "content": None}
    elif form == "absent":
        del choice["logprobs"]
    elif form == "parts":
        text = choice["message"]["content"]
        choice["message"]["content"] = [{"type": "text", "text": text[:9]}, {"type": "text", "text": text[9:]}]
    elif form == "no_usage":
        del found["usage"]
    elif form == "zero_usage":
        usage |= {name: 0 for name in usage}
    elif form == "text_usage":
        found["usage"] = {name: str(tokens) for name, tokens in usage.items()}
    elif form == "hidden_usage":
        usage["completion_tokens"] = 1
    elif form == "huge":
        found["padding"] = " " * HUGE
    elif form == "outputs":
        found["outputs"] = found.pop("choices")
    elif form == "events":
        text = choice["message"]["content"]
        deltas: list[dict[str, Any]] = [{"delta": {"role": "assistant"}}, {"delta": {"content": text[:9]}}]
        deltas += [{"delta": {"content": text[9:]}, "logprobs": choice["logprobs"], "finish_reason": "stop"}]
        events: list[dict[str, Any]] = [{"choices": [{"index": 0, **delta}], "usage": None} for delta in deltas]
        lines = [f"data: {json.dumps(event)}\n\n" for event in [*events, {"choices": [], "usage": usage}]]
        return web.Response(
            text="".join([": keep-alive\n\n", *lines, "data: [DONE]\n\n"]), content_type="text/event-stream"
        )
    return web.json_response([found] if form == "list" else found)


def odd_lines(lines: Sequence[dict[str, Any]], odd: str | None) -> list[str]:
    """The lines of a batch's answers, the first ten of them, or what is beside them, in a form of `BATCH_ODDS`."""
    found = [json.dumps(line) for line in lines]
    first: list[dict[str, Any]] = [json.loads(line) for line in found[:10]]
    if odd == "blank":
        return ["", "  ", *found, "", "\t"]
    if odd == "cut":
        return [line[: len(line) // 2] for line in found[:10]] + found[10:]
    if odd == "foreign":
        foreign = [
            {**line, "custom_id": name} for line, name in zip(first, ("row-1", "", 7, None, "0" * 31), strict=False)
        ]
        return [json.dumps(line) for line in [*foreign, {}, [], {"custom_id": "f" * 32}]] + found
    if odd == "twice":
        return found + found[:10]
    if odd == "events":
        return ['data: {"choices": 5}', "data: [DONE]", *found]
    statuses: dict[str, Any] = {"created": 201, "text": "200"}
    for line in first:
        if odd in statuses:
            line["response"]["status_code"] = statuses[odd]
        elif odd == "no_status":
            del line["response"]["status_code"]
        elif odd == "null_error":
            line["error"] = line["response"]["body"]["error"] = None
        elif odd == "empty":
            line["response"] = None
        elif odd == "outputs":
            line["response"]["body"]["choices"][0] = {"output": "card_arrival"}
    return [json.dumps(line) for line in first] + found[10:]


def complaint(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": code}}, status=status)


class SimulatedTeacher:
    """The endpoint. `stats` counts requests, answers and their tokens; `distinct` those of different requests alone."""

    def __init__(self, said: Mapping[str, str], truth: Mapping[str, str], options: argparse.Namespace) -> None:
        self.labels = sorted(set(truth.values()))
        shown = {text: safe_text(text, self.labels) for text in truth}
        self.said = {shown[text]: label for text, label in said.items()}
        self.truth = {shown[text]: label for text, label in truth.items()}
        self.options = options
        self.chance = random.Random(options.seed)
        self.stats: Counter[str] = Counter()
        self.in_flight = 0
        self.asked: set[str] = set()
        self.answered: list[Mapping[str, Any]] = []  # requests
        self.files: dict[str, bytes] = {}
        others = (f"other-{number}" for number in range(options.batch_others))
        self.batches: dict[str, dict[str, Any]] = {
            name: {"id": name, "input_file_id": "of-somebody-else"} for name in others
        }
        self.trouble: Counter[str] = Counter()

    def confidence(self, query: str, label: str) -> float:
        """High for what is right, lower for most of what is wrong: informative, not perfect."""
        draw = share("confidence", query)
        right = label == self.truth.get(query)
        return 0.75 + 0.24 * draw if right else 0.35 + 0.6 * draw**2

    def answer(self, body: Mapping[str, Any], fault: str | None = None) -> dict[str, Any]:
        """The completion for a request."""
        users = [message["content"] for message in body["messages"] if message["role"] == "user"]
        queries = [found[1] for found in map(QUERY.search, users) if found]
        wanted = FIELD.findall(users[-1].rpartition("Respond with the corresponding output fields")[2])
        if wanted and "label" not in wanted:
            return self.written(body, wanted)
        query = queries[-1] if queries else users[-1]
        label = self.said.get(query) or self.labels[int(share("unknown", query) * len(self.labels))]
        if self.is_taught(body, query):
            label = self.truth[query]
        sure = self.confidence(query, label)
        if body.get("temperature") and self.options.sampled and self.chance.random() > sure:
            label = self.chance.choice(self.labels)
        reasoning = "" if "[[ ## reasoning ## ]]" not in users[-1] else "[[ ## reasoning ## ]]\nIts words say so.\n\n"
        pieces = label_tokens(label)
        if fault == "no_label":
            pieces = ["no", "thing"]
        header = f"{reasoning}[[ ## label ## ]]\n" if fault != "form" else "I think that it is "
        tokens = [self.token(header, 1.0)]
        others = [other for other in self.labels if other[:4] != pieces[0]]
        first = [(pieces[0], sure)] + [(other[:4], (1 - sure) / len(others)) for other in others[:19]]
        tokens.append(
            {**self.token(pieces[0], sure), "top_logprobs": [self.token(piece, chance) for piece, chance in first]}
        )
        tokens += [{**self.token(piece, 0.999), "top_logprobs": [self.token(piece, 0.999)]} for piece in pieces[1:]]
        if fault == "truncated":
            tokens = [self.token("[[ ## reasoning ## ]]\nIts words", 1.0)]
        else:
            tokens.append(self.token("\n\n[[ ## completed ## ]]", 1.0))
        return self.completion(body, tokens, "length" if fault == "truncated" else "stop")

    def is_taught(self, body: Mapping[str, Any], query: str) -> bool:
        """Whether the prompt has what rids the teacher of its error on the query."""
        label = self.truth.get(query)
        said = [message["content"] for message in body["messages"]]
        has = {
            "descriptions": f"- {label}: " in said[0],
            "examples": any(f"[[ ## label ## ]]\n{label}\n" in text for text in said[1:-1]),
            "instruction": INSIGHT in said[0],
        }
        return label is not None and any(has[kind] for kind in self.options.taught)

    def written(self, body: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
        """What it writes for an optimiser: the prompt that it is shown, with an insight."""
        current = CURRENT.search(body["messages"][-1]["content"])
        text = f"{INSIGHT} {current[1] if current else ''}"
        content = "".join(f"[[ ## {field} ## ]]\n{text}\n\n" for field in fields if field != "completed")
        self.stats["written"] += 1
        return self.completion(body, [self.token(f"{content}[[ ## completed ## ]]", 1.0)], "stop")

    def completion(self, body: Mapping[str, Any], tokens: list[dict[str, Any]], finish: str) -> dict[str, Any]:
        content = "".join(token["token"] for token in tokens)
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": content}}
        choice |= {"finish_reason": finish}
        choice |= {"logprobs": {"content": tokens} if body.get("logprobs") else None}
        read, written = sum(len(message["content"]) for message in body["messages"]) // 4, len(content) // 4
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }

    def token(self, text: str, chance: float) -> dict[str, Any]:
        return {"token": text, "logprob": math.log(max(chance, 1e-9)), "bytes": list(text.encode())}

    def count(self, body: Mapping[str, Any], completion: Mapping[str, Any]) -> None:
        key = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        self.answered.append(body)
        first = key not in self.asked
        self.asked.add(key)
        for name in ("prompt_tokens", "completion_tokens"):
            self.stats[name] += completion["usage"][name]
            self.stats[f"distinct_{name}"] += first * completion["usage"][name]
        self.stats["answers"] += 1
        self.stats["distinct"] += first

    def refusal(self, body: Mapping[str, Any], key: str) -> tuple[int, str, str] | None:
        """Status, code and message for what every request would get."""
        options = self.options
        if key != f"Bearer {options.key}":
            return WRONG_KEY
        if body["model"] != options.model:
            return (
                404,
                "model_not_found",
                f"The model `{body['model']}` does not exist or you do not have access to it.",
            )
        if options.refuse and options.refuse in body:
            return (
                400,
                "unsupported_parameter",
                f"Unsupported parameter: '{options.refuse}' is not supported with this model.",
            )
        if any(f"{text}\n" in body["messages"][-1]["content"] for text in options.filtered):
            return 400, "content_filter", "The response was filtered due to the content management policy."
        if options.memory_after is not None and self.stats["answers"] >= options.memory_after:
            return 500, "out_of_memory", "model requires more system memory"
        if options.credit is not None and self.stats["answers"] >= options.credit:
            return (
                429,
                "insufficient_quota",
                "You exceeded your current quota, please check your plan and billing details.",
            )
        return None

    async def chat(self, request: web.Request) -> web.StreamResponse:
        self.stats["requests"] += 1
        body = await request.json()
        if refused := self.refusal(body, request.headers.get("Authorization", "")):
            return complaint(*refused)
        self.in_flight += 1
        self.stats["most_at_once"] = max(self.stats["most_at_once"], self.in_flight)
        try:
            if self.options.places and self.in_flight > self.options.places:
                return self.busy()
            draw, fault = self.chance.random(), None
            for name, rate in self.options.fault.items():
                if draw < rate:
                    fault = name
                    break
                draw -= rate
            self.stats[f"fault_{fault}"] += fault is not None
            if fault == "hang":
                await asyncio.sleep(3600)
            await asyncio.sleep(self.options.latency_ms / 1000)
            if fault == "429":
                return self.busy()
            if fault in FAULTY:
                status, content = FAULTY[fault]
                return web.json_response(content, status=status)
            if fault == "html":
                return web.Response(text="<html>Bad gateway</html>", content_type="text/html")
            completion = self.answer(body, fault)
            if fault == "cut":
                response = web.StreamResponse(headers={"Content-Length": "5000", "Content-Type": "application/json"})
                await response.prepare(request)
                await response.write(b'{"id": "chatc')
                assert request.transport
                request.transport.abort()
                return response
            self.count(body, completion)
            return formed(completion, self.options.form)
        finally:
            self.in_flight -= 1

    @web.middleware
    async def batch_trouble(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The first calls of each of the batch API's routes fail."""
        route = f"{request.method} {request.path}"
        if (
            "/chat/" not in request.path
            and request.path != "/stats"
            and self.trouble[route] < self.options.batch_trouble
        ):
            self.trouble[route] += 1
            return complaint(503, "overloaded", "The server is overloaded.")
        return await handler(request)

    def busy(self) -> web.Response:
        self.stats["answered_429"] += 1
        after = {"Retry-After": str(self.options.retry_after_s)} if self.options.retry_after_s is not None else None
        said = "Rate limit reached. You can raise it by adding a payment method to your account: https://vendor.example/account/billing"
        return web.json_response({"error": {"message": said, "code": "rate_limit_exceeded"}}, status=429, headers=after)

    async def show_stats(self, _: web.Request) -> web.Response:
        dollars = (
            PRICE[0] * self.stats["distinct_prompt_tokens"] + PRICE[1] * self.stats["distinct_completion_tokens"]
        ) / 1e6
        return web.json_response({**self.stats, "distinct_dollars": dollars})

    async def upload(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.options.key}":
            return complaint(*WRONG_KEY)
        form = await request.post()
        assert form["purpose"] == "batch"
        name = f"file-{len(self.files)}"
        self.files[name] = form["file"].file.read()  # type: ignore[union-attr]
        return web.json_response({"id": name, "object": "file", "purpose": "batch"})

    async def download(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["name"]])

    async def create_batch(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        assert wanted["endpoint"] == "/v1/chat/completions" and wanted["completion_window"] == "24h"
        name = f"batch-{len(self.batches)}"
        self.batches[name] = {"id": name, "status": "validating", "input_file_id": wanted["input_file_id"], "polls": 0}
        self.stats["batches"] += 1
        if self.options.batch_odd == "unheard" and self.stats["batches"] == 1:
            return complaint(503, "overloaded", "The server is overloaded.")
        if self.options.batch_odd == "unnamed":
            return web.json_response({"object": "batch"})
        return web.json_response(self.batches[name])

    async def list_batches(self, request: web.Request) -> web.Response:
        """A page, the last batches first, but for those of somebody else, which are newer still."""
        found = [*self.batches.values()][: self.options.batch_others] + [*self.batches.values()][
            self.options.batch_others :
        ][::-1]
        names = [batch["id"] for batch in found]
        start = names.index(request.query["after"]) + 1 if "after" in request.query else 0
        end = start + int(request.query["limit"])
        return web.json_response({"object": "list", "data": found[start:end], "has_more": end < len(found)})

    async def show_batch(self, request: web.Request) -> web.Response:
        """Each poll takes a batch one step on; at the last it is worked through, but for the rows that a fault
        takes.
        """
        batch = self.batches[request.match_info["name"]]
        batch["polls"] += 1
        if "output_file_id" not in batch and batch["polls"] <= self.options.batch_polls:
            batch["status"] = "in_progress"
        elif "output_file_id" not in batch:
            answers, errors = [], []
            for line in self.files[batch["input_file_id"]].splitlines():
                asked = json.loads(line)
                if self.refusal(asked["body"], f"Bearer {self.options.key}") or self.chance.random() < sum(
                    self.options.fault.values()
                ):
                    failed = {"status_code": 500, "body": {"error": {"message": "internal error"}}}
                    errors.append({"custom_id": asked["custom_id"], "response": failed, "error": None})
                    continue
                completion = self.answer(asked["body"])
                self.count(asked["body"], completion)
                response = {"status_code": 200, "body": completion, "padding": " " * self.options.batch_line_bytes}
                answers.append({"custom_id": asked["custom_id"], "response": response, "error": None})
            self.chance.shuffle(answers)  # vendors promise no order
            for kind, lines in (("output", answers), ("error", errors)):
                if lines:
                    batch[f"{kind}_file_id"] = f"{batch['id']}-{kind}"
                    written = odd_lines(lines, self.options.batch_odd) if kind == "output" else map(json.dumps, lines)
                    self.files[batch[f"{kind}_file_id"]] = "".join(f"{line}\n" for line in written).encode()
            batch["status"] = {"ended": "ENDED", "upper": "COMPLETED"}.get(self.options.batch_odd, "completed")
        return web.json_response(batch)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**28, middlewares=[self.batch_trouble])
        app[ANSWERED] = self.answered
        app.add_routes(
            [
                web.post("/v1/chat/completions", self.chat),
                web.get("/stats", self.show_stats),
                web.post("/v1/files", self.upload),
                web.get("/v1/files/{name}/content", self.download),
                web.post("/v1/batches", self.create_batch),
                web.get("/v1/batches", self.list_batches),
                web.get("/v1/batches/{name}", self.show_batch),
            ]
        )
        return app


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.teachers.simulated_teacher", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rows", type=Path, required=True, help="the true labels")
    parser.add_argument("--accuracy", type=float, default=1.0)
    parser.add_argument("--errors", choices=ERRORS, default="random")
    parser.add_argument("--taught", nargs="*", default=[], choices=TAUGHT)
    parser.add_argument("--fault", nargs="*", default=[], metavar="KIND=RATE", help=", ".join(FAULTS))
    parser.add_argument("--form", choices=FORMS, help="of every answer")
    parser.add_argument("--latency-ms", type=float, default=0)
    parser.add_argument("--retry-after-s", type=float, help="what a 429 says")
    parser.add_argument("--places", type=int, help="requests at once; more are answered 429")
    parser.add_argument("--key", default="key")
    parser.add_argument("--model", default="gpt-4o-mini")
    parser.add_argument("--credit", type=int, help="answers until no credit is left")
    parser.add_argument("--memory-after", type=int, help="answers until every request fails with status 500")
    parser.add_argument("--refuse", help="a parameter that is refused")
    parser.add_argument("--filtered", nargs="*", default=[], help="texts that are refused for their content")
    parser.add_argument("--sampled", action="store_true", help="at a temperature above 0 answers vary")
    parser.add_argument("--batch-polls", type=int, default=1, help="polls until a batch is done")
    parser.add_argument(
        "--batch-trouble", type=int, default=0, help="calls of each of the batch API's routes that fail at first"
    )
    parser.add_argument("--batch-odd", choices=BATCH_ODDS, help="a form of the batch, or of lines of its answers")
    parser.add_argument("--batch-others", type=int, default=0, help="batches of somebody else in the list")
    parser.add_argument(
        "--batch-line-bytes", type=int, default=0, help="at least so many in a line of a batch's answers"
    )
    parser.add_argument("--seed", type=int, default=0)
    found = parser.parse_args(given)
    found.fault = {name: float(rate) for name, _, rate in (each.partition("=") for each in found.fault)}
    assert set(found.fault) <= set(FAULTS), f"faults are {', '.join(FAULTS)}"
    return found


def simulated_teacher(options: argparse.Namespace) -> web.Application:
    """The endpoint for a command line; prints corrupted classes."""
    truth = read_rows(options.rows)
    said, pairs = (
        wrong_labels(truth, options.errors, options.accuracy, options.seed) if options.accuracy < 1 else (truth, {})
    )
    if pairs:
        print(json.dumps({"corrupted": pairs}), flush=True)
    return SimulatedTeacher(said, truth, options).app()


if __name__ == "__main__":
    options = arguments()
    web.run_app(simulated_teacher(options), host="127.0.0.1", port=options.port, print=None, handler_cancellation=True)
