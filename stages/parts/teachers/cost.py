"""What a query costs if the teacher answers it."""

from collections.abc import Mapping
from typing import Any

from stages.parts.engines.budget import DISCOUNT
from stages.parts.run.params import HostedTeacherSettings, Params, ServedTeacherSettings


def query_dollars(params: Params, report: Mapping[str, Any], seconds: float | None) -> float | None:
    """Return the dollars of one query; None if the price is not known.

    `report` is the teacher's (reports/teacher.json), `seconds` is how long stage `teacher` took, None if that is not
    known. A hosted teacher costs its bill over its answers, at full price where the run paid that of a batch. One on
    GPUs of one's own costs its machine's time; a run that resumed shows less of it. A linear one costs nothing.
    """
    settings = params.teacher
    if isinstance(settings, HostedTeacherSettings):
        bill = report["cost"] if report.get("cost") is None or not settings.batch else report["cost"] / DISCOUNT
    elif isinstance(settings, ServedTeacherSettings):
        bill = None if seconds is None else seconds * params.report.gpu_price_per_hour / 3600
    else:
        return 0.0
    return None if bill is None else bill * settings.votes / report["answers"]
