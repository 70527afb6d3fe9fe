"""The map of a run for many settings as a picture: what each beta and z_dim costs, with other runs as points on it."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from vae_exp.run.places import Place


def draw(places: Sequence[Place], title: str, points: Sequence[Place] = ()) -> Figure:
    """The rate-distortion curve, reconstruction over KL with a line for each z_dim, and the neg_elbo of each setting.

    `points` are models that were trained for one setting each. The neg_elbo is a heat map where both beta and z_dim
    vary, else a curve.
    """
    betas, z_dims = sorted({p["beta"] for p in places}), sorted({p["z_dim"] for p in places})
    figure, (curve, cost) = plt.subplots(1, 2, figsize=(11, 4.6), dpi=100, layout="constrained")
    _curves(curve, places, z_dims, points)
    if len(betas) > 1 and len(z_dims) > 1:
        _heat_map(cost, places, betas, z_dims, points)
    else:
        _line(cost, places, "beta" if len(betas) > 1 else "z_dim", points)
    figure.suptitle(title, fontsize=10)
    return figure


def _curves(axes: plt.Axes, places: Sequence[Place], z_dims: list[int], points: Sequence[Place]) -> None:
    """Each z_dim's curve in the order of beta, which stands beside its dots; an X is a model of its own."""
    drawn = sorted({*z_dims, *(p["z_dim"] for p in points)})
    colors = {z_dim: plt.get_cmap("viridis")(0.9 * i / max(len(drawn) - 1, 1)) for i, z_dim in enumerate(drawn)}
    has_betas = len({p["beta"] for p in places}) > 1
    for z_dim in z_dims:
        line = sorted((p for p in places if p["z_dim"] == z_dim), key=lambda p: p["beta"])
        rates, distortions = [p["kl"] for p in line], [p["reconstruction"] for p in line]
        axes.plot(rates, distortions, "o-", ms=3, color=colors[z_dim], label=f"z_dim {z_dim}")
        if has_betas and z_dim in (z_dims[0], z_dims[-1]):
            _with_betas(axes, line, (4, 4))
    for z_dim in dict.fromkeys(p["z_dim"] for p in points):
        own = [p for p in points if p["z_dim"] == z_dim]
        at = [p["kl"] for p in own], [p["reconstruction"] for p in own]
        name = None if z_dim in z_dims else f"z_dim {z_dim}, not in the map"
        axes.plot(*at, "X", ms=8, color=colors[z_dim], mec="black", label=name)
        _with_betas(axes, own, (-4, -11))
    axes.set(xlabel="KL, nats per image", ylabel="reconstruction, nats per image")
    axes.margins(0.09)
    says = [", numbers: beta"] * has_betas + [", X: trained for it alone"] * bool(points)
    axes.set_title(f"rate and distortion{''.join(says)}", fontsize=10)
    axes.legend(fontsize=8)


def _with_betas(axes: plt.Axes, places: Sequence[Place], away: tuple[int, int]) -> None:
    for p in places:
        at = p["kl"], p["reconstruction"]
        axes.annotate(f"{p['beta']:g}", at, away, textcoords="offset points", fontsize=8, color="0.25")


def _heat_map(
    axes: plt.Axes, places: Sequence[Place], betas: list[float], z_dims: list[int], points: Sequence[Place]
) -> None:
    """The map's numbers, and in brackets those of models that were trained for that setting alone."""
    cells = np.full((len(z_dims), len(betas)), np.nan)
    for p in places:
        cells[z_dims.index(p["z_dim"]), betas.index(p["beta"])] = p["neg_elbo"]
    alone = {(p["z_dim"], p["beta"]): p["neg_elbo"] for p in points}
    drawn = axes.imshow(cells, cmap="viridis_r", aspect="auto", origin="lower", vmax=np.nanquantile(cells, 0.9))
    axes.set_xticks(range(len(betas)), [f"{beta:g}" for beta in betas])
    axes.set_yticks(range(len(z_dims)), [str(z_dim) for z_dim in z_dims])
    best = np.unravel_index(np.nanargmin(cells), cells.shape)
    digits = 1 if np.nanmax(cells) - np.nanmin(cells) > 5 else 2
    for (row, column), value in np.ndenumerate(cells):
        if np.isfinite(value):
            strength = drawn.norm(value)
            ink = "white" if strength is not None and float(np.clip(strength, 0, 1)) > 0.5 else "black"
            weight = "bold" if (row, column) == best else "normal"
            own = alone.get((z_dims[row], betas[column]))
            text = f"{value:.{digits}f}" + ("" if own is None else f"\n({own:.{digits}f})")
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8, weight=weight)
    axes.set(xlabel="beta", ylabel="z_dim")
    axes.set_title(f"neg_elbo; bold: the lowest{', (trained for it alone)' if alone else ''}", fontsize=10)


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
        axes.set(xlabel="beta", xscale="log")
        axes.set_ylim(0, 1.1 * max(row[name] for row in rows) or 1)
        axes.set_xticks(betas, [f"{beta:g}" for beta in betas], minor=False)
        axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        axes.set_title(name, fontsize=10)
    drawn[0][0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure
