"""The profile's teacher as a DSPy language model: served by an engine of our own, behind an endpoint, or the linear one."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import dspy

from stages.parts.data.rows import Query, row_id
from stages.parts.engines.dspy_lm import served_lm
from stages.parts.engines.hub import snapshot
from stages.parts.engines.kinds import OWN_KIND
from stages.parts.engines.process import prepare, running
from stages.parts.run.gpus import gpu_memory
from stages.parts.run.params import EndpointSettings, Params, VllmSettings
from stages.parts.run.paths import cache
from stages.parts.teachers.endpoint import endpoint_lm
from stages.parts.teachers.linear_engine import LinearEngine
from stages.parts.teachers.self_trained import SelfTrainedTeacher


@contextmanager
def teacher_lm(params: Params, gold: Sequence[Query], pool: Sequence[Query], labels: Sequence[str]) -> Iterator[dspy.LM]:
    """The teacher, for as long as the block lasts; raises UserError where it can't be reached or started."""
    settings = params.teacher
    if isinstance(settings, VllmSettings):
        gpu_memory()
        weights = cache() / "hub" / settings.revision
        snapshot(settings.model, settings.revision, weights)
        engine = prepare(OWN_KIND, weights, {}, params.runtime, on_gpus=True, max_model_len=settings.max_model_len)
        with running(engine) as served:
            yield served_lm(served, "base", settings.max_tokens)
    elif isinstance(settings, EndpointSettings):
        yield endpoint_lm(settings)
    else:
        pool_texts, gold_texts = [row["text"] for row in pool], [row["text"] for row in gold]
        gold_labels = [row["label"] for row in gold]
        linear = SelfTrainedTeacher.fit(pool_texts, gold_texts, gold_labels, labels, params.seed)
        name = "linear-all-" + row_id("\n".join([*pool_texts, *gold_texts, *gold_labels, *labels, str(params.seed)]))
        yield dspy.LM(name, engine=LinearEngine(name, linear, pool_texts), logprobs=True)
