"""Figures of a sweep, by what matplotlib is given to draw."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from vae_exp.compare import plots
from vae_exp.compare.runs import Run

METRIC = "val/neg_elbo"


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw a sweep and return its figures by name."""

    def drawn(runs, keys, searched=None, folded=None):
        monkeypatch.setattr(plt, "close", lambda figure: None)
        figures = {}
        save = plt.Figure.savefig
        monkeypatch.setattr(
            plt.Figure,
            "savefig",
            lambda figure, file, **how: (figures.update({Path(file.name).name: figure}), save(figure, file, **how)),
        )
        plots.draw(folded or runs, runs, keys, METRIC, tmp_path, searched or {})
        return list(figures.values())

    yield drawn
    monkeypatch.undo()
    plt.close("all")


def run(folder, metrics=None, seeds=1, epochs=3, **config):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"epoch": epoch, METRIC: 100 - epoch}) for epoch in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("\n".join(rows))
    config = {key.replace("__", "."): value for key, value in config.items()}
    return Run(
        folder, config, "finished", None, {METRIC: 100.0, "test/reconstruction": 80.0} | (metrics or {}), seeds=seeds
    )


def test_best_is_dark_in_a_heat_map_as_on_the_page(draw, tmp_path):
    values = {(z, lr): 100.0 + 10 * i for i, (z, lr) in enumerate((z, lr) for z in (2, 4) for lr in (1e-3, 1e-2))}
    runs = [run(tmp_path / f"{z}_{lr}", {METRIC: v}, model__z_dim=z, optimizer__lr=lr) for (z, lr), v in values.items()]
    figure = draw(runs, ["model.z_dim", "optimizer.lr"])[0]
    (mesh,) = figure.axes[0].collections
    brightness = mesh.to_rgba([100.0, 130.0])[:, :3].sum(1)
    assert brightness[0] < brightness[1]
    np.testing.assert_allclose(mesh.to_rgba([100.0])[0, :3], np.array([0x44, 0x01, 0x54]) / 255, atol=0.01)
    assert {text.get_color() for text in figure.axes[0].texts if text.get_text().startswith("100")} == {"white"}


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["log", "linear"])
def test_a_search_is_drawn_on_the_scale_of_its_range(draw, tmp_path, scale):
    """Whatever the drawn values look like: these grow by one ratio."""
    points = [(10, 1e-3), (11, 1.5e-3), (12, 2.25e-3), (13, 3e-3)]
    runs = [
        run(tmp_path / str(i), {METRIC: 100.0 + i}, model__z_dim=z, optimizer__lr=lr)
        for i, (z, lr) in enumerate(points)
    ]
    (figure,) = draw(runs, ["optimizer.lr", "model.z_dim"], {"optimizer.lr": scale == "log", "model.z_dim": False})
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == (scale, "linear")
    assert all(tick == round(tick) for tick in axes.get_yticks())
    words = [label.get_text() for label in axes.get_xticklabels()]
    assert {"0.001", "0.002"} <= set(words) if scale == "log" else len(words) < 8
    (alone,) = draw(runs, ["optimizer.lr"], {"optimizer.lr": scale == "log"})
    assert alone.axes[0].get_xscale() == scale


@pytest.mark.parametrize("seeds", [1, 2])
def test_epochs_are_whole_and_a_band_is_named_where_there_is_one(draw, tmp_path, seeds):
    runs = [run(tmp_path / f"{z}_{s}", model__z_dim=z, seed=s) for z in (2, 4) for s in range(seeds)]
    folded = [run(tmp_path / f"{z}_0", seeds=seeds, model__z_dim=z) for z in (2, 4)]
    (figure,) = draw(runs, ["model.z_dim"], folded=folded)
    over_key, over_epochs = figure.axes
    assert all(tick == round(tick) for tick in over_epochs.get_xticks())
    titles = [over_key.get_title(), over_epochs.get_title()]
    assert ["band" in title for title in titles] == [seeds > 1] * 2
    assert seeds == 1 or all(title.endswith("2 seeds") for title in titles)
    assert bool(over_epochs.collections) == bool(over_key.collections) == (seeds > 1)


@pytest.mark.slow
def test_many_settings_are_named_beside_a_trade_off(draw, tmp_path):
    runs = [
        run(
            tmp_path / str(i),
            {"test/mig": 0.1 + i / 1e4, "test/dci": 0.3},
            model__name=f"${i}",
            likelihood__name="bernoulli",
        )
        for i in range(24)
    ]
    (figure,) = draw(runs, ["model.name", "likelihood.name"])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [f"${i} bernoulli" for i in range(24)]
    assert not any(axes.texts for axes in figure.axes), "nothing covers another"
    box = legend.get_window_extent()
    assert all(axes.get_window_extent().x1 < box.x0 for axes in figure.axes)
