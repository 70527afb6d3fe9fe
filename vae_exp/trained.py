"""A trained model as its users want it: images and labels in whatever form they have, no gradients."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_exp import build, checkpoint
from vae_exp.config import UserError
from vae_exp.datasets import Data, Split
from vae_exp.distributions import DiagonalGaussian
from vae_exp.metrics import importance_bound

Labels = int | str | Sequence[int] | Tensor | None  # a class for all images, or a number for each


def load(path: str | Path, device: str = "auto", trust: bool = False) -> "TrainedVAE":
    """The model of a checkpoint file or of a run folder; see vae_exp.load."""
    (path,) = checkpoint.find(str(path), only_one=True)
    return TrainedVAE(checkpoint.load(path), build.device(device), trust)


class TrainedVAE:
    """p(x|z), q(z|x) and the prior of a checkpoint. Images are [N, C, H, W], uint8 or floats in [0, 1].

    A conditional model takes one label for all images, the name of a class or its number, or a list or tensor with
    the number of each image's. `model` is the VAE itself, a torch
    module; `config`, `epoch` and `kl_per_dim` say how it was trained.
    """

    def __init__(self, state: dict[str, Any], device: torch.device, trust: bool = False) -> None:
        self.model = build.model_from(state, trust).to(device).eval().requires_grad_(False)
        self.device = device
        self.config: dict[str, Any] = state["config"]
        self.x_shape: tuple[int, int, int] = tuple(state["x_shape"])
        self.epoch: int = state["epoch"]
        self.class_names: list[str] = state["class_names"]
        self.kl_per_dim: list[float] = state["kl_per_dim"]  # of the held-out images, nats
        self.state, self.trust = state, trust

    @property
    def name(self) -> str:
        kind = " VAE" if self.model.stochastic else ""
        return f"{self.config['model']['name']}{kind} on {self.config['dataset']['name']}, epoch {self.epoch}"

    @torch.no_grad()
    def sample(self, n: int, label: Labels = None, temperature: float = 1.0, seed: int | None = None) -> Tensor:
        """The mean of p(x|z) at n draws of z from the prior, [n, C, H, W] in [0, 1].

        A temperature below 1 draws nearer to the prior's mean: tidier, less varied images. Without a label a
        conditional model takes every class in turn. With a seed the images are the same each time.
        """
        if label is None and self.model.n_classes:
            label = torch.arange(n) % self.model.n_classes
        noise = torch.Generator()
        noise.seed() if seed is None else noise.manual_seed(seed)
        z = temperature * torch.randn(n, self.model.z_dim, generator=noise).to(self.device)
        return self.decode(z, label)

    @torch.no_grad()
    def encode(self, x: Tensor | np.ndarray, label: Labels = None) -> DiagonalGaussian:
        """q(z|x): `.mean` and `.log_var` are [N, Z], and `.rsample()` draws from it."""
        x = self.images(x)
        return self.model.encode(x, self.labels(label, len(x)))

    @torch.no_grad()
    def decode(self, z: Tensor, label: Labels = None) -> Tensor:
        """The mean of p(x|z) for codes z [N, Z], [N, C, H, W] in [0, 1]."""
        return self.model.decode(z.to(self.device), self.labels(label, len(z))).mean

    def reconstruct(self, x: Tensor | np.ndarray, label: Labels = None) -> Tensor:
        """The images again, from the mean of their q(z|x), [N, C, H, W] in [0, 1]."""
        return self.decode(self.encode(x, label).mean, label)

    def log_prob_bound(self, x: Tensor | np.ndarray, label: Labels = None, k: int = 100, seed: int = 0) -> Tensor:
        """A lower bound on log p(x) of each image from k importance samples, [N] nats (Burda et al. 2016)."""
        pixels = self.images(x)
        split = Split(pixels.mul(255).round().to(torch.uint8), self.labels(label, len(pixels)))
        return importance_bound(self.model, split, k, torch.Generator().manual_seed(seed))

    def read_data(self, root: str | None = None) -> Data:
        """The dataset it was trained on, split as then; root says where it lies now. Raises UserError."""
        if root is not None and "root" in self.config["dataset"]:
            self.config["dataset"]["root"] = root
        data = build.dataset_from(self.state, self.trust)
        if data.x_shape != self.x_shape:
            raise UserError(f"dataset: its images are {data.x_shape}, and the model was trained on {self.x_shape}.")
        return data

    def export(self, path: str | Path) -> None:
        """Write the weights as safetensors, with all that vae_exp.load needs to rebuild the model from them."""
        checkpoint.export(Path(path), self.state)

    def images(self, x: Tensor | np.ndarray) -> Tensor:
        """[N, C, H, W] floats in [0, 1] on the model's device. Raises UserError for another shape or range."""
        x = torch.as_tensor(x).to(self.device)
        x = x[None] if x.shape == self.x_shape else x
        if tuple(x.shape[1:]) != self.x_shape:
            raise UserError(f"images of shape {list(x.shape)}: this model takes [N, {str(list(self.x_shape))[1:]}.")
        if x.dtype == torch.uint8:
            return x.float() / 255
        if len(x) and not (x.min() >= 0 and x.max() <= 1):
            raise UserError(f"images from {x.min():g} to {x.max():g}: give uint8 images, or floats from 0 to 1.")
        return x.float()

    def labels(self, label: Labels, n: int) -> Tensor:
        """[n] labels on the model's device. Raises UserError where a conditional model is given none, or wrong ones."""
        n_classes = self.model.n_classes
        if not n_classes:
            return torch.zeros(n, dtype=torch.long, device=self.device)
        if label is None:
            raise UserError(f"label: this model is conditional; give one of {', '.join(self.class_names)}.")
        if isinstance(label, int | str):
            label = self.number(label)
        y = torch.as_tensor(label, device=self.device).long().expand(n)
        if n and not (y.min() >= 0 and y.max() < n_classes):
            raise UserError(
                f"label: numbers from {y.min()} to {y.max()}; this model's classes are 0 to {n_classes - 1}."
            )
        return y

    def number(self, label: int | str) -> int:
        """The number of a class, given by its name or its number; a class named 7 is meant before the seventh."""
        names = [*self.class_names, *map(str, range(len(self.class_names)))]
        if str(label) not in names:
            raise UserError(f"label={label}: this model knows {', '.join(self.class_names)}.")
        return names.index(str(label)) % len(self.class_names)
