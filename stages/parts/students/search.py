"""The search for demonstrations: DSPy's BootstrapFewShotWithRandomSearch, scored by our own client.

The candidates are DSPy's, in its order. DSPy's own loop would score equal prompts again (a weak student bootstraps
nothing, and labelled demonstrations repeat), ask a fifth as fast as our client, and draw a progress bar a candidate
into every log.
"""

import io
import random
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from typing import Any

import dspy
from dspy.teleprompt import BootstrapFewShot, LabeledFewShot

from stages.parts.run.params import Optimize
from stages.parts.run.progress import Progress
from stages.parts.task.program import IntentClassifier, example, metric
from stages.parts.task.program_file import program_state

BEFORE_SHUFFLING = 3  # candidates: without demonstrations, with labelled ones, bootstrapped from the rows as they stand


def candidates(plain: IntentClassifier, train: list[Any], settings: Optimize) -> Iterator[IntentClassifier]:
    """Programs to choose from. Demonstrations are rows of `train`, and right answers of the model that DSPy is set
    to.
    """
    rows = [example(row, plain.labels) for row in train]
    yield plain
    yield LabeledFewShot(k=settings.labeled_demos).compile(plain, trainset=rows)
    for seed in range(-1, settings.candidate_programs):
        drawn, most = list(rows), settings.bootstrapped_demos
        if seed >= 0:
            random.Random(seed).shuffle(drawn)
            most = random.Random(seed).randint(1, settings.bootstrapped_demos)
        bootstrap = BootstrapFewShot(
            metric=metric,
            teacher_settings={"lm": dspy.settings.lm},
            max_bootstrapped_demos=most,
            max_labeled_demos=settings.labeled_demos,
            max_errors=len(rows) + 1,
        )
        with redirect_stderr(io.StringIO()):  # its bar
            program: IntentClassifier = bootstrap.compile(plain, trainset=drawn)
        yield program


def search(
    plain: IntentClassifier, train: list[Any], settings: Optimize, accuracy: Callable[[IntentClassifier], float]
) -> IntentClassifier:
    """The first of the best candidates. `accuracy` scores a program; it is asked once for equal prompts."""
    best, found = plain, {program_state(plain): accuracy(plain)}
    with Progress("searching demonstrations", BEFORE_SHUFFLING + settings.candidate_programs, "candidate") as progress:
        for program in candidates(plain, train, settings):
            state = program_state(program)
            if state not in found:
                found[state] = accuracy(program)
                if found[state] > found[program_state(best)]:
                    best = program
            progress.update()
    return best
