"""What ends a run with one message and no traceback: the user can mend it."""


class UserError(Exception):
    """Something the user can mend, said in one message: printed without a traceback, exit code 1."""


class Unwritable(UserError):
    """A disk that is full, or a folder that is read-only."""


class Diverged(UserError):
    """A loss, a term or a weight that is no longer a finite number."""
