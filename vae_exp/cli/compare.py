"""`vae-compare`: compare runs."""

import argparse
import functools
import json
import operator
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from vae_exp.cli import common
from vae_exp.compare import runs as results
from vae_exp.compare import table
from vae_exp.compare.runs import FOLDER, NAME, STATE, Run
from vae_exp.compare.table import format_groups, wrapped
from vae_exp.config.checks import closest, path_of
from vae_exp.config.migrations import GONE
from vae_exp.errors import UserError, printable, shortened
from vae_exp.files import Unreadable, expand, parse_yaml, require_no_links, write, writing
from vae_exp.training.console import echo, say
from vae_exp.training.run_dir import LATEST, lock_folder, read_summary, runs_below

OWN_PROJECT = ""  # --wandb alone: the project that the runs were logged to
OPERATORS: dict[str, Callable] = {"<=": operator.le, ">=": operator.ge, "!=": operator.ne, "==": operator.eq}
OPERATORS |= {"=": operator.eq, "<": operator.lt, ">": operator.gt}
STREAMS = ("/dev", "/dev/fd", "/proc/self/fd")  # folders whose names stand for what is open already


def main() -> None:
    """Run `vae-compare`: exit with code 0, or with 1 and one message."""
    with common.exits("vae-compare", "config"):
        if "--version" in sys.argv[1:]:
            echo(common.versions())
        else:
            compare(_arguments().parse_args())


def _arguments() -> argparse.ArgumentParser:
    parser = common.ArgumentParser(
        prog="vae-compare",
        description="Compare runs: the configuration keys that differ between them, and their results.",
        epilog="example: vae-compare outputs/sweeps/... --fold-seeds --filter 'optimizer.lr<=1e-3' --html report.html",
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help=f"run folders, sweep folders, folders of them, or {LATEST}")
    add("--version", action="store_true", help="print the versions of vae_exp and what it stands on")
    add("--sort", "--by", metavar="COLUMN", help="val/neg_elbo unless told; the lowest comes first", dest="sort")
    add("--top", type=_count, metavar="N", help="only the first N, of runs that compare: same data, same likelihood")
    add("--descending", action="store_true", help="the highest comes first")
    like = "such as model.z_dim=10 or 'optimizer.lr<1e-3'"
    add("--filter", action="append", default=[], metavar="TEST", help=like)
    add("--columns", metavar="A,B", help="these columns instead of the keys that differ")
    add("--fold-seeds", action="store_true", help="mean ± standard deviation over seeds")
    add("--udr", action="store_true", help="how far each run's latents agree with other seeds' (Duan et al. 2020)")
    add("--csv", type=expand, metavar="FILE", help="write the table with full precision")
    add("--html", type=expand, metavar="FILE", help="write one self-contained page: table, curves, pictures")
    view = "make or update a saved view of this project in W&B; of the runs' own project where none is named"
    add("--wandb", nargs="?", const=OWN_PROJECT, metavar="ENTITY/PROJECT", help=view)
    add("--wandb-report", action="store_true", help="with --wandb: a W&B report of one sweep too")
    add(
        "--delete", action="store_true", help="list these runs with their sizes, ask, and delete them; --filter chooses"
    )
    add("--yes", action="store_true", help="with --delete: do not ask")
    add("--dry-run", action="store_true", help="with --wandb, --delete: print what would be sent or deleted, no more")
    add("--map", action="store_true", help=argparse.SUPPRESS)
    return parser


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it takes a whole number, 1 or more")
    return int(text)


def compare(options: argparse.Namespace) -> None:
    """Print the table, and write the files that the options name."""
    if options.map:
        raise UserError(f"--map: no such flag any more. {GONE['amortize']}")
    if options.delete:
        _delete(options)
        return
    _check_wandb(options)
    single = _read(options)
    runs = results.fold_seeds(single) if options.fold_seeds else single
    known = _columns(runs)
    column = _require_known(options.sort or table.metric_of(runs), known)
    if options.top:
        runs, why = table.largest(runs, column)
        if why:
            say("\n".join(wrapped([why])), sys.stderr)
    runs = results.sort_runs(runs, column, options.descending)[: options.top]
    if options.top:
        single = [run for run in single if any(run in (folded, *folded.members) for folded in runs)]
    if options.dry_run:
        _send(options, single)
        return
    chosen = [_require_known(name, known) for name in options.columns.split(",")] if options.columns else None
    extra = [results.UDR] if options.udr else []
    lines = [
        format_groups(
            runs,
            chosen or results.usual_columns,
            requested=extra,
            locate=True,
            column=options.sort and column,
            descending=options.descending,
        )
    ]
    if why := table.describe_groups(runs):
        lines += wrapped([why])
    # All is written before it is printed: whoever reads that may have gone.
    if options.csv:
        lines.append(_write(options.csv, results.as_csv(runs, chosen or results.usual_columns(runs))))
    if options.html:
        from vae_exp.compare.report import page

        others = single if options.fold_seeds else results.fold_seeds(single)
        others = results.sort_runs(others, column, options.descending)
        tables = [runs, others] if len(others) != len(runs) else [runs]
        lines.append(_write(options.html, page(tables, len(single), chosen)))
    try:
        if options.wandb is not None:
            lines += _send(options, single)
    finally:
        echo("\n".join(lines))


def _read(options: argparse.Namespace) -> list[Run]:
    runs, damaged = results.read_runs(options.paths)
    for line in damaged:
        say(f"left out: {printable(line)}", sys.stderr)
    for test in options.filter:
        runs = _filter(runs, test)
    if options.udr:
        from vae_exp.evaluation import factor_scores

        factor_scores.rank(runs)
    return runs


def _delete(options: argparse.Namespace) -> None:
    """List runs with their sizes, failed and damaged ones too, and delete them when the user agrees."""
    runs = []
    for path in map(Path, options.paths):
        for folder in runs_below(path_of("PATH", str(path))):
            try:
                runs.append(results.read_run(folder))
            except UserError:
                runs.append(Run(folder, {}, "damaged", None, {}, name=str(folder)))
    for test in options.filter:
        runs = _filter(runs, test)
    if not runs:
        raise UserError(f"--delete: there is no run in {' '.join(map(str, options.paths))}.")
    sizes = [sum(file.stat().st_size for file in run.folder.rglob("*") if file.is_file()) for run in runs]
    for run, size in zip(runs, sizes, strict=True):
        echo(f"{size / 1e6:9.1f} MB  {run.state:<11}  {printable(run.folder)}")
    total = f"{len(runs)} runs, {sum(sizes) / 1e6:,.1f} MB"
    if options.dry_run:
        echo(f"{total}: nothing is deleted")
        return
    if not options.yes and not _agrees(f"Delete {total}? [y/N] "):
        echo("nothing is deleted")
        return
    deleted = 0
    for run in runs:
        try:
            require_no_links(run.folder.parent, [run.folder.name])
            with lock_folder(run.folder):
                shutil.rmtree(run.folder)
            deleted += 1
        except UserError as error:
            say(f"stays: {printable(error)}", sys.stderr)
    echo(f"deleted {deleted} of {len(runs)} runs")
    if deleted < len(runs):
        sys.exit(1)


def _agrees(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError as error:
        raise UserError("--delete: nobody answers here. --yes deletes without asking.") from error


def _filter(runs: list[Run], test: str) -> list[Run]:
    """Return the runs that pass a test such as optimizer.lr<1e-3. Raises UserError if none does."""
    parts = re.fullmatch(rf"([\w./]+)\s*({'|'.join(OPERATORS)})\s*(.*)", test)
    if not parts:
        raise UserError(f"--filter {test}: write KEY=VALUE, or <, >, <=, >=, != in place of =.")
    key, sign, text = parts.groups()
    key = _require_known(key, _columns(runs))
    try:
        value = text if key == NAME else parse_yaml(text)
    except Unreadable:  # such as a month 13
        value = text
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        value = float(value)  # YAML reads 1e-3 as text

    def passes(run: Run) -> bool:
        given = run.given or ""  # of a job that with what is swept
        is_called = key == NAME and (given == value or (bool(run.swept) and given.startswith(f"{value}-")))
        try:
            return OPERATORS[sign](value if is_called else run.value(key), value)
        except TypeError:  # a run without that number
            return False

    passing = [run for run in runs if passes(run)]
    if not passing:
        raise UserError(f"--filter {shortened(test)}: none of the {len(runs)} runs passes.")
    return passing


def _columns(runs: list[Run]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run.config)
    return [
        NAME,
        *keys,
        *dict.fromkeys([*results.result_columns(runs), *results.RESULTS]),
        STATE,
        results.REASON,
        FOLDER,
    ]


def _require_known(column: str, known: list[str]) -> str:
    """Return the column of a name or of its last part, such as z_dim. Raises UserError if no run has it."""
    if column == "name" or f"{column}.name" in known:  # of a model or a dataset: what tables call it by
        return NAME if column == "name" else f"{column}.name"
    if column in known:
        return column
    short = [name for name in known if re.split("[./]", name)[-1] == column]
    if not short or (len(short) > 1 and f"model.{column}" not in short):
        also = f" It may be {' or '.join(short)}." if short else closest(column, known)
        raise UserError(f"{column}: no run has this column.{also}")
    return short[0] if len(short) == 1 else f"model.{column}"


def _write(path: Path, content: str) -> str:
    """Write a file that an option names, or to a device such as /dev/stdout; return a line that says so."""
    if str(path.absolute().parent) in STREAMS or (path.exists() and not path.is_file()):
        with writing(path):
            path.write_bytes(content.encode(errors="backslashreplace"))
    else:
        write(path, content)
    return f"wrote {path}"


def _check_wandb(options: argparse.Namespace) -> None:
    if options.wandb is None:
        if options.wandb_report or options.dry_run:
            flag = "--wandb-report" if options.wandb_report else "--dry-run"
            raise UserError(f"{flag}: goes with --wandb ENTITY/PROJECT.")
        return
    if options.wandb != OWN_PROJECT:
        _entity_and_project(options.wandb)
    from vae_exp.tracking import wandb_views

    if not options.dry_run:
        wandb_views.require_account()


def _send(options: argparse.Namespace, runs: list[Run]) -> list[str]:
    """Save the view, and the report if requested, and return the lines to print; a dry run prints them as JSON."""
    from vae_exp.sweeps import summary
    from vae_exp.tracking import wandb_run, wandb_views

    if not (path := options.wandb or wandb_run.project_of(run.folder for run in runs)):
        raise UserError(
            "--wandb: the runs do not name one project that they were logged to. Say --wandb ENTITY/PROJECT."
        )
    entity, project = _entity_and_project(path)
    logged = wandb_views.read_logged(runs)
    if options.wandb_report and len(logged.groups) != 1:
        groups = f"of {len(logged.groups)}: {', '.join(logged.groups)}" if logged.groups else "of none"
        raise UserError(f"--wandb-report: it takes the runs of one sweep (or W&B group), and these are {groups}.")
    sweep = logged.groups[0] if options.wandb_report else ""
    view = wandb_views.view(entity, project, logged)
    command = summary.rerun_command(runs[0].folder.parent) if sweep else None
    report = functools.partial(wandb_views.report, entity, project, sweep, logged, runs, command)
    if options.dry_run:
        models = {"view": view._to_model()} | ({"report": report(False)._to_model()} if sweep else {})
        texts = {name: model.model_dump_json(by_alias=True, exclude_none=True) for name, model in models.items()}
        echo(json.dumps({name: json.loads(text) for name, text in texts.items()}, indent=2))
        return []
    if missing := wandb_views.missing_runs(entity, project, logged):
        _report_missing(printable(path), missing, runs, is_empty=missing == len(set(logged.ids)))
    saved = [("view", *wandb_views.save_view(view))]
    if sweep:
        try:
            saved.append(("report", *wandb_views.save_report(report(True))))
        except ValueError as error:
            raise UserError(f"--wandb-report: {error}") from error
    return [f"{'updated' if is_old else 'made'} the {kind} {url}" for kind, url, is_old in saved]


def _entity_and_project(path: str) -> tuple[str, str]:
    words = path.split("/")
    if len(words) != 2 or not all(word.strip() for word in words):
        raise UserError(f"--wandb {path}: it takes ENTITY/PROJECT, such as me/vae_exp.")
    return words[0], words[1]


def _report_missing(project: str, missing: int, runs: list[Run], is_empty: bool) -> None:
    """Raise UserError if the project has none of the runs, as the view would be empty; print a note for some."""
    offline = [state.wandb.dir for run in runs if (state := read_summary(run.folder)) and state.wandb.dir]
    folders = [shlex.quote(folder) for folder in offline]
    if len(offline) > 3:
        folders = sorted({f"{shlex.quote(folder.rpartition('/')[0])}/*run-*" for folder in offline})
    sync = printable(" ".join(["wandb sync", *folders]))
    say(f"{project} does not have {missing} of these runs yet: {sync}", sys.stderr)  # a message would shorten it
    if is_empty:
        raise UserError(f"{project} has none of these runs, so its view would be empty. First sync them, as above.")


if __name__ == "__main__":
    main()
