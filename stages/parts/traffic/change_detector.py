"""An alarm for a rate that falls: how often the student agrees with the teacher, or the teacher with itself.

The method is the Shiryaev-Roberts e-detector (Shin, Ramdas and Rinaldo 2022, arXiv 2203.03532). Each observation
multiplies the evidence that the rate fell to a lower one, against the rate that was promised, and evidence may start at
any observation. While the rate holds, the average number of observations before a false alarm is at least
`false_alarm_after`, however long the detector runs; a fixed-size test repeated every day has no such guarantee.
"""

FALLS = (0.05, 0.1, 0.25)  # of the promised rate: small, middle and large ones, each found fast by its own evidence


class ChangeDetector:
    """Watches yes-or-no observations whose rate of yes should be at least `rate`, in (0, 1)."""

    def __init__(self, rate: float, false_alarm_after: int = 100_000) -> None:
        self.rate = rate
        self.false_alarm_after = false_alarm_after
        # The likelihood ratio of each lower rate against the promised one, for a yes and for a no.
        self.if_yes = [1 - fall for fall in FALLS]
        self.if_no = [(1 - rate * (1 - fall)) / (1 - rate) for fall in FALLS]
        self.reset()

    def reset(self) -> None:
        """Forget what was observed, as after a new student."""
        self.evidence = [0.0] * len(FALLS)
        self.observed = self.agreed = 0
        self.alarm_at: int | None = None

    def observe(self, yes: bool) -> bool:
        """Count an observation; return whether the alarm is on. It stays on until `reset`."""
        self.observed += 1
        self.agreed += yes
        ratios = self.if_yes if yes else self.if_no
        self.evidence = [(before + 1) * ratio for before, ratio in zip(self.evidence, ratios, strict=True)]
        if self.alarm_at is None and sum(self.evidence) / len(FALLS) >= self.false_alarm_after:
            self.alarm_at = self.observed
        return self.alarm_at is not None
