"""What ends a run: errors with one message and no traceback, which the user can fix, and signals."""

import importlib.util
import signal
import sysconfig
import traceback
import unicodedata
from pathlib import Path

PLACES = [Path(__file__).parent, *(Path(sysconfig.get_path(name)) for name in ("stdlib", "scripts"))]  # of nobody's own


MAX_LINES = 20  # of a message
MAX_FRAMES = 4  # of a user's code in one: the first and the last three, of up to four lines each
EXTRAS = {"parquet": ("pyarrow",), "onnx": ("onnx", "onnxscript", "onnxruntime")}  # pip install 'vae_exp[EXTRA]'
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "_status_alloc_failed")  # the last of cuBLAS and cuDNN


class UserError(Exception):
    """Something the user can fix, said in one message: printed without a traceback, exit code 1."""

    def __str__(self) -> str:
        """Return the message, safe to print on a terminal and no longer than can be read; its own line breaks stay."""
        lines = [shortened(printable(line), 600, 400) for line in super().__str__().split("\n")]
        if len(lines) > MAX_LINES:
            lines[9:-10] = [f"... ({len(lines) - 19:,} more lines)"]
        return shortened("\n".join(lines), 1500, 400)


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


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower() if isinstance(error, RuntimeError) else ""
    return isinstance(error, MemoryError) or any(sign in text for sign in OUT_OF_MEMORY)


def in_users_code(error: Exception) -> UserError | None:
    """Return the error as one message with its frames in files of the user's own; None if it passed none of them.

    Behind these are those of vae_exp that the user's code called: the bug may be there.
    """
    if isinstance(error, UserError):
        return error
    frames: list[traceback.FrameSummary] = []
    ours = []
    for frame in traceback.extract_tb(error.__traceback__):
        file = Path(frame.filename)
        is_library = any(map(file.is_relative_to, PLACES)) or {"site-packages", "dist-packages"} & set(file.parts)
        if file.is_relative_to(PLACES[0]):
            ours.append(frame)
        elif file.is_file() and not is_library:
            frames, ours = [*frames, frame], []
    frames += ours if frames else []
    shown = traceback.format_list(frames)
    if len(shown) > MAX_FRAMES:
        shown[1 : 1 - MAX_FRAMES] = [f"  ... ({len(shown) - MAX_FRAMES:,} more calls)\n"]
    shown += traceback.format_exception_only(error)
    return UserError(f"code of your own failed:\n{''.join(shown).rstrip()}") if frames else None


def require_extra(extra: str, what: str, instead: str) -> None:
    """Raise UserError, with the command that installs it, unless the packages of an extra are there."""
    if missing := [package for package in EXTRAS[extra] if importlib.util.find_spec(package) is None]:
        raise UserError(f"{what}: it needs {', '.join(missing)}: pip install 'vae_exp[{extra}]'. {instead}")


def printable(text: object) -> str:
    """Return foreign text on one line: wide spaces become plain ones, and terminal control characters are escaped."""
    text = str(text)
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def composed(text: object) -> str:
    """Return a name by which others are found: é is one letter, also where a disk, such as macOS's, made it of two."""
    return unicodedata.normalize("NFC", str(text))


def printable_lines(text: object) -> str:
    """Return foreign text as `printable` does, but with its line breaks."""
    return "\n".join(map(printable, str(text).split("\n")))


def shortened(text: str, head: int = 500, tail: int = 0) -> str:
    """Return text for a message, of a very long one only so many characters of its beginning and its end."""
    if len(text) <= head + tail:
        return text
    return f"{text[:head]}... ({len(text):,} characters){text[len(text) - tail :]}"


def _escaped(letter: str) -> str:
    is_space = unicodedata.category(letter) == "Zs"
    return " " if is_space else letter.encode("unicode_escape").decode()  # also what stands for bytes of no UTF-8
