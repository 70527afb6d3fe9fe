"""`vae-compare`: runs side by side, from their folders alone, whether W&B was online, offline or disabled."""

import argparse
import operator
import re
import sys
from collections.abc import Callable
from pathlib import Path

from vae_exp.cli import compare_on_wandb, shared
from vae_exp.compare import comparable
from vae_exp.compare.runs import (
    LATEST,
    NAME,
    REASON,
    RESULTS,
    STATE,
    UDR,
    Run,
    as_csv,
    fold_seeds,
    read_runs,
    sort_runs,
    usual_columns,
)
from vae_exp.compare.terminal import table, wrapped
from vae_exp.config.check import closest, shortened
from vae_exp.errors import UserError
from vae_exp.files import Unreadable, parse_yaml, write, writing

OPERATORS: dict[str, Callable] = {
    "<=": operator.le,
    ">=": operator.ge,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
STREAMS = ("/dev", "/dev/fd", "/proc/self/fd")  # folders whose names stand for what is open already


def main() -> None:
    """Run `vae-compare`: exit with code 0, or with 1 and one message."""
    if "--version" in sys.argv[1:]:
        print(shared.versions())
        return
    with shared.exits("vae-compare", "config"):
        compare(_arguments().parse_args())


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vae-compare",
        description="Lay runs side by side: the configuration keys that differ between them, and their results.",
        epilog="example: vae-compare outputs/sweeps/... --fold-seeds --filter 'optimizer.lr<=1e-3' --html report.html",
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help=f"run folders, sweep folders, folders of them, or {LATEST}"
    )
    parser.add_argument("--version", action="store_true", help="print the versions of vae_exp and what it stands on")
    parser.add_argument(
        "--sort", "--by", metavar="COLUMN", help="val/neg_elbo unless told; the lowest comes first", dest="sort"
    )
    parser.add_argument(
        "--top", type=_count, metavar="N", help="only the first N, of runs that compare: same data, same likelihood"
    )
    parser.add_argument("--descending", action="store_true", help="the highest comes first")
    parser.add_argument(
        "--filter", action="append", default=[], metavar="TEST", help="such as model.z_dim=10 or 'optimizer.lr<1e-3'"
    )
    parser.add_argument("--columns", metavar="A,B", help="these columns instead of the keys that differ")
    parser.add_argument("--fold-seeds", action="store_true", help="mean ± standard deviation over seeds")
    parser.add_argument(
        "--udr", action="store_true", help="how far each run's latents agree with other seeds' (Duan et al. 2020)"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table with full precision")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write one self-contained page: table, curves, pictures"
    )
    compare_on_wandb.add_options(parser)
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it takes a whole number, 1 or more")
    return int(text)


def compare(options: argparse.Namespace) -> None:
    """Print the table, and write the files that the options name.

    Raises UserError for a folder without runs, an unknown column, a filter that no run passes, or an unwritable file.
    """
    compare_on_wandb.check(options)
    runs, damaged = read_runs(options.paths)
    for line in damaged:
        print(f"left out: {line}", file=sys.stderr)
    for test in options.filter:
        runs = _filter(runs, test)
    if options.udr:
        from vae_exp.cli import udr

        udr.rank(runs)
    single = runs
    runs = fold_seeds(runs) if options.fold_seeds else runs
    known = [NAME, *dict.fromkeys(key for run in runs for key in run.config), *RESULTS, STATE, REASON]
    metric = comparable.metric_of(runs)
    column = _known(options.sort or metric, known)
    if options.top:
        runs, why = comparable.largest(runs, column)
        if why:
            print("\n".join(wrapped([why])), file=sys.stderr)
    runs = sort_runs(runs, column, options.descending)[: options.top]
    single = [run for run in single if any(run in (each, *each.members) for each in runs)] if options.top else single

    if options.dry_run:
        compare_on_wandb.send(options, single)
        return
    chosen = [_known(column, known) for column in options.columns.split(",")] if options.columns else None
    columns = chosen or usual_columns(runs)
    marked = comparable.best_per_group(runs) if len(runs) > 1 else []
    asked = [UDR] if options.udr else []
    lines = [table(runs, columns, marked, None if options.columns else metric, asked=asked)]
    if why := comparable.describe_groups(runs):
        lines += wrapped([why])
    # All is written before it is printed: whoever reads that may have gone.
    if options.csv:
        lines.append(_write(options.csv, as_csv(runs, columns)))
    if options.html:
        from vae_exp.compare.report.page import page

        others = sort_runs(single if options.fold_seeds else fold_seeds(single), column, options.descending)
        shown = [runs, others] if len(others) != len(runs) else [runs]
        lines.append(_write(options.html, page(shown, len(single), chosen)))
    try:
        if options.wandb is not None:
            lines += compare_on_wandb.send(options, single)
    finally:
        print("\n".join(lines))


def _filter(runs: list[Run], test: str) -> list[Run]:
    """Return the runs that pass a test such as optimizer.lr<1e-3. Raises UserError if none does."""
    found = re.fullmatch(r"([\w./]+)\s*(<=|>=|!=|==|=|<|>)\s*(.*)", test)
    if not found:
        raise UserError(f"--filter {test}: write KEY=VALUE, or <, >, <=, >=, != in place of =.")
    key, sign, text = found.groups()
    _known(key, [*dict.fromkeys(k for run in runs for k in run.config), *RESULTS, NAME, STATE])
    try:
        value = parse_yaml(text)
    except Unreadable:  # such as a month 13
        value = text
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)  # YAML reads 1e-3 as text

    def passes(run: Run) -> bool:
        try:
            return OPERATORS[sign](run.value(key), value)
        except TypeError:  # a run without that number
            return False

    kept = [run for run in runs if passes(run)]
    if not kept:
        raise UserError(f"--filter {shortened(test)}: none of the {len(runs)} runs passes.")
    return kept


def _known(column: str, known: list[str]) -> str:
    if column not in known:
        raise UserError(f"{column}: no run has this column.{closest(column, known)}")
    return column


def _write(path: Path, content: str | bytes) -> str:
    """Write a file that an option names, or to a device such as /dev/stdout; return a line that says so."""
    content = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        is_stream = str(path.absolute().parent) in STREAMS or (path.exists() and not path.is_file())
        if is_stream:
            path.write_bytes(content)
    if not is_stream:
        write(path, content)
    return f"wrote {path}"
