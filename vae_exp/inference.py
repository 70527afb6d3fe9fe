"""Load trained models and use them from Python: `vae_exp.load` and what it returns."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae_exp.config import build, targets
from vae_exp.config.checks import as_typed, data_name, given_name
from vae_exp.config.migrations import GONE
from vae_exp.config.schema import CodedSplit, Count, DataSplit, Sampler, Seed, Temperature, checked
from vae_exp.config.targets import Trust
from vae_exp.datasets import Data, Split
from vae_exp.datasets.conditions import spread
from vae_exp.errors import UserError, composed, first_line, printable
from vae_exp.evaluation import codes, export, metrics, samplers
from vae_exp.files import write
from vae_exp.priors import ByLabel
from vae_exp.training import checkpoints, restore
from vae_exp.training.checkpoints import Checkpoint, find
from vae_exp.training.precision import float32
from vae_exp.vae import VAE

__all__ = ["TrainedVAE", "find", "load", "rebuild"]
CHUNK = 1000  # images sampled at a time, always whole: the first images are the same for every n
# A class, or the values of several conditions, for all images, or the number of a class for each.
Labels = int | float | str | Sequence[Any] | Mapping[str, Any] | Tensor | None
Draw = Callable[[Tensor, torch.Generator, float], Tensor]  # labels [N], noise, temperature -> codes [N, Z]


def load(path: str | Path, device: str = "auto", trust: Trust = False) -> "TrainedVAE":
    """Load the model of a checkpoint file or of a run folder; see vae_exp.load."""
    (path,) = find(str(path), only_one=True)
    return TrainedVAE(checkpoints.load(path), build.device(device), trust, path)


def rebuild(checkpoint: Checkpoint, trust: Trust = False) -> VAE:
    """Return a checkpoint's model with its weights. Raises UserError if it names foreign code, or they do not fit."""
    groups = ("network", "posterior", "prior", "likelihood")
    _require_known(checkpoint, *groups, trust=trust)
    build.check_stored(checkpoint.config, "model", *groups)
    make_model = functools.partial(
        build.model, checkpoint.config, checkpoint.x_shape, checkpoint.n_classes, conditions=checkpoint.conditions
    )
    try:
        with torch.device("meta"):  # shapes without numbers: a small file may ask for a huge model
            empty = make_model()
    except (TypeError, ValueError, KeyError, RuntimeError, ArithmeticError) as error:
        raise UserError(f"checkpoint: its config gives no model ({first_line(error)}).") from error
    try:
        checkpoints.require_weights(checkpoint.model, empty.state_dict())
        checkpoints.require_latents(checkpoint.kl_per_dim, empty.z_dim)
    except checkpoints.InvalidCheckpoint as error:
        raise UserError(f"checkpoint: {error}.") from error
    model = make_model()
    model.load_state_dict(checkpoint.model)
    return model


def _require_known(checkpoint: Checkpoint, *groups: str, trust: Trust) -> None:
    """Import foreign code that a trusted checkpoint names. Raises UserError before that if it is not trusted."""
    targets.check_foreign(checkpoint.config, *groups, trust=trust)
    if trust is True:
        targets.find(checkpoint.config, groups, checkpoint.code)


class TrainedVAE:
    """p(x|z), q(z|x) and the prior of a checkpoint. Images are [N, C, H, W], uint8 or floats in [0, 1].

    A conditional model takes one label for all images, the name of a class or its number, or the numbers [N] of each
    image's. One of several conditions takes their values too, [circle, 0.3] or {shape: circle, angle: 0.3}. `model` is
    the VAE, a torch module; `config`, `epoch` and `kl_per_dim` say how it was trained.
    """

    @float32()
    def __init__(
        self, checkpoint: Checkpoint, device: torch.device, trust: Trust = False, path: Path | None = None
    ) -> None:
        self.model = rebuild(checkpoint, trust).to(device).eval().requires_grad_(False)
        self.device, self.trust, self.path, self._checkpoint = device, trust, path, checkpoint
        self.config, self.x_shape = checkpoint.config, checkpoint.x_shape
        self.epoch, self.step = checkpoint.epoch, checkpoint.step
        self.class_names, self.kl_per_dim = list(checkpoint.class_names), checkpoint.kl_per_dim
        self.conditions = checkpoint.conditions if self.model.n_classes else None

    def __getattr__(self, name: str) -> Any:
        if name == "at":  # of networks of many settings
            raise UserError(f".at(...): is no more. {GONE['beta']}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.x_shape))
        classes = f", {self.n_classes_in_data} classes" if self.model.n_classes else ""
        weights = sum(parameter.numel() for parameter in self.model.parameters())
        what = f"images {shape}, z_dim {self.model.z_dim}{classes}, {weights:,} parameters, on {self.device}"
        return printable(f"<TrainedVAE: {self.name}; {what}; from {self.path}>")

    @property
    def name(self) -> str:
        kind, given = " VAE" if self.model.stochastic else "", given_name(self.config)
        what = f"{self.config['model']['name']}{kind} on {data_name(self.config['dataset'])}, epoch {self.epoch}"
        return f"{given}: {what}" if given else what

    @property
    def n_classes_in_data(self) -> int:
        """Return how many classes the data had (the model may have room for more), or 0 for an unconditional model."""
        return min(self.model.n_classes, len(self.class_names) or self.model.n_classes)

    @functools.cached_property
    def weights(self) -> str:
        """Return a digest of the weights: the file of a path may be another run's by now, with as many steps."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._checkpoint.model.items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    @float32()
    @torch.no_grad()
    def sample(
        self,
        n: int,
        label: Labels = None,
        temperature: float = 1.0,
        seed: int | None = None,
        sampler: str = "prior",
        root: str | None = None,
    ) -> Tensor:
        """Return the mean of p(x|z) at n draws of z, [n, C, H, W] in [0, 1].

        sampler says where z is drawn: prior, gmm or aggregate, see `sampler`. A temperature below 1 draws nearer to
        the mean of the prior, or of each Gaussian: tidier, less varied images. Without a label a conditional model
        takes every class in turn. Raises UserError for what vae-generate refuses too.
        """
        n, temperature = checked("n", n, Count), checked("temperature", temperature, Temperature)
        if label is not None and not self.model.n_classes:
            raise UserError(f"label={as_typed(label)}: this model is not conditional; omit label.")
        if label is None and self.model.n_classes:
            label = self.every_class(0, n)
        noise = torch.Generator()
        noise.seed() if seed is None else noise.manual_seed(checked("seed", seed, Seed))
        y = self.labels(label, n)
        return self.decode(self.sampler(sampler, root)(y, noise, temperature), y)

    @torch.no_grad()
    def samples(
        self, n: int, label: Labels, draw: Draw, noise: torch.Generator, temperature: float = 1.0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images as `sample` draws them, with labels: [B, C, H, W] and [B], in chunks that fit the memory."""
        for first in range(0, n, CHUNK):
            y = self.labels(self.every_class(first, CHUNK) if label is None else label, CHUNK)
            z, size = draw(y, noise, temperature), min(CHUNK, n - first)
            yield self.decode(z[:size], y[:size]), y[:size].cpu()

    def every_class(self, first: int, n: int) -> Tensor:
        """Return n classes in turn from the given place on, [n]; many combinations of conditions in a mixed order."""
        classes = torch.arange(first, first + n) % max(self.n_classes_in_data, 1)
        return classes if self.conditions is None else spread(self.n_classes_in_data, self.n_classes_in_data)[classes]

    def sampler(self, name: str = "prior", root: str | None = None) -> Draw:
        """Return a function that draws codes from the model's prior, a mixture (gmm) or the aggregate posterior.

        gmm is a mixture of Gaussians fitted to the codes of training images; aggregate is q(z|x) of training images.
        They are fitted once, for each class of a conditional model, and stored beside the checkpoint; root says where
        the data lie now. Raises UserError if they cannot be read, and for the prior of a deterministic autoencoder.
        """
        name = checked("sampler", name, Sampler)
        if name != "prior":
            data = functools.partial(self.read_data, root)
            return samplers.load_or_fit(name, self.model, self.weights, data, self.path).draw
        if not self.model.stochastic:
            raise UserError("sampler=prior: an autoencoder has no prior. Use sampler=gmm or sampler=aggregate.")
        return lambda y, noise, temperature: self.model.prior_sample(len(y), noise, y, temperature)

    @float32()
    @torch.no_grad()
    def encode(self, x: Tensor | np.ndarray, label: Labels = None) -> Any:
        """Return q(z|x): `.mean` is [N, Z], `.rsample()` draws from it, and a Gaussian's `.log_var` is [N, Z]."""
        x = self.images(x)
        return self.model.encode(x, self.labels(label, len(x)))

    @float32()
    @torch.no_grad()
    def decode(self, z: Tensor | np.ndarray, label: Labels = None) -> Tensor:
        """Return the mean of p(x|z) for codes z [N, Z], [N, C, H, W] in [0, 1]. Raises UserError for other codes."""
        z = _tensor("z", z).to(self.device)
        if z.ndim != 2 or z.shape[1] != self.model.z_dim:
            raise UserError(f"z of shape {list(z.shape)}: this model takes codes [N, {self.model.z_dim}].")
        if z.is_complex() or not z.isfinite().all():
            raise UserError("z: codes are finite real numbers; some of these are not.")
        return self.model.decode(z.float(), self.labels(label, len(z))).mean

    def reconstruct(self, x: Tensor | np.ndarray, label: Labels = None) -> Tensor:
        """Return the images decoded from the mean of their q(z|x), [N, C, H, W] in [0, 1]."""
        return self.decode(self.encode(x, label).mean, label)

    @float32()
    def log_prob_bound(self, x: Tensor | np.ndarray, label: Labels = None, k: int = 100, seed: int = 0) -> Tensor:
        """Return a lower bound on log p(x) of each image from k importance samples, [N] nats (Burda et al. 2016)."""
        k, seed = checked("k", k, Count), checked("seed", seed, Seed)
        pixels = self.images(x)
        split = Split(pixels.mul(255).round().to(torch.uint8), self.labels(label, len(pixels)))
        return metrics.importance_bound(self.model, split, k, torch.Generator().manual_seed(seed))

    def read_data(self, root: str | None = None) -> Data:
        """Read the dataset the model was trained on, split as then; root says where it lies now.

        Raises UserError if it cannot be read or is not trusted, and if it has changed: split anew, images that were
        trained on would be among the test images.
        """
        if root is not None and "root" not in self.config["dataset"]:
            name = self.config["dataset"].get("name")
            raise UserError(f"dataset.root={root}: the model was trained on {name}, which has no root. Leave it out.")
        _require_known(self._checkpoint, "dataset", trust=self.trust)
        build.check_dataset(self.config)
        data = restore.read(self._checkpoint, self.path and self.path.parent, root)
        if data.x_shape != self.x_shape:
            raise UserError(f"dataset: its images are {data.x_shape}, and the model was trained on {self.x_shape}.")
        return data

    def codes(self, split: str = "test", root: str | None = None) -> dict[str, np.ndarray]:
        """Return the codes of train, val, test or all images in the order of the data, and what identifies each.

        They are the arrays of `vae-generate what=codes`; root says where the data lie now. Raises UserError.
        """
        rows = codes.rows_of(self.read_data(root), checked("split", split, CodedSplit), self.device)
        parts = [columns for _, columns in codes.codes(self.encode, rows)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} | rows.names

    @float32()
    def export(self, path: str | Path, root: str | None = None, split: str = "test") -> dict[str, float]:
        """Write the weights as PATH.safetensors, with all that vae_exp.load needs, or a network to run without vae_exp.

        A network is encoder.onnx or decoder.onnx, or .pt2 for torch.export; then the largest difference of each of its
        outputs from PyTorch's is returned. PATH.html is the explorer, a page with images of a split; root says where
        the data lie now. Raises UserError.
        """
        path, checkpoint, origin = Path(path), self._checkpoint, self._checkpoint.origin
        if path.suffix in export.FORMATS:
            return export.write(self.model, path, self._about(), self.conditions)
        if path.suffix == ".html":
            write(path, self._explorer(self.read_data(root).split(checked("split", split, DataSplit))))
            return {}
        if origin is not None and origin.from_run is not None and self.path is not None:
            from_here = os.path.relpath(self.path.parent / origin.from_run, path.parent)
            checkpoint = replace(checkpoint, origin=replace(origin, from_run=from_here))
        checkpoints.export(path, checkpoint)
        return {}

    def _about(self) -> dict[str, Any]:
        groups = ("model", "network", "posterior", "prior", "likelihood")
        config: dict[str, Any] = {name: group for name, group in self.config.items() if name in groups}
        config["dataset"] = data_name(self.config["dataset"])
        about = {"name": self.name, "epoch": self.epoch, "config": config}
        if self.conditions is not None:
            return about | {"conditions": self.conditions.about()}
        return about | ({"class_names": list(self.class_names)} if self.model.n_classes else {})

    def _explorer(self, split: Split) -> str:
        from vae_exp.figures import explorer

        return explorer.page(self.model, split, self.class_names, self.conditions, self.kl_per_dim, self.name)

    def images(self, x: Tensor | np.ndarray) -> Tensor:
        """Return [N, C, H, W] floats in [0, 1] on the model's device. Raises UserError for another shape or range."""
        x = _tensor("images", x).to(self.device)
        x = x[None] if x.shape == self.x_shape else x
        if tuple(x.shape[1:]) != self.x_shape:
            raise UserError(f"images of shape {list(x.shape)}: this model takes [N, {str(list(self.x_shape))[1:]}.")
        if x.dtype == torch.uint8:
            return x.float() / 255
        if x.is_complex() or x.isnan().any():
            raise UserError("images: pixels are real numbers; some of these are not.")
        if len(x) and not (x.min() >= 0 and x.max() <= 1):
            raise UserError(f"images from {x.min():g} to {x.max():g}: give uint8 images, or floats from 0 to 1.")
        return x.float()

    def labels(self, label: Labels, n: int) -> Tensor:
        """Return [n] labels on the model's device, zeros for an unconditional model. Raises UserError."""
        n_classes = self.model.n_classes
        are_of_images = isinstance(label, list | tuple) and not self.conditions and str not in map(type, label)
        if isinstance(label, str | int | float | list | tuple | Mapping) and not are_of_images:
            if not n_classes:
                raise UserError(f"label={as_typed(label)}: this model is not conditional; omit label.")
            label = self.number(label)
        if not n_classes:
            return torch.zeros(n, dtype=torch.long, device=self.device)
        if label is None:
            names = ", ".join(map(printable, self.class_names))
            raise UserError(f"label: this model is conditional; give one of {names}.")
        y = _tensor("label", label).to(self.device)
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool or y.shape not in ((), (n,)):
            given = f"label: {y.dtype} of shape {list(y.shape)} for {n} image{'s' * (n != 1)}"
            raise UserError(f"{given}; give the name or the number of one class, or a whole number for each image.")
        y = y.long().expand(n)
        if n and not (y.min() >= 0 and y.max() < max(n_classes, len(self.class_names))):
            given = f"numbers from {y.min()} to {y.max()}"
            raise UserError(f"label: {given}; this model's classes are 0 to {n_classes - 1}.")
        return y

    def number(self, label: Any) -> int:
        """Return the number of a class by its name, or else its number. Raises UserError for an unknown one.

        Values of conditions that are no combination of the data become a class of their own.
        """
        if self.conditions and not isinstance(label, str | int):
            return self._combination(label)
        name = printable(composed(label))
        if name in self.class_names:
            return self.class_names.index(name)
        is_number = name in map(str, range(max(len(self.class_names), self.model.n_classes)))
        if self.conditions and (len(self.conditions.names) == 1 or not is_number):
            return self._combination(label)
        if isinstance(label, Mapping | list | tuple):
            takes = f"this model has one label, {', '.join(map(printable, self.class_names))}"
            raise UserError(f"label={as_typed(label)}: {takes}; give one of them.")
        if not is_number:
            raise UserError(f"label={label}: this model knows {', '.join(map(printable, self.class_names))}.")
        return int(name)

    def _combination(self, label: Any) -> int:
        """Return the class of given values of the conditions, and make one if the data have no such combination."""
        assert self.conditions is not None and self.model.contexts is not None, "asked for by one who has seen them"
        (context, name), contexts = self.conditions.context(label), self.model.contexts
        same = (contexts == context.to(contexts)).all(1).nonzero()
        if len(same):
            return int(same[0])
        if isinstance(self.model.prior, ByLabel):
            raise UserError(
                f"label={as_typed(label)}: prior=by_label knows the combinations of the training data alone."
            )
        self.model.contexts = torch.cat([contexts, context[None].to(contexts)])
        self.class_names.append(name)
        return len(contexts)


def _tensor(name: str, values: Any) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"{name}: not an array of numbers ({first_line(error)}).") from error
