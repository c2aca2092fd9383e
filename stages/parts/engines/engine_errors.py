"""What error statuses of an engine of our own mean."""


class EngineErrorWords:
    """For kinds of engines: only the key concerns every request, and the engine's log knows the rest."""

    def refuses_all(self, status: int, message: str) -> str | None:
        return "the engine wants another key than ENGINE_API_KEY holds" if status == 401 else None

    def complaint(self, status: int, message: str) -> str:
        return f"the engine answered {status}; its log says why"
