"""Rows: what they are, where they come from, what is refused."""
