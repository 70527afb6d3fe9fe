"""A saved view of a W&B project: the runs grouped by sweep and setting, and panels of what they logged."""

import hashlib

import wandb_workspaces.workspaces as ws

from vae_exp.tracking import wandb_panels as panels
from vae_exp.tracking.wandb_afterwards import SWEEP_SUMMARY
from vae_exp.tracking.wandb_logged import Logged

NAME = "vae_exp"
COLUMNS = ("model.z_dim", "model.beta", "optimizer.lr", "seed")
RESULTS = ("best/val_neg_elbo", "test/neg_elbo")
STATE = "state"  # ours, which also knows pruned and interrupted; W&B's own is run:state
MOST_RUNS = 30  # lines in a plot; W&B's own default is 10
SECTIONS = {  # and how many panels stand side by side
    "ELBO and its terms": (panels.terms, 3),
    "What was swept": (panels.parallel, 1),
    "Disentanglement": (panels.trade_off, 2),
    "Pictures": (panels.pictures, 3),
    "KL of each latent": (panels.latents, 2),
    "Scores": (panels.scores, 3),
    "Time": (panels.times, 2),
}


def view(entity: str, project: str, logged: Logged) -> ws.Workspace:
    """Return the view, not saved yet. Its id follows from the project, so that a later call finds it again."""
    sections = [
        ws.Section(name=name, panels=drawn, is_open=True, layout_settings=ws.SectionLayoutSettings(columns=width))
        for name, (draw, width) in SECTIONS.items()
        if (drawn := draw(logged))
    ]
    made = ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=MOST_RUNS),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("JobType") != SWEEP_SUMMARY],  # its table and figures are no run's
            # By group only where there are any: a run alone is one with its evaluations, and its seeds are others.
            groupby=[*([ws.Metric("Group")] if logged.groups else []), *map(ws.Config, logged.keys)],
            order=[ws.Ordering(ws.Summary(logged.metric), ascending=True)],  # the lowest, so the best, first
            pinned_columns=columns(logged),
        ),
    )
    made._internal_name = f"nw-{view_id(entity, project)}-v"
    return made


def view_id(entity: str, project: str) -> str:
    """Return the part after ?nw= in the view's address: eleven letters and digits, as W&B's own."""
    return hashlib.sha256(f"{NAME} {entity}/{project}".encode()).hexdigest()[:11]


def columns(logged: Logged) -> list[str]:
    """Return the columns of the table of runs, by W&B's names: usual changes, what was swept, results, state."""
    keys = [key for key in dict.fromkeys([*COLUMNS, *logged.columns]) if key in logged.config]
    results = [f"summary:{name}" for name in RESULTS if name in logged.summary]
    return ["run:displayName", *map(_config_column, keys), *results, f"summary:{STATE}"]


def _config_column(key: str) -> str:
    """Return a column such as config:model.value.z_dim: W&B keeps each top-level key as {"value": ...}."""
    first, _, rest = key.partition(".")
    return f"config:{first}.value" + (f".{rest}" if rest else "")
