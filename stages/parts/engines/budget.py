"""What a run has spent, and whether it may spend more."""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

DISCOUNT = 0.5  # vendors' for what comes in a batch
MARGIN = 1.2  # on a prompt's expected tokens, for texts with more tokens a character than those before


class BudgetExceeded(Exception):
    """The next request could exceed the budget. The message names what was spent."""


@dataclass(frozen=True)
class Price:
    """US dollars for a million tokens."""

    prompt: float
    completion: float


@dataclass
class Spending:
    """Answers and their tokens; `dollars` is None if the price is not known. `estimated` answers came without usage."""

    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    dollars: float | None = 0.0
    estimated: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Budget:
    """Counts what answers cost and holds a run to its budget; None means no limit."""

    def __init__(
        self, price: Price | None = None, budget_usd: float | None = None, budget_tokens: int | None = None
    ) -> None:
        self.price = price
        self.budget_usd, self.budget_tokens = budget_usd, budget_tokens
        self.spent = Spending(dollars=0.0 if price else None)
        self.characters = 0  # in prompts whose tokens are known
        self.in_flight = 0
        self.reserved = (0, 0)  # prompt and completion tokens of what is in flight
        self.settled = asyncio.Event()

    @property
    def limited(self) -> bool:
        return self.budget_usd is not None or self.budget_tokens is not None

    def cost(self, usage: Mapping[str, Any], batch: bool = False) -> float | None:
        """Dollars for a response's usage, requested by itself or in a batch."""
        if not self.price:
            return None
        full = (usage["prompt_tokens"] * self.price.prompt + usage["completion_tokens"] * self.price.completion) / 1e6
        return DISCOUNT * full if batch else full

    def add(self, body: Mapping[str, Any], usage: Mapping[str, Any], dollars: float | None) -> None:
        """Add an answer and what it cost."""
        spent = self.spent
        spent.answers += 1
        spent.estimated += usage.get("estimated", False)
        spent.prompt_tokens += usage["prompt_tokens"]
        spent.completion_tokens += usage["completion_tokens"]
        spent.dollars = None if spent.dollars is None or dollars is None else spent.dollars + dollars
        self.characters += characters(body)

    def expected(self, body: Mapping[str, Any]) -> tuple[int, int]:
        """Prompt and completion tokens that a request may cost: at the prompts' rate so far, a token for two characters
        before the first is known; completions as long as it allows."""
        rate = MARGIN * self.spent.prompt_tokens / self.characters if self.characters else 0.5
        return math.ceil(characters(body) * rate), int(body.get("max_tokens") or body.get("max_completion_tokens") or 0)

    @asynccontextmanager
    async def reservation(self, body: Mapping[str, Any]) -> AsyncIterator[tuple[int, int]]:
        """Reserve what a request may cost until it is answered; yields its expected prompt and completion tokens.

        If they do not fit into the budget, waits for the requests in flight, which mostly cost less than they may.
        Raises BudgetExceeded if none is in flight.
        """
        mine = self.expected(body)
        while reason := self.exceeded_limit(*mine):
            if not self.in_flight:
                raise BudgetExceeded(reason)
            await self.settled.wait()
            mine = self.expected(body)
        self.in_flight += 1
        self.reserved = (self.reserved[0] + mine[0], self.reserved[1] + mine[1])
        try:
            yield mine
        finally:
            self.in_flight -= 1
            self.reserved = (self.reserved[0] - mine[0], self.reserved[1] - mine[1])
            self.settled.set()
            self.settled = asyncio.Event()

    def exceeded_limit(self, prompt: int, completion: int) -> str | None:
        """What is spent of the limit that so many more tokens would exceed, for an error; None if they fit."""
        prompt, completion = prompt + self.reserved[0], completion + self.reserved[1]
        about = "about " if self.spent.estimated else ""
        if self.budget_tokens is not None and self.spent.tokens + prompt + completion > self.budget_tokens:
            return f"{about}{self.spent.tokens:,} tokens of runtime.budget_tokens {self.budget_tokens:,}"
        if self.budget_usd is not None and self.spent.dollars is not None:
            more = self.cost({"prompt_tokens": prompt, "completion_tokens": completion}) or 0.0
            if self.spent.dollars + more > self.budget_usd:
                return f"{about}${self.spent.dollars:.4f} of runtime.budget_usd ${self.budget_usd:.4f}"
        return None


def characters(body: Mapping[str, Any]) -> int:
    return sum(len(message["content"]) for message in body["messages"])
