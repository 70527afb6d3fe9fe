"""The map of a run for many settings as a picture: what each beta and z_dim costs, with other runs as points on it."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from vae_exp.comparing.places import Place


def draw(places: Sequence[Place], title: str, points: Sequence[Place] = ()) -> Figure:
    """The rate-distortion curve, reconstruction over KL with a line for each z_dim, and the neg_elbo of each setting.

    `points` are models that were trained for one setting each. The neg_elbo is a heat map where both beta and z_dim
    vary, else a curve.
    """
    betas = sorted({p["beta"] for p in places})
    z_dims = sorted({p["z_dim"] for p in places})
    figure, (curve, cost) = plt.subplots(1, 2, figsize=(11, 4.6), dpi=100, layout="constrained")
    colors = {z_dim: plt.get_cmap("viridis")(0.9 * i / max(len(z_dims) - 1, 1)) for i, z_dim in enumerate(z_dims)}
    for z_dim in z_dims:
        line = sorted((p for p in places if p["z_dim"] == z_dim), key=lambda p: p["kl"])
        rates, distortions = [p["kl"] for p in line], [p["reconstruction"] for p in line]
        curve.plot(rates, distortions, "o-", ms=3, color=colors[z_dim], label=f"z_dim {z_dim}")
    for p in [p for p in places if p["z_dim"] == z_dims[-1]] if len(betas) > 1 else []:
        curve.annotate(f"{p['beta']:g}", (p["kl"], p["reconstruction"]), (4, 4), textcoords="offset points", fontsize=8)
    for p in points:
        curve.plot(p["kl"], p["reconstruction"], "X", ms=8, color=colors.get(p["z_dim"], "grey"), mec="black")
    by_hand = ", X: trained for it alone" if points else ""
    curve.set(xlabel="KL, nats per image", ylabel="reconstruction, nats per image")
    curve.set_title(f"rate and distortion{', numbers: beta' if len(betas) > 1 else ''}{by_hand}", fontsize=10)
    curve.legend(fontsize=8)
    if len(betas) > 1 and len(z_dims) > 1:
        _heat_map(cost, places, betas, z_dims)
    else:
        _line(cost, places, "beta" if len(betas) > 1 else "z_dim", points)
    figure.suptitle(title, fontsize=10)
    return figure


def _heat_map(axes: plt.Axes, places: Sequence[Place], betas: list[float], z_dims: list[int]) -> None:
    cells = np.full((len(z_dims), len(betas)), np.nan)
    for p in places:
        cells[z_dims.index(p["z_dim"]), betas.index(p["beta"])] = p["neg_elbo"]
    drawn = axes.imshow(cells, cmap="viridis_r", aspect="auto", origin="lower", vmax=np.nanquantile(cells, 0.9))
    axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axes.set_yticks(range(len(z_dims)), [str(z_dim) for z_dim in z_dims])
    best = np.unravel_index(np.nanargmin(cells), cells.shape)
    for (row, column), value in np.ndenumerate(cells):
        if np.isfinite(value):
            strength = drawn.norm(value)
            ink = "white" if strength is not None and float(np.clip(strength, 0, 1)) > 0.5 else "black"
            weight = "bold" if (row, column) == best else "normal"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=8, weight=weight)
    axes.set(xlabel="beta", ylabel="z_dim")
    axes.set_title("neg_elbo, nats per image; bold: the lowest", fontsize=10)


def _line(axes: plt.Axes, places: Sequence[Place], name: str, points: Sequence[Place]) -> None:
    line = sorted((p["beta"] if name == "beta" else p["z_dim"], p["neg_elbo"]) for p in places)
    axes.plot([x for x, _ in line], [y for _, y in line], "o-", ms=4)
    for p in points:
        axes.plot(p["beta"] if name == "beta" else p["z_dim"], p["neg_elbo"], "X", ms=8, color="tab:red", mec="black")
    axes.set_xscale("log")
    axes.set_xticks([x for x, _ in line], [f"{x:g}" for x, _ in line], minor=False)
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set(xlabel=name, ylabel="neg_elbo, nats per image")
    axes.set_title("neg_elbo", fontsize=10)


def scores(rows: Sequence[dict], names: Sequence[str], title: str) -> Figure:
    """Scores of disentanglement over beta, a line for each z_dim."""
    figure, drawn = plt.subplots(
        1, len(names), figsize=(3.4 * len(names), 3.4), dpi=100, layout="constrained", squeeze=False
    )
    betas = sorted({row["beta"] for row in rows})
    for axes, name in zip(drawn[0], names, strict=True):
        for z_dim in sorted({row["z_dim"] for row in rows}):
            line = sorted((row["beta"], row[name]) for row in rows if row["z_dim"] == z_dim)
            axes.plot([beta for beta, _ in line], [score for _, score in line], "o-", ms=4, label=f"z_dim {z_dim}")
        axes.set(xlabel="beta", xscale="log", ylim=(0, None))
        axes.set_xticks(betas, [f"{beta:g}" for beta in betas], minor=False)
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.set_title(name, fontsize=10)
    drawn[0][0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
