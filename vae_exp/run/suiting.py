"""Whether the data suit what is asked of them: known only when they are read, and told before a run is opened."""

import torch

from vae_exp.config.keys import Config
from vae_exp.datasets import Data, Split
from vae_exp.errors import UserError
from vae_exp.scores.codes import Known


def check(config: Config, data: Data, held_out: Split) -> None:
    """Raises UserError for a conditional model of data that turn out to have no labels, and for scores of data without
    known factors, or with too few images for them.
    """
    if config["scores"]:
        typed = f"scores=[{','.join(config['scores'])}]"
        if held_out.factors is None:
            raise UserError(f"{typed}: dataset={data.name} has no known factors; sprites has, and dsprites, shapes3d.")
        try:
            Known.of(torch.zeros(len(held_out), 1), held_out.factors.varying().table, fewest=2)
        except UserError as error:
            raise UserError(f"{typed}: the {len(held_out):,} held-out images do not suit them. {error}") from error
    if config["model"]["conditional"] and not data.n_classes:
        raise UserError(
            f"model.conditional=true: dataset={data.name} has no labels here. An image folder has them where every "
            "image lies in a folder of its class, CelebA with dataset.attribute=Smiling. Or use model=vanilla."
        )
