"""Numbers that can be trusted, and their pictures."""
