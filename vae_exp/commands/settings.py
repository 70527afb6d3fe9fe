"""`vae-evaluate beta=... z_dim=...`: the ordinary models that one run for many settings holds, measured one by one."""

import contextlib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vae_exp.commands import evaluation_table, measuring, recording
from vae_exp.config.keys import EvaluateOptions
from vae_exp.errors import UserError
from vae_exp.run import evaluated
from vae_exp.run.places import named

if TYPE_CHECKING:
    import numpy as np

    from vae_exp.run.places import Place


def are_asked(options: EvaluateOptions) -> bool:
    return options["beta"] is not None or options["z_dim"] is not None


def evaluate(path: Path, options: EvaluateOptions) -> list[dict[str, Any]]:
    """Every setting's numbers: printed, drawn, written beside the checkpoint as NAME.SPLIT.settings.json, in W&B.

    That file keeps the settings that were measured of the same weights before. Raises UserError for a setting that
    the run was not trained for, before anything is measured.
    """
    from vae_exp import trained
    from vae_exp.config import devices
    from vae_exp.run import checkpoint

    device, split = devices.device(options["device"]), options["split"]
    whole = trained.TrainedVAE(checkpoint.load(path), device, options["trust"], path)
    asked = itertools.product(_values(options["z_dim"]), _values(options["beta"]))
    models = {}
    for z_dim, beta in asked:
        model = whole.at(beta, z_dim, options["dataset"]["root"])
        models[named(model.config["model"])] = model  # once, whether its setting was typed or is the run's own
    rows = {}
    for number, (setting, model) in enumerate(models.items(), 1):
        of_model, (result, _) = model.config["model"], measuring.measure(model, options)
        rows[setting] = {"beta": of_model["beta"], "z_dim": of_model["z_dim"], **result}
        if wrong := evaluated.not_finite(result):
            raise UserError(f"{path}: {', '.join(wrong)}; the model's weights or its data are not sound.")
        if len(models) > 1:
            with contextlib.suppress(OSError):  # a reader that has gone must not cost what is measured
                print(f"{number}/{len(models)}  {setting}  neg_elbo {result['neg_elbo']:.3f}", flush=True)
    before = evaluated.read_settings(recording.file_of(path, split, settings=True), whole.weights)
    every = sorted({**before, **rows}.values(), key=lambda row: (row["z_dim"], row["beta"]))
    written = {"checkpoint": str(path), "weights": whole.weights, "split": split, "rows": every}
    pictures = _drawn([*rows.values()], f"{whole.name}: {split} images") if len(rows) > 1 else {}
    lines = recording.write(path, split, whole.weights, written, pictures)
    lines += recording.in_wandb(path, whole.weights, options["wandb"]["mode"], whole.config)
    print()
    if len(rows) == 1:
        ((setting, row),) = rows.items()
        print(setting)
        evaluation_table.show(row, models[setting])
    else:
        evaluation_table.show_settings(whole.name, [*rows.values()])
    print("", *lines, "", sep="\n")
    return [*rows.values()]


def _values(asked: Any) -> list[Any]:
    """None is the run's own."""
    return list(dict.fromkeys(asked)) if isinstance(asked, list) else [asked]


def _drawn(rows: list[dict[str, Any]], title: str) -> "dict[str, np.ndarray]":
    """The rate-distortion curve, and scores of disentanglement over beta where there are any, [H, W, 3] each."""
    from vae_exp.comparing import rate_distortion
    from vae_exp.figures import sheets

    places = [cast("Place", row) for row in rows]
    found = {"settings": sheets.pixels(rate_distortion.draw(places, title))}
    # A score may be no number at some settings, as infoc is none where one latent is active.
    if names := [name for name in evaluated.scores(rows[0]) if all(name in evaluated.scores(row) for row in rows)]:
        means = [row | {name: score["mean"] for name, score in evaluated.scores(row).items()} for row in rows]
        found["settings_scores"] = sheets.pixels(rate_distortion.scores(means, names, title))
    return found
