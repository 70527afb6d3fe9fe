"""`vae-evaluate beta=... z_dim=...`: the ordinary models that one run for many settings holds, measured one by one."""

import itertools
from pathlib import Path
from typing import Any

from vae_exp.commands import drawn_files, evaluation_table, measuring
from vae_exp.comparing.places import named
from vae_exp.config.keys import EvaluateOptions
from vae_exp.errors import UserError, printable
from vae_exp.run import evaluated
from vae_exp.run.earlier import GENERATED
from vae_exp.run.writing import write_json


def are_asked(options: EvaluateOptions) -> bool:
    return options["beta"] is not None or options["z_dim"] is not None


def evaluate(path: Path, options: EvaluateOptions) -> list[dict[str, Any]]:
    """Every setting's numbers: printed, drawn, written beside the checkpoint as NAME.SPLIT.settings.json, in W&B.

    Raises UserError for a setting that the run was not trained for, before anything is measured.
    """
    from vae_exp import trained
    from vae_exp.config import build
    from vae_exp.run import checkpoint
    from vae_exp.tracking import wandb_afterwards

    device, split = build.device(options["device"]), options["split"]
    whole = trained.TrainedVAE(checkpoint.load(path), device, options["trust"], path)
    asked = list(itertools.product(_values(options["z_dim"]), _values(options["beta"])))
    models = [whole.at(beta, z_dim, options["dataset"]["root"]) for z_dim, beta in asked]
    rows = []
    for number, model in enumerate(models, 1):
        of_model, (result, _) = model.config["model"], measuring.measure(model, options)
        rows.append({"beta": of_model["beta"], "z_dim": of_model["z_dim"], **result})
        if wrong := evaluated.not_finite(result):
            raise UserError(f"{path}: {', '.join(wrong)}; the model's weights or its data are not sound.")
        if len(models) > 1:
            print(f"{number}/{len(models)}  {named(rows[-1])}  neg_elbo {result['neg_elbo']:.3f}", flush=True)
    print()
    if len(rows) == 1:
        print(named(rows[0]))
        evaluation_table.show(rows[0], models[0])
    else:
        evaluation_table.show_settings(whole.name, rows)
    written = path.with_name(f"{path.stem}.{split}.settings.json")
    write_json(written, {"checkpoint": str(path), "split": split, "rows": rows})
    print(f"\nwritten   {printable(written)}")
    pictures = _draw(path, split, rows, f"{whole.name}: {split} images") if len(rows) > 1 else {}
    numbers = {f"evaluate/{split}/{named(row)}/{n}": v for row in rows for n, v in evaluated.numbers(row).items()}
    where = wandb_afterwards.record_evaluation(options["wandb"]["mode"], path.parent, whole.config, numbers, pictures)
    print(f"W&B       {where}\n" if where else "")
    return rows


def _values(asked: Any) -> list[Any]:
    """None is the run's own."""
    return asked if isinstance(asked, list) else [asked]


def _draw(path: Path, split: str, rows: list[dict[str, Any]], title: str) -> dict[str, Path]:
    """The rate-distortion curve, and scores of disentanglement over beta where there are any, by their W&B names."""
    import matplotlib.pyplot as plt

    from vae_exp.comparing import rate_distortion

    figures = {"settings": rate_distortion.draw(rows, title)}  # type: ignore[arg-type]
    if names := list(evaluated.scores(rows[0])):
        means = [row | {name: score["mean"] for name, score in evaluated.scores(row).items()} for row in rows]
        figures["settings_scores"] = rate_distortion.scores(means, names, title)
    found = {}
    for name, figure in figures.items():
        target = path.with_name(GENERATED) / f"{path.stem}_{split}_{name}.png"
        target.parent.mkdir(exist_ok=True)
        with drawn_files.whole(target) as partial:
            figure.savefig(partial, format="png")
        plt.close(figure)
        print(f"picture   {printable(target)}")
        found[f"evaluate/{name}"] = target
    return found
