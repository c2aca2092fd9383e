"""A teacher's input: the rows to label, chosen if not all are to be paid for, and the program that labels them.

Rows stay in their files and are read as often as needed, so a pool of any length takes no memory.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Protocol

from stages.parts.data.rows import Row
from stages.parts.run import paths
from stages.parts.run.files import iter_jsonl, read_json, read_jsonl
from stages.parts.run.params import LinearTeacherSettings, Params, PromptRecipe, RowChoice
from stages.parts.task.program import IntentClassifier
from stages.parts.teachers.prompt_file import load_prompt, prompt_path


class RowSource(Protocol):
    """Rows that can be counted and iterated any number of times: a list, or one of the classes below."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Row]: ...


class StoredRows:
    """The rows of a JSON lines file; raises UserError if it is missing or damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = sum(1 for _ in iter_jsonl(path))

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Row]:
        return iter_jsonl(self.path)


class JoinedRows:
    """Several row sources, one after the other."""

    def __init__(self, *parts: RowSource) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Row]:
        return chain.from_iterable(self.parts)


@dataclass(frozen=True)
class TeacherInputs:
    """What a run labels, in this order: `pool` (as much as was chosen of it), `test` and `gold`.

    A fitted teacher learns from `gold` and `reviewed`. `recipe` is how the program's prompt was tuned, None if it was
    not.
    """

    labels: list[str]
    program: IntentClassifier
    pool: RowSource
    test: RowSource
    gold: list[Row]
    reviewed: list[Row]
    descriptions: dict[str, str] = field(default_factory=dict)
    recipe: PromptRecipe | None = None

    @property
    def rows(self) -> RowSource:
        return JoinedRows(self.pool, self.test, self.gold)


def read_inputs(params: Params) -> TeacherInputs:
    """Read data/splits and the profile's tuned prompt, if there is one.

    Raises UserError for missing rows and for a prompt that does not fit them.
    """
    inputs, settings, path = untuned_inputs(params), params.teacher, prompt_path(params.profile)
    if isinstance(settings, LinearTeacherSettings) or not path.exists():
        return inputs
    in_force = {
        "model": settings.model,
        "labels": inputs.labels,
        "instructions": params.program.instructions,
        "descriptions": inputs.descriptions,
    }
    program, recipe = load_prompt(path, inputs.program, in_force)
    return replace(inputs, program=program, recipe=recipe)


def untuned_inputs(params: Params) -> TeacherInputs:
    """Read data/splits; the prompt is the labels with their descriptions."""
    labels, descriptions = read_json(paths.LABELS), read_json(paths.DESCRIPTIONS)
    pool, settings = StoredRows(paths.POOL), params.teacher
    return TeacherInputs(
        labels=labels,
        # The teacher always reasons: answers are paid for once, and their reasons let the student's style change later.
        program=IntentClassifier(labels, params.program.instructions, "chain_of_thought", descriptions),
        pool=chosen_rows(pool, settings.rows, settings.choose, params.seed),
        test=StoredRows(paths.TEST),
        gold=read_jsonl(paths.GOLD),
        reviewed=read_jsonl(paths.REVIEWED),
        descriptions=descriptions,
    )


def chosen_rows(pool: RowSource, count: int | None, choose: RowChoice, seed: int) -> RowSource:
    """Return `count` rows in the pool's order; all of them if `count` is None or not below their number.

    `random` draws them. `cover` takes the row nearest to the middle of each of `count` clusters of vectors.
    """
    if count is None or count >= len(pool):
        return pool
    draw = random.Random(seed)
    if choose == "random":
        return rows_at(pool, set(draw.sample(range(len(pool)), count)))
    from stages.parts.encoder.vectors import stored_vectors  # this and features: 150 MB and seconds, needed here only
    from stages.parts.task.features import cluster_middles, topic_vectors

    vectors = stored_vectors(pool)
    if vectors is None:
        vectors = topic_vectors([row["text"] for row in pool], seed)
    middles = set(cluster_middles(vectors, count, seed).tolist())
    # Equal texts share a cluster; drawn rows make up for the missing middles.
    others = [place for place in range(len(pool)) if place not in middles]
    return rows_at(pool, middles | set(draw.sample(others, count - len(middles))))


def rows_at(rows: RowSource, places: set[int]) -> list[Row]:
    """Return the rows at these places, in their order."""
    return [row for place, row in enumerate(rows) if place in places]
