"""What a service watches for months: how often student and teacher agree, and the teacher with itself, and how familiar
the queries are.
"""

import hashlib
import logging
from collections import OrderedDict
from contextlib import suppress

from prometheus_client import CollectorRegistry, Gauge

from stages.parts.traffic.change_detector import ChangeDetector
from stages.parts.traffic.drift import FALSE_ALARM_AFTER, FamiliarTexts
from stages.parts.traffic.store import TrafficStore, WatchName

logger = logging.getLogger("serve")
RECENT = 1_000  # queries

# Formats for the share in percent, the number of observations and the expected share.
ALARMS: dict[WatchName, str] = {
    "audit": (
        "the student agrees with the teacher in %.1f %% of %d audits, %.1f %% were expected: look at the served rows, "
        "and train a new student"
    ),
    "teacher": (
        "the teacher repeats %.1f %% of its labels of %d rows, %.1f %% were expected: another model may answer under "
        "its name"
    ),
    "drift": (
        "%.1f %% of %d queries are as near to the learned texts as %.1f %% should be: look at the served rows, and "
        "train a new student"
    ),
}


class WatchGauges:
    """What Prometheus reads of the watches, each by its name."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"watch_{name}", what, ["watch"], registry=registry)

        self.observations = gauge("observations", "What the share is of, within serve.keep_days")
        self.share = gauge("share", "Share that agrees")
        self.expected = gauge("expected", "The share below which the alarm is raised in the end")
        self.alarm = gauge("alarm", "1 since the share has fallen")
        # 1 less the mean cosine of the nearest learned texts
        self.distance = Gauge("query_distance", "Of the last 1,000 different queries, the mean", registry=registry)
        self.usual_distance = Gauge("query_distance_expected", "The same of held-out rows", registry=registry)

    def drop(self, watch: WatchName) -> None:
        """Show nothing of a watch, as that of a student who is not served now."""
        for gauge in (self.observations, self.share, self.expected, self.alarm):
            with suppress(KeyError):
                gauge.remove(watch)


class QualityWatch:
    """A change detector of a student (or of the teacher: no `model`) that goes on where it was before a restart.

    `rate` is the share that is expected, in (0, 1).
    """

    def __init__(
        self,
        watch: WatchName,
        model: str,
        rate: float,
        store: TrafficStore,
        gauges: WatchGauges,
        false_alarm_after: int = 100_000,
    ) -> None:
        self.watch: WatchName = watch
        self.model = model
        self.store = store
        self.gauges = gauges
        self.detector = ChangeDetector(rate, false_alarm_after)
        gauges.expected.labels(watch).set(rate)
        for yes in store.observations(watch, model):
            self.detector.observe(yes)
        self.show()
        if self.detector.alarm_at:
            self.log_alarm()

    def observe(self, yes: bool) -> None:
        """Count an observation and keep it; the first alarm is logged."""
        before = self.detector.alarm_at
        self.detector.observe(yes)
        self.show()
        if before is None and self.detector.alarm_at:
            self.log_alarm()
        try:
            self.store.add_observation(self.watch, self.model, yes)
        except OSError as error:
            logger.error("an observation is not stored: %s", error)

    def show(self) -> None:
        detector = self.detector
        self.gauges.observations.labels(self.watch).set(detector.observed)
        self.gauges.alarm.labels(self.watch).set(detector.alarm_at is not None)
        self.gauges.share.labels(self.watch).set(detector.agreed / max(1, detector.observed))

    def log_alarm(self) -> None:
        detector = self.detector
        share = detector.agreed / detector.observed
        logger.error(ALARMS[self.watch], 100 * share, detector.observed, 100 * detector.rate)


class DriftWatch:
    """Whether queries are as familiar to a student as its held-out rows. Each text counts once within RECENT others:
    one that is sent a thousand times is no drift.
    """

    def __init__(self, model: str, expected: FamiliarTexts, store: TrafficStore, gauges: WatchGauges) -> None:
        self.expected = expected
        self.gauges = gauges
        self.quality = QualityWatch("drift", model, expected.expected, store, gauges, FALSE_ALARM_AFTER)
        self.recent: OrderedDict[bytes, float] = OrderedDict()  # familiarity by the hash of a text
        self.total = 0.0
        gauges.usual_distance.set(1 - expected.mean)

    def observe(self, query: str, familiarity: float) -> None:
        """Count a query."""
        key = hashlib.blake2b(query.encode(errors="surrogatepass"), digest_size=8).digest()
        if key in self.recent:
            self.recent.move_to_end(key)
            return
        self.recent[key] = familiarity
        self.total += familiarity
        if len(self.recent) > RECENT:
            self.total -= self.recent.popitem(last=False)[1]
        self.gauges.distance.set(1 - self.total / len(self.recent))
        self.quality.observe(familiarity >= self.expected.least)
