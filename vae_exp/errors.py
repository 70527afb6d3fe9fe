"""What ends a run with one message and no traceback: the user can mend it."""


class UserError(Exception):
    """Something the user can mend, said in one message: printed without a traceback, exit code 1."""

    def __str__(self) -> str:
        """The message as a terminal may be given it; its own line breaks stay."""
        return "\n".join(map(printable, super().__str__().split("\n")))


class Unwritable(UserError):
    """A disk that is full, or a folder that is read-only."""


class Diverged(UserError):
    """A loss, a term or a weight that is no longer a finite number."""


def printable(text: object) -> str:
    """Text of somebody else's on one line: what a terminal would obey, or show as nothing, is shown escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in str(text)
    )
