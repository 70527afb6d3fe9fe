"""The study of a sweep: Optuna's journal in its folder, where jobs report epoch by epoch and are told to end early."""

import importlib.util
import statistics
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae_exp.config.schema import SweepKeys, result_of
from vae_exp.errors import UserError, first_line
from vae_exp.files import write, writing

if TYPE_CHECKING:
    import optuna

JOURNAL = "journal.log"
JOB = "job"  # an attribute of a trial: the folder of its run
MIN_VERSION = 4  # Optuna's version: earlier journals have another format


def require_optuna(setting: str) -> None:
    """Raise UserError if Optuna, which a setting needs, is not installed or too old."""
    advice = "It comes with: pip install 'vae_exp[optuna]'"
    if importlib.util.find_spec("optuna") is None:
        raise UserError(f"{setting}: Optuna is not installed. {advice}")
    version = metadata.version("optuna")
    if int(version.split(".")[0]) < MIN_VERSION:
        raise UserError(f"{setting}: Optuna is {version}, and {MIN_VERSION}.9 or newer is needed. {advice}")


def start(folder: Path, name: str, sign: int) -> None:
    """Begin a study in the folder of a sweep, or find the existing one, and repair what a kill left of it.

    With sign -1 it looks for the highest value.
    """
    import optuna

    journal = folder / JOURNAL
    with writing(journal):
        if journal.is_file():
            content = journal.read_bytes()
            write(journal, content[: content.rfind(b"\n") + 1])  # a line that was cut off would spoil the next one
        (folder / f"{JOURNAL}.lock").unlink(missing_ok=True)  # nobody holds it: no job is at work
        direction: Any = "minimize" if sign > 0 else "maximize"
        try:
            optuna.create_study(study_name=name, storage=_storage(folder), direction=direction, load_if_exists=True)
        except OSError:
            raise
        except Exception as error:  # of a damaged journal nearly any: json's, KeyError, Optuna's own
            advice = "Take it away, and the sweep goes on without what its jobs have reported there"
            raise UserError(f"{journal}: damaged ({type(error).__name__}: {first_line(error)}). {advice}.") from error


def load(folder: Path) -> "optuna.Study":
    import optuna

    storage = _storage(folder)
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def _storage(folder: Path) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.storages.JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


class Judge:
    """Judge a job after each epoch, and record at its end how it went.

    A trial of a search has the job's number; a grid's jobs, seeds too, have a trial each, which is found by its folder.
    """

    def __init__(self, keys: SweepKeys, swept: list[str], epochs: int, run_dir: Path, number: int | None) -> None:
        import optuna

        self.keys, self.metric, self.epochs = keys, str(keys["metric"]), epochs
        study = load(run_dir.parent)
        if number is None:
            theirs = (t.number for t in study.get_trials(deepcopy=False) if t.user_attrs.get(JOB) == run_dir.name)
            number = next((n for n in theirs if study.trials[n].state.name != "FAIL"), None)  # which is tried anew
        if number is None:
            trial = study.ask()
            for name, value in {JOB: run_dir.name, **dict(word.split("=", 1) for word in swept)}.items():
                trial.set_user_attr(name, value)
            number = trial.number
        study.pruner = _pruner(keys, epochs) if keys["prune"] else optuna.pruners.NopPruner()
        stored = study.get_trials(deepcopy=False)[number]
        self.study, self.number, self.is_finished = study, number, stored.state.is_finished()
        self.reported = set(stored.intermediate_values)  # before the job was interrupted
        self.trial = optuna.Trial(study, stored._trial_id)
        if not self.is_finished:
            self.trial.set_user_attr("folder", str(run_dir))

    def __call__(self, epoch: int, scores: dict[str, float]) -> str | None:
        """Return the reason to end after this epoch, or None. Raises UserError if scores have no such metric."""
        if self.metric not in scores:  # the plan looks at each option of a group, not at every combination of them
            raise UserError(f"sweep.metric={self.metric}: this job has no such number to be judged by.")
        if not self.keys["prune"] or self.is_finished:
            return None
        value = scores[self.metric]
        if epoch not in self.reported:
            self.trial.report(value, epoch)
        if epoch >= self.epochs or not self.trial.should_prune():
            return None
        return f"sweep.prune={self.keys['prune']}: {self.metric} {value:.3f} after epoch {epoch}"

    def record(self, summary: dict[str, Any] | None) -> None:
        """Record in the study how the job ended: its summary, or None if it failed. An earlier result stays."""
        if self.is_finished:
            return
        from optuna.trial import TrialState

        for name, text in ({} if summary is None else summary["wandb"]).items():
            if name in ("id", "url") and text:  # which optuna-dashboard shows, the address as a link
                self.trial.set_user_attr(f"wandb_{name}", text)
        value = None if summary is None else summary.get(result_of(self.metric))
        if summary is not None and summary["state"] == "pruned":
            self.study.tell(self.number, state=TrialState.PRUNED)
        else:
            self.study.tell(self.number, value, None if value is not None else TrialState.FAIL)


class Trend:
    """End a job if one that is ahead of it has a value that it will not reach (as Domhan et al. 2015, more simply).

    The later half of its values is extended by a line in 1/sqrt(epoch). This promises too much early, which spares jobs
    that start slowly, and is about right from a third of the epochs on, but for curves that lie still before they fall.
    """

    def __init__(self, after: int, epochs: int) -> None:
        self.after, self.epochs = max(after, 2), epochs  # a line needs two points

    def prune(self, study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> bool:
        sign = 1 if study.direction.name == "MINIMIZE" else -1
        values = {epoch: sign * value for epoch, value in sorted(trial.intermediate_values.items())}
        if len(values) < 2 or (now := max(values)) < self.after:
            return False
        late = [*values][-max(2, (len(values) + 1) // 2) :]
        slope, limit = statistics.linear_regression([epoch**-0.5 for epoch in late], [values[epoch] for epoch in late])
        reached = min(limit + slope * self.epochs**-0.5, *values.values())
        others = (t.intermediate_values for t in study.get_trials(deepcopy=False) if t.state.name != "FAIL")
        ahead = [other.values() for other in others if now in other and sign * other[now] < values[now]]
        return any(min(sign * value for value in other) < reached for other in ahead)


def _pruner(keys: SweepKeys, epochs: int) -> Any:
    """Return Optuna's pruner, with the names that its authors gave (Li et al. 2018 and 2020; Golovin et al. 2017)."""
    from optuna import pruners

    after, factor = keys["prune_after"], keys["prune_factor"]
    if keys["prune"] == "trend":
        return Trend(after, epochs)
    if keys["prune"] == "median":
        return pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=after - 1)
    if keys["prune"] == "hyperband":
        return pruners.HyperbandPruner(min_resource=after, max_resource=epochs, reduction_factor=factor)
    return pruners.SuccessiveHalvingPruner(min_resource=after, reduction_factor=factor)
