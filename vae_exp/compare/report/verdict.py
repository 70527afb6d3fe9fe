"""The best setting in a sentence, and whether its lead is more than chance among seeds."""

import math

from vae_exp.compare import comparable
from vae_exp.compare.axes import swept
from vae_exp.compare.names import short
from vae_exp.compare.runs import Run, fold_seeds
from vae_exp.compare.terminal import cell

LONGEST_LABEL = 60
# Student's t at 97.5 %, by degrees of freedom from 1; of more than 10 the last one, which is a little strict.
T_975 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


def label(run: Run, keys: list[str]) -> str:
    """Return the label of a run in a figure: its values of the keys that differ, or its name."""
    settings = [f"{key.rsplit('.', 1)[-1]}={cell(run, key)}" for key in keys if run.value(key) is not None]
    return short(" ".join(settings), LONGEST_LABEL) or run.name


def verdict(runs: list[Run], metric: str) -> str:
    """Say which setting is best, by how much, and what the seeds say about it. The runs compare, and may be folded."""
    settings = runs if any(run.members for run in runs) else fold_seeds(runs)
    keys = swept(settings)
    best = comparable.best(settings, metric)
    if best is None:
        return f"No run that finished has a {metric}."
    has_seeds = any(run.seeds > 1 for run in settings)
    what = f"{label(best, keys)}: {metric} {cell(best, metric)}"
    if best.seeds > 1:
        what += f" over {best.seeds} seeds"
    second = comparable.best([run for run in settings if run is not best], metric)
    if second is None:
        alone = "the only run" if len(runs) == 1 else "the only setting that finished"
        return f"{what}, {alone}."
    what = f"Best setting {what}" if has_seeds else f"Best {what}"
    lead = second.metrics[metric] - best.metrics[metric]
    if lead < 0:  # only a setting of which some seeds failed can be lower than the best
        return f"{what}. {label(second, keys)} is lower by {_nats(-lead)}, but {second.state}."
    ahead = (
        f"ahead of the next ({label(second, keys)}) by {_nats(lead)}" if lead else f"level with {label(second, keys)}"
    )
    single = comparable.best(runs, metric)
    elsewhere = single is not None and single is not best and all(single is not member for member in best.members)
    of_one = f" The best single run, {single.name}, has another setting." if single and elsewhere else ""
    return f"{what}, {ahead}. {_chance(best, second, metric, lead)}{of_one}"


def _chance(best: Run, second: Run, metric: str, lead: float) -> str:
    """Say whether the lead is more than seeds differ by: a t-test of the two settings, with their pooled deviation."""
    if metric not in best.spread or metric not in second.spread:
        few = "One seed each" if best.seeds == second.seeds else "One of the two has a single seed"
        return f"{few}: how much of this is chance is not known."
    freedom = best.seeds + second.seeds - 2
    pooled = math.sqrt(sum((run.seeds - 1) * run.spread[metric] ** 2 for run in (best, second)) / freedom)
    needed = T_975[min(freedom, len(T_975)) - 1] * pooled * math.sqrt(1 / best.seeds + 1 / second.seeds)
    seeds = f"{best.seeds} seeds each" if best.seeds == second.seeds else f"{best.seeds} and {second.seeds} seeds"
    noise = f"The seeds' standard deviation is {_nats(pooled)} ({seeds})"
    if lead > needed:
        return f"{noise}: the lead is more than chance among these seeds."
    return f"{noise}: not settled, which would take a lead of {_nats(needed)} or more seeds."


def _nats(number: float) -> str:
    return f"{number:.2f}" if number >= 0.1 else f"{number:.2g}"
