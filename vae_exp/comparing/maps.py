"""The map that a run for many settings left, with the runs that were trained for one of them as points on it."""

from matplotlib.figure import Figure

from vae_exp.comparing import comparable, rate_distortion
from vae_exp.comparing.runs import Run
from vae_exp.errors import UserError
from vae_exp.run import places
from vae_exp.run.folder import MAP
from vae_exp.run.places import Place

MEASURED = ("test/neg_elbo", "test/reconstruction", "test/kl")


def draw(runs: list[Run]) -> Figure:
    """The best run's map of the test images, and the other runs that compare with it.

    Raises UserError where no run has a map, or only damaged ones.
    """
    having = [run for run in runs if (run.folder / MAP).is_file()]
    whole = comparable.best(having, comparable.metric_of(having)) or (having[0] if having else None)
    if whole is None:
        raise UserError("--map: none of these runs has a map; a run with amortize.beta or amortize.z_dim leaves one.")
    (group,) = [group for group in comparable.groups(runs) if whole in group]
    points = [_point(run) for run in group if run not in having and set(MEASURED) <= set(run.metrics)]
    return rate_distortion.draw(places.read(whole.folder / MAP), f"{whole.name}: test images", points)


def _point(run: Run) -> Place:
    neg_elbo, reconstruction, kl = (run.metrics[name] for name in MEASURED)
    beta, z_dim = run.value("model.beta"), run.value("model.z_dim")
    return Place(beta=beta, z_dim=z_dim, neg_elbo=neg_elbo, reconstruction=reconstruction, kl=kl, active_units=0)
