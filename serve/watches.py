"""What a service watches for months: how often student and teacher agree, and the teacher with itself."""

import logging

from prometheus_client import CollectorRegistry, Gauge

from stages.parts.traffic.change_detector import ChangeDetector
from stages.parts.traffic.store import TrafficStore, WatchName

logger = logging.getLogger("serve")

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


class QualityWatch:
    """A change detector of a student (or of the teacher: no `model`) that goes on where it was before a restart.

    `rate` is the share that is expected, in (0, 1).
    """

    def __init__(self, watch: WatchName, model: str, rate: float, store: TrafficStore, gauges: WatchGauges) -> None:
        self.watch: WatchName = watch
        self.model = model
        self.store = store
        self.gauges = gauges
        self.detector = ChangeDetector(rate)
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
