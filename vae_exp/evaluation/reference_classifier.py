"""Train the classifier of real images whose features and labels judge samples."""

import hashlib
import itertools
import json
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_exp.datasets.conditions import Conditions, spread
from vae_exp.datasets.prepare import Data
from vae_exp.datasets.splits import Split, batches
from vae_exp.files import cache_folder, read_arrays, write_arrays
from vae_exp.training import console
from vae_exp.training.precision import full_precision
from vae_exp.vae import VAE

STEPS, BATCH_SIZE, HIDDEN = 2000, 128, 512
RECIPE = 1  # to be raised where classifiers are made otherwise: cached ones are then not found
CHUNK = 10_000  # images read at a time, while their digest is computed
SILENT_SECONDS = 3  # before a bar shows that something is done
UNIFORM = 1 / 3  # the variance of a number spread evenly from -1 to 1
N_GENERATED = 5000  # images drawn to be read


def digest(split: Split) -> str:
    """Return a digest that identifies a set of images and labels by their bytes, however they were split or chosen."""
    sha256 = hashlib.sha256(repr((len(split), split.x_shape, split.dynamic)).encode())
    for rows in torch.arange(len(split)).split(CHUNK):
        part = split[rows.to(split.y.device)]
        sha256.update(part.x.cpu().contiguous().numpy().tobytes())
        sha256.update(part.y.cpu().numpy().tobytes())
    return sha256.hexdigest()[:16]


def reference_classifier(data: Data, device: torch.device) -> tuple[nn.Sequential, str]:
    """Return the classifier of a data set, cached or trained on all training images, and a name for it alone."""
    train, targets = data.read_train().to(device), Targets.of(data, device)
    path = cache_folder("features") / f"judge-{RECIPE}-{digest(train)}-{targets.name}.npz"
    with torch.device("meta"):  # no random numbers are drawn for weights that are cached
        classifier = _build(train, targets.width)
    if weights := read_arrays(path, dict.fromkeys(classifier.state_dict(), np.float32)):
        classifier.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()}, assign=True)
        classifier = classifier.to(device).eval()
    else:
        classifier = train_classifier(train, targets, seed=0)
        weights = {name: values.cpu().numpy() for name, values in classifier.state_dict().items()}
        write_arrays(path, weights)
    # Named by the weights themselves: another machine trains another classifier of the same images.
    content = b"".join(weights[name].tobytes() for name in sorted(weights))
    return classifier, f"judge-{hashlib.sha256(content).hexdigest()[:16]}"


@dataclass(frozen=True)
class Targets:
    """What a classifier reads in images: their class, or each of the conditions that it combines."""

    width: int  # of its outputs
    conditions: Conditions | None = None
    table: Tensor | None = None  # [K, width], of each combination

    @classmethod
    def of(cls, data: Data, device: torch.device) -> "Targets":
        if data.conditions is None:
            return cls(data.n_classes)
        table = data.conditions.table().to(device)
        return cls(table.shape[1], data.conditions, table)

    @property
    def name(self) -> str:
        """Return a name that differs where the same labels y stand for something else."""
        about = json.dumps(vars(self.conditions)) if self.conditions else ""
        return f"{self.width}" + (f"-{hashlib.sha256(about.encode()).hexdigest()[:16]}" if about else "")

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of outputs [B, width] for labels y [B]."""
        if self.conditions is None or self.table is None:
            return F.cross_entropy(outputs, y)
        table, total = self.table[y], outputs.new_zeros(())
        for name, part in self.conditions.columns.items():
            if name in self.conditions.numbers:
                total = total + F.mse_loss(outputs[:, part], table[:, part]) / UNIFORM
            else:
                total = total + F.cross_entropy(outputs[:, part], table[:, part].argmax(1))
        return total

    def compare(self, outputs: Tensor, y: Tensor) -> dict[str, float]:
        """Return how well outputs [N, width] are those of labels y [N]: the share of a label, the error of a number."""
        if self.conditions is None or self.table is None:
            return {"label_accuracy": _share(outputs.argmax(1) == y)}
        table, result = self.table[y], dict[str, float]()
        for name, part in self.conditions.columns.items():
            if name in self.conditions.numbers:
                low, high = self.conditions.ranges[self.conditions.numbers.index(name)]
                off = (outputs[:, part] - table[:, part]).double().square().mean().sqrt().item()
                result[f"number_error/{name}"] = off * (high - low) / 2
            else:
                result[f"label_accuracy/{name}"] = _share(outputs[:, part].argmax(1) == table[:, part].argmax(1))
        return result


def _share(is_right: Tensor) -> float:
    return is_right.cpu().double().mean().item()


def _build(train: Split, width: int) -> nn.Sequential:
    hidden = nn.Linear(math.prod(train.x_shape), HIDDEN)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Dropout(0.2), nn.Linear(HIDDEN, width))


@torch.enable_grad()
def train_classifier(train: Split, targets: Targets, seed: int) -> nn.Sequential:
    device = train.y.device
    with torch.random.fork_rng(devices=[]):  # its weights are its own affair
        torch.manual_seed(seed)
        classifier = _build(train, targets.width).to(device)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        order = torch.Generator().manual_seed(seed)
        epochs = (batches(train, BATCH_SIZE, order) for _ in itertools.count())
        with console.progress_bar(STEPS, desc="classifier", delay=SILENT_SECONDS) as bar:
            for x, y in itertools.islice(itertools.chain.from_iterable(epochs), STEPS):
                loss = targets.loss(classifier(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return classifier.eval()


@torch.no_grad()
@full_precision()
def label_accuracy(model: VAE, classifier: nn.Module, data: Data, held_out: Split, noise: torch.Generator) -> dict:
    """Return how often the classifier reads the label that an image was drawn for, of several conditions each.

    Of a number it is the root mean square error in the data's units. Also return what it reads in real held-out images,
    the most to expect, and with labels in random order, chance.
    """
    targets, n_classes = Targets.of(data, held_out.y.device), len(data.class_names) or data.n_classes
    # Labels that the data have: a model may have room for more (dataset.n_classes), of which nobody knows the look.
    y = torch.arange(N_GENERATED) % n_classes
    y = (y if data.conditions is None else spread(N_GENERATED, n_classes)).to(held_out.y.device)
    z = model.prior_sample(N_GENERATED, noise, y)
    with model.evaluating():
        parts = zip(z.split(1000), y.split(1000), strict=True)
        read = torch.cat([classifier(model.decode(*part).mean) for part in parts])
    real = torch.cat([classifier(x) for x, _ in batches(held_out, 1000)])
    shuffled = y[torch.randperm(N_GENERATED, generator=noise).to(y.device)]
    compared = {"": targets.compare(read, y), "_real": targets.compare(real, held_out.y)}
    compared["_shuffled"] = targets.compare(read, shuffled)
    return {
        name.replace("/", f"{of}/", 1) if "/" in name else f"{name}{of}": value
        for of, values in compared.items()
        for name, value in values.items()
    }
