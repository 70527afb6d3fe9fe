"""`vae-compare`: compare runs."""

import argparse
import functools
import json
import operator
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vae_exp.cli import common
from vae_exp.compare import table
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
from vae_exp.compare.table import format_table, wrapped
from vae_exp.config.checks import closest, shortened
from vae_exp.errors import UserError, printable
from vae_exp.files import Unreadable, parse_yaml, write, writing
from vae_exp.tracking import wandb_logged
from vae_exp.training.run_dir import read_summary

OWN_PROJECT = ""  # --wandb alone: the project that the runs were logged to
MAX_FOLDERS = 3  # that a message names
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
        print(common.versions())
        return
    with common.exits("vae-compare", "config"):
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
    parser.add_argument(
        "--wandb",
        nargs="?",
        const=OWN_PROJECT,
        metavar="ENTITY/PROJECT",
        help="make or update a saved view of this project in W&B; of the runs' own project where none is named",
    )
    parser.add_argument("--wandb-report", action="store_true", help="with --wandb: a W&B report of one sweep too")
    parser.add_argument("--dry-run", action="store_true", help="with --wandb: print what would be sent, send nothing")
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it takes a whole number, 1 or more")
    return int(text)


def compare(options: argparse.Namespace) -> None:
    """Print the table, and write the files that the options name.

    Raises UserError for a folder without runs, an unknown column, a filter that no run passes, or an unwritable file.
    """
    _check_wandb(options)
    single = _read(options)
    runs = fold_seeds(single) if options.fold_seeds else single
    known = [NAME, *dict.fromkeys(key for run in runs for key in run.config), *RESULTS, STATE, REASON]
    metric = table.metric_of(runs)
    column = _require_known(options.sort or metric, known)
    if options.top:
        runs, why = table.largest(runs, column)
        if why:
            print("\n".join(wrapped([why])), file=sys.stderr)
    runs = sort_runs(runs, column, options.descending)[: options.top]
    if options.top:
        single = [run for run in single if any(run in (folded, *folded.members) for folded in runs)]
    if options.dry_run:
        _send(options, single)
        return
    chosen = [_require_known(name, known) for name in options.columns.split(",")] if options.columns else None
    columns = chosen or usual_columns(runs)
    marked = table.best_per_group(runs) if len(runs) > 1 else []
    extra = [UDR] if options.udr else []
    lines = [format_table(runs, columns, marked, None if options.columns else metric, requested=extra)]
    if why := table.describe_groups(runs):
        lines += wrapped([why])
    # All is written before it is printed: whoever reads that may have gone.
    if options.csv:
        lines.append(_write(options.csv, as_csv(runs, columns)))
    if options.html:
        from vae_exp.compare.report import page

        others = sort_runs(single if options.fold_seeds else fold_seeds(single), column, options.descending)
        tables = [runs, others] if len(others) != len(runs) else [runs]
        lines.append(_write(options.html, page(tables, len(single), chosen)))
    try:
        if options.wandb is not None:
            lines += _send(options, single)
    finally:
        print("\n".join(lines))


def _read(options: argparse.Namespace) -> list[Run]:
    """Return the runs that the paths hold and that pass the filters, ranked by UDR if that is requested."""
    runs, damaged = read_runs(options.paths)
    for line in damaged:
        print(f"left out: {line}", file=sys.stderr)
    for test in options.filter:
        runs = _filter(runs, test)
    if options.udr:
        from vae_exp.evaluation import factor_scores

        factor_scores.rank(runs)
    return runs


def _filter(runs: list[Run], test: str) -> list[Run]:
    """Return the runs that pass a test such as optimizer.lr<1e-3. Raises UserError if none does."""
    parts = re.fullmatch(r"([\w./]+)\s*(<=|>=|!=|==|=|<|>)\s*(.*)", test)
    if not parts:
        raise UserError(f"--filter {test}: write KEY=VALUE, or <, >, <=, >=, != in place of =.")
    key, sign, text = parts.groups()
    _require_known(key, [*dict.fromkeys(k for run in runs for k in run.config), *RESULTS, NAME, STATE])
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

    passing = [run for run in runs if passes(run)]
    if not passing:
        raise UserError(f"--filter {shortened(test)}: none of the {len(runs)} runs passes.")
    return passing


def _require_known(column: str, known: list[str]) -> str:
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


def _check_wandb(options: argparse.Namespace) -> None:
    """Raise UserError, before any run is read, if something that --wandb needs is missing."""
    if options.wandb is None:
        for name in ("wandb_report", "dry_run"):
            if getattr(options, name):
                raise UserError(f"--{name.replace('_', '-')}: goes with --wandb ENTITY/PROJECT.")
        return
    if options.wandb != OWN_PROJECT:
        _entity_and_project(options.wandb)
    from vae_exp.tracking import wandb_views

    if not options.dry_run:
        wandb_views.require_account()


def _send(options: argparse.Namespace, runs: list[Run]) -> list[str]:
    """Save the view, and the report if it is requested; a dry run prints them as JSON. Return the lines to print.

    Raises UserError if the project is unknown or has none of the runs, or if W&B refuses.
    """
    from vae_exp.sweeps import summary
    from vae_exp.tracking import wandb_views

    if not (path := options.wandb or wandb_logged.project_of(run.folder for run in runs)):
        raise UserError(
            "--wandb: the runs do not name one project that they were logged to. Say --wandb ENTITY/PROJECT."
        )
    entity, project = _entity_and_project(path)
    logged = wandb_logged.read(runs)
    sweep = _sweep(logged) if options.wandb_report else ""
    view = wandb_views.view(entity, project, logged)
    command = summary.rerun_command(runs[0].folder.parent) if sweep else None
    report = functools.partial(wandb_views.report, entity, project, sweep, logged, runs, command)
    if options.dry_run:
        models = {"view": view._to_model()} | ({"report": report(False)._to_model()} if sweep else {})
        print(json.dumps({name: _as_json(model) for name, model in models.items()}, indent=2))
        return []
    if missing := wandb_views.missing_runs(entity, project, logged):
        _report_missing(f"{entity}/{project}", missing, runs, is_empty=missing == len(set(logged.ids)))
    url, is_old = wandb_views.save_view(view)
    lines = [f"{'updated' if is_old else 'made'} the view {printable(url)}"]
    if sweep:
        try:
            url, is_old = wandb_views.save_report(report(True))
        except ValueError as error:
            raise UserError(f"--wandb-report: {error}") from error
        lines.append(f"{'updated' if is_old else 'made'} the report {printable(url)}")
    return lines


def _entity_and_project(path: str) -> tuple[str, str]:
    words = path.split("/")
    if len(words) != 2 or not all(word.strip() for word in words):
        raise UserError(f"--wandb {path}: it takes ENTITY/PROJECT, such as me/vae_exp.")
    return words[0], words[1]


def _sweep(logged: wandb_logged.Logged) -> str:
    if len(logged.groups) != 1:
        groups = (
            f"these are of {len(logged.groups)}: {', '.join(logged.groups)}" if logged.groups else "these have none"
        )
        raise UserError(f"--wandb-report: it takes the runs of one sweep (or W&B group), and {groups}.")
    return logged.groups[0]


def _as_json(model: Any) -> Any:
    """Return what is sent of a view or a report as JSON; its spec, which is sent as text, is decoded."""
    return json.loads(model.model_dump_json(by_alias=True, exclude_none=True))


def _report_missing(project: str, missing: int, runs: list[Run], is_empty: bool) -> None:
    """Raise UserError if the project has none of the runs, as the view would be empty; print a note for some."""
    offline = [state.wandb.dir for run in runs if (state := read_summary(run.folder)) and state.wandb.dir]
    if len(offline) > MAX_FOLDERS:
        folders = sorted({f"{shlex.quote(folder.rpartition('/')[0])}/*run-*" for folder in offline})
    else:
        folders = [shlex.quote(folder) for folder in offline]
    sync = f"wandb sync {' '.join(folders)}" if offline else "wandb sync"
    if is_empty:
        raise UserError(f"{project} has none of these {missing} runs, so its view would be empty. First: {sync}")
    print(f"{project} does not have {missing} of these runs yet: {sync}", file=sys.stderr)
