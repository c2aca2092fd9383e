"""What DSPy would send, to hold our requests to it."""

from typing import Any


class Recorder:
    """An engine for a dspy.LM that keeps the requests it gets in `sent`, and answers none."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def complete(self, request: Any) -> None:
        self.sent.append(request)
        raise ValueError("enough")

    def __deepcopy__(self, memo: dict[int, object]) -> "Recorder":
        return self  # DSPy copies LMs freely
