"""What ends a run: errors with one message and no traceback, which the user can fix, and signals."""

import signal
import sysconfig
import traceback
import unicodedata
from pathlib import Path

PLACES = [Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "scripts"))]  # of nobody's own


class UserError(Exception):
    """Something the user can fix, said in one message: printed without a traceback, exit code 1."""

    def __str__(self) -> str:
        """Return the message, safe to print on a terminal; its own line breaks stay."""
        return "\n".join(map(printable, super().__str__().split("\n")))


class Unwritable(UserError):
    """A disk that is full, or a folder that is read-only."""


class Diverged(UserError):
    """A loss, a term or a weight that is no longer a finite number."""


class PeerLost(UserError):
    """Another of the processes that compute a run has ended, or cannot be reached."""


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a run: of Ctrl-C, a terminal that closes and schedulers. Windows has two of them.

    One that is ignored stays so, as SIGHUP under nohup; Ctrl-C's is ignored in the background of a script, and counts.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
    numbers = [signal.Signals[name] for name in names if name in signal.Signals.__members__]
    return [n for n in numbers if n == signal.SIGINT or signal.getsignal(n) not in (signal.SIG_IGN, None)]


def stopped_by(error: BaseException) -> str:
    """Return what stopped a run with a KeyboardInterrupt or a SystemExit, such as Ctrl-C or SIGTERM."""
    code = getattr(error, "code", 130)
    if code == 130:
        return "Ctrl-C"
    is_signal = isinstance(code, int) and code - 128 in set(signal.Signals)
    return signal.Signals(code - 128).name if is_signal else str(code)


def in_users_code(error: Exception) -> UserError | None:
    """Return the error as one message with its frames in files of the user's own; None if it passed none of them.

    Behind these are those of vae_exp that the user's code called: the bug may be there.
    """
    if isinstance(error, UserError):
        return error
    frames: list[traceback.FrameSummary] = []
    called = []
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        is_library = any(map(file.is_relative_to, PLACES)) or {"site-packages", "dist-packages"} & set(file.parts)
        if file.is_relative_to(PLACES[0]):
            called.append(frame)
        elif file.is_file() and not is_library:
            frames, called = [*frames, frame], []
    frames += called if frames else []
    shown = [*traceback.format_list(frames), *traceback.format_exception_only(error)]
    return UserError(f"code of your own failed:\n{''.join(shown).rstrip()}") if frames else None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def printable(text: object) -> str:
    """Return foreign text on one line: wide spaces become plain ones, and terminal control characters are escaped."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in str(text))


def _escaped(letter: str) -> str:
    is_space = unicodedata.category(letter) == "Zs"
    return " " if is_space else letter.encode("unicode_escape").decode()  # also what stands for bytes of no UTF-8
