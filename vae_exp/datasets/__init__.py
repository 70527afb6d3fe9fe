"""Datasets: each is a function that returns a `Source`, and `prepare` makes `Data` of it."""

from vae_exp.datasets.arrays import arrays
from vae_exp.datasets.conditions import Conditions
from vae_exp.datasets.digits import digits
from vae_exp.datasets.factor_files import dsprites, mpi3d, shapes3d
from vae_exp.datasets.factors import Factors
from vae_exp.datasets.image_folder import image_folder
from vae_exp.datasets.prepare import Data, prepare
from vae_exp.datasets.splits import Source, Split, batches
from vae_exp.datasets.sprites import sprites
from vae_exp.datasets.torchvision import celeba, torchvision_images

__all__ = [
    "Conditions",
    "Data",
    "Factors",
    "Source",
    "Split",
    "arrays",
    "batches",
    "celeba",
    "digits",
    "dsprites",
    "image_folder",
    "mpi3d",
    "prepare",
    "shapes3d",
    "sprites",
    "torchvision_images",
]
