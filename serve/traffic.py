"""What the service does after a student's prediction, if params.yaml asks for it: `serve.when_unsure`, `serve.keep`,
`serve.audit`, `serve.drift`, `serve.shadow`. With all of them off there is no `Traffic`, and an answer costs nothing
more.

- Unsure queries go to the teacher, within `serve.teacher_timeout_s` and `serve.budget_usd_per_day`; those out of scope
  do not, since the teacher would name a label, too. Whatever the teacher does, the client gets an answer: the student's
  abstention, if nothing better.
- Queries and answers are kept as rows (stages/parts/traffic/store.py), before the answer is sent.
- A second student predicts the same queries in the background; its failures are counted and touch no answer.
- A share of confident answers is compared with the teacher's in the background; a fall in agreement raises an alarm.
- Queries that move away from the learned texts raise an alarm.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from serve.answer_cache import AnswerCache
from serve.watches import DriftWatch, QualityWatch, WatchGauges
from stages.parts.data.rows import TeacherLabel
from stages.parts.run.files import iter_jsonl, read_jsonl
from stages.parts.run.params import Params, Serve
from stages.parts.run.paths import TEACHER_LABELS, TRAFFIC
from stages.parts.students.local import LocalClassifier, held_out_file, load_local
from stages.parts.students.prediction import CalibratedPrediction, QueryClassifier
from stages.parts.teachers.inputs import read_inputs
from stages.parts.teachers.teacher import open_teacher
from stages.parts.traffic.audit import SELF_AGREEMENT, expected_agreement, rows_to_check
from stages.parts.traffic.drift import FamiliarTexts, familiar_texts
from stages.parts.traffic.escalation import DailyTeacher, Escalation, TeacherAnswer, TeacherUnavailable
from stages.parts.traffic.shadow_rows import ShadowAnswer
from stages.parts.traffic.store import DAY_S, ServedRow, TrafficStore

logger = logging.getLogger("serve")

# Of the service's slots, how many may wait for the teacher: the student's answers go on while it is slow.
ESCALATED_SHARE = 0.25
AUDITS_AT_ONCE = 8  # beyond them a confident answer is not audited
SHADOWS_AT_ONCE = 8  # beyond them the shadow leaves a query out


class TrafficMetrics:
    """What Prometheus reads of escalation, store and audit; never the text of a query."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.teacher_answers = Counter(
            "teacher_answers_total", "Labels of the teacher, by what they were for", ["purpose"], registry=registry
        )
        self.teacher_failures = Counter(
            "teacher_failures_total", "Queries that the teacher gave no label, by reason", ["reason"], registry=registry
        )
        self.dollars = Gauge("teacher_dollars_today", "What the teacher has cost since 0:00 UTC", registry=registry)
        self.rows = Counter(
            "served_rows_total", "Served rows, by whether they were stored", ["stored"], registry=registry
        )
        self.watches = WatchGauges(registry)
        self.shadowed = Counter(
            "shadowed_total", "Queries that the shadow predicted, or failed to", ["outcome"], registry=registry
        )


@dataclass(frozen=True)
class Standards:
    """What a student, `model`, is held to: the share of its confident predictions that the teacher is expected to agree
    with, and how familiar queries should be to it. None: not watched.
    """

    model: str
    agreement: float | None = None
    familiar: FamiliarTexts | None = None


class Traffic:
    """The seam between the service and its traffic: `after` is called with each of the student's predictions.

    `standards` are those of the student that is served.
    """

    def __init__(
        self,
        settings: Serve,
        store: TrafficStore,
        escalation: Escalation | None,
        cache: AnswerCache,
        standards: Standards,
        metrics: TrafficMetrics,
        shadow: QueryClassifier | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.escalation = escalation
        self.cache = cache
        self.metrics = metrics
        self.swap(standards)
        self.teacher_watch = QualityWatch("teacher", "", SELF_AGREEMENT, store, metrics.watches)
        self.draw = random.Random()
        self.free_escalations = max(1, int(settings.queue * ESCALATED_SHARE))
        self.shadow = shadow
        # Clients wait for none of these.
        self.audits: set[asyncio.Task[None]] = set()
        self.shadowing: set[asyncio.Task[None]] = set()
        self.checking: set[asyncio.Task[None]] = set()

    async def after(self, query: str, prediction: CalibratedPrediction) -> CalibratedPrediction:
        """Return what the client gets: the prediction, or the teacher's answer if it is unsure. Never raises."""
        answer = prediction
        if prediction.abstained == "unsure" and self.settings.when_unsure == "teacher":
            answer = await self.escalate(query, prediction)
        number = self.record(query, answer) if self.keeps(prediction) else None
        if not prediction.abstained and self.draw.random() < self.settings.audit:
            self.start_audit(query, prediction, number)
        if self.drift_watch and prediction.familiarity is not None and prediction.model == self.model:
            self.drift_watch.observe(query, prediction.familiarity)
        if self.shadow:
            self.start_shadow(self.shadow, query, prediction, number)
        return answer

    def swap(self, standards: Standards) -> None:
        """Watch another student from now on."""
        self.model, store, gauges = standards.model, self.store, self.metrics.watches
        agreement, familiar = standards.agreement, standards.familiar
        gauges.drop("audit")
        gauges.drop("drift")
        self.audit_watch = QualityWatch("audit", self.model, agreement, store, gauges) if agreement else None
        self.drift_watch = DriftWatch(self.model, familiar, store, gauges) if familiar else None

    def keeps(self, prediction: CalibratedPrediction) -> bool:
        return self.settings.keep == "all" or (self.settings.keep == "doubtful" and prediction.abstained is not None)

    async def escalate(self, query: str, prediction: CalibratedPrediction) -> CalibratedPrediction:
        """Return the teacher's answer, or the student's abstention if the teacher gives none."""
        assert self.escalation

        async def by_teacher() -> CalibratedPrediction:
            assert self.escalation
            found = await self.escalation.query(query)
            return replace(
                prediction,
                label=found.label,
                confidence=prediction.confidence if found.confidence is None else found.confidence,
                abstained=None,
                answered_by="teacher",
                price_usd=found.dollars,
            )

        if not self.free_escalations:
            self.metrics.teacher_failures.labels("busy").inc()
            return prediction
        self.free_escalations -= 1
        try:
            answer, _ = await self.cache.get(query, by_teacher)
        except TeacherUnavailable as error:
            self.metrics.teacher_failures.labels(error.reason).inc()
            return prediction
        finally:
            self.free_escalations += 1
        self.metrics.teacher_answers.labels("unsure").inc()
        # the cached answer may be from the time of another student
        return replace(answer, runners_up=prediction.runners_up, model=prediction.model)

    def record(self, query: str, answer: CalibratedPrediction) -> int | None:
        """Store a row; returns its number, None if the disk does not take it."""
        by_teacher = answer.answered_by == "teacher"
        row = ServedRow(
            text=query,
            label=answer.label,
            confidence=answer.confidence,
            abstained=answer.abstained,
            answered_by=answer.answered_by,
            model=answer.model,
            teacher_label=answer.label if by_teacher else None,
            teacher_confidence=answer.confidence if by_teacher else None,
            dollars=answer.price_usd,
        )
        try:
            number = self.store.add(row)
        except OSError as error:
            self.metrics.rows.labels("no").inc()
            logger.error("a served row is not stored: %s", error)
            return None
        self.metrics.rows.labels("yes").inc()
        return number

    def start_audit(self, query: str, prediction: CalibratedPrediction, number: int | None) -> None:
        """Compare a confident prediction with the teacher's label in the background: the client does not wait."""
        if len(self.audits) < AUDITS_AT_ONCE:
            start_one(self.audit(query, prediction, number), self.audits)

    async def audit(self, query: str, prediction: CalibratedPrediction, number: int | None) -> None:
        assert self.escalation
        try:
            found: TeacherAnswer = await self.escalation.query(query)
            if number is not None:
                self.store.add_teacher(number, found.label, found.confidence, found.dollars)
        except TeacherUnavailable as error:
            self.metrics.teacher_failures.labels(error.reason).inc()
            return
        except OSError as error:
            logger.error("a teacher's label is not stored: %s", error)
        self.metrics.teacher_answers.labels("audit").inc()
        if self.audit_watch and prediction.model == self.model:  # else another student is served since
            self.audit_watch.observe(found.label == prediction.label)

    async def check_teacher(self, rows: Sequence[TeacherLabel]) -> None:
        """Query the teacher for each of the rows once a day, spread over it: a provider may change a model silently."""
        assert self.escalation
        for row in cycle(rows):
            try:
                found = await self.escalation.query(row["text"])
                self.teacher_watch.observe(found.label == row["label"])
            except TeacherUnavailable as error:
                self.metrics.teacher_failures.labels(error.reason).inc()
            await asyncio.sleep(DAY_S / self.settings.check_teacher)

    def start_shadow(
        self, shadow: QueryClassifier, query: str, prediction: CalibratedPrediction, number: int | None
    ) -> None:
        """Let the shadow predict a query in the background; while it is behind, it leaves queries out."""
        if len(self.shadowing) < SHADOWS_AT_ONCE:
            start_one(self.predict_shadow(shadow, query, prediction, number), self.shadowing)
        else:
            self.metrics.shadowed.labels("left_out").inc()

    async def predict_shadow(
        self, shadow: QueryClassifier, query: str, prediction: CalibratedPrediction, number: int | None
    ) -> None:
        try:
            found = await shadow.predict(query)
            if number is not None:
                self.store.add_shadowed(number, ShadowAnswer.of(prediction), ShadowAnswer.of(found), shadow.model)
        except Exception as error:  # whatever it is, it is not the client's
            self.metrics.shadowed.labels("failed").inc()
            logger.error("the shadow failed: %r", error)
        else:
            self.metrics.shadowed.labels("equal" if found.label == prediction.label else "other").inc()

    async def end(self) -> None:
        """Cancel what runs in the background."""
        tasks = self.audits | self.shadowing | self.checking
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def standards_of(classifier: QueryClassifier, settings: Serve) -> Standards:
    """Return what a student is held to, from its held-out rows if `settings` ask for anything of them.

    Raises UserError if it is confident on none of them and to be audited.
    """
    folder = classifier.folder if isinstance(classifier, LocalClassifier) else None
    rows = read_jsonl(held_out_file(folder)) if settings.audit or settings.drift else []
    familiar = familiar_texts(rows) if settings.drift else None
    if settings.drift and not familiar:
        logger.warning("serve.drift is off: only an encoder student knows how familiar a query is")
    agreement = expected_agreement(rows, classifier.calibration) if settings.audit else None
    return Standards(classifier.model, agreement, familiar)


def start_one(work: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> None:
    """Start a task, which is in `tasks` while it runs."""
    task = asyncio.create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


@asynccontextmanager
async def traffic(params: Params, classifier: QueryClassifier, registry: CollectorRegistry) -> AsyncIterator[Traffic]:
    """Open what `serve.when_unsure`, `serve.keep` and `serve.audit` need, until the block ends.

    Raises UserError if the teacher can't be reached or started, or store or shadow can't be opened.
    """
    settings = params.serve
    metrics = TrafficMetrics(registry)
    cache = AnswerCache(classifier.pair, settings.cached_answers)
    shadow = load_local(Path(settings.shadow)) if settings.shadow else None
    async with AsyncExitStack() as opened:
        store = opened.enter_context(TrafficStore(TRAFFIC, settings.keep_days, settings.keep_rows))
        escalation = None
        if settings.queries_teacher:
            inputs = read_inputs(params)
            teacher = opened.enter_context(open_teacher(params, inputs))
            client = await opened.enter_async_context(teacher.connect())
            daily = DailyTeacher(teacher, inputs.program, client, params.runtime, store, settings.budget_usd_per_day)
            metrics.dollars.set_function(lambda: daily.dollars)
            escalation = Escalation(daily.predict, daily.price, settings.teacher_timeout_s)
        served = Traffic(settings, store, escalation, cache, standards_of(classifier, settings), metrics, shadow)
        if settings.check_teacher:
            rows = rows_to_check(iter_jsonl(TEACHER_LABELS), settings.check_teacher)
            start_one(served.check_teacher(rows), served.checking)
        try:
            yield served
        finally:
            await served.end()
