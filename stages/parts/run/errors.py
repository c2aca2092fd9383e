"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something the user can mend: what was wrong, where, and what to do, in one line."""
