"""Train the classifier whose features and labels judge samples."""

import hashlib
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_exp.datasets.prepare import Data
from vae_exp.datasets.splits import Split, batches
from vae_exp.files import cache_folder
from vae_exp.training import arrays
from vae_exp.training.precision import full_precision
from vae_exp.vae import VAE

STEPS, BATCH_SIZE, HIDDEN = 2000, 128, 512
RECIPE = 1  # to be raised where judges are made otherwise: those that were kept are then not found
READ_AT_ONCE = 10_000  # images, while their digest is computed


def cache() -> Path:
    """Return the folder of cached judges and features of real images, computed once for all runs on the same data."""
    return cache_folder("features")


def digest(split: Split) -> str:
    """Return a digest that identifies a set of images and labels by their bytes, however they were split or chosen."""
    found = hashlib.sha256(repr((len(split), split.x_shape, split.dynamic)).encode())
    for rows in torch.arange(len(split)).split(READ_AT_ONCE):
        part = split[rows.to(split.y.device)]
        found.update(part.x.cpu().contiguous().numpy().tobytes())
        found.update(part.y.cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def reference_classifier(data: Data, device: torch.device) -> tuple[nn.Sequential, str]:
    """Return the classifier of a data set, and a name that tells it from all others.

    It learns from all training images, whatever part of them a model had, so that one judges the models of every
    seed. It is read from the cache, or else trained and cached.
    """
    train, n_classes = data.read_train().to(device), data.n_classes
    path = cache() / f"judge-{RECIPE}-{digest(train)}-{n_classes}.npz"
    if kept := arrays.read(path):
        with torch.device("meta"):  # no random numbers are drawn for weights that are there
            classifier = _empty(train, n_classes)
        shapes = {name: tuple(values.shape) for name, values in classifier.state_dict().items()}
        are_sound = arrays.are_numbers(kept, dict.fromkeys(shapes, np.float32))
        if are_sound and {name: values.shape for name, values in kept.items()} == shapes:
            weights = {name: torch.from_numpy(values) for name, values in kept.items()}
            classifier.load_state_dict(weights, assign=True)
            return classifier.to(device).eval(), _name(kept)
    classifier = train_classifier(train, n_classes, seed=0)
    content = {name: values.cpu().numpy() for name, values in classifier.state_dict().items()}
    arrays.write(path, content)
    return classifier, _name(content)


def _name(weights: dict[str, np.ndarray]) -> str:
    """Return a name made from the weights themselves: another machine trains another judge of the same images."""
    return f"judge-{hashlib.sha256(b''.join(weights[name].tobytes() for name in sorted(weights))).hexdigest()[:16]}"


def features(classifier: nn.Sequential, x: Tensor) -> Tensor:
    """Return the hidden units [N, HIDDEN] by which the classifier tells classes apart, for images in [0, 1]."""
    return classifier[:3](x)


def _empty(train: Split, n_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(math.prod(train.x_shape), HIDDEN),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(HIDDEN, n_classes),
    )


@torch.enable_grad()
def train_classifier(train: Split, n_classes: int, seed: int) -> nn.Sequential:
    """Train a small classifier of real images: one hidden layer, for a fixed number of steps."""
    device = train.y.device
    with torch.random.fork_rng(devices=[]):  # its weights are its own affair
        torch.manual_seed(seed)
        classifier = _empty(train, n_classes).to(device)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        order, step = torch.Generator().manual_seed(seed), 0
        while step < STEPS:
            for x, y in batches(train, BATCH_SIZE, order):
                loss = F.cross_entropy(classifier(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
                if step == STEPS:
                    break
    return classifier.eval()


GENERATED = 5000  # images drawn to be read


@torch.no_grad()
@full_precision()
def label_accuracy(model: VAE, classifier: nn.Module, data: Data, held_out: Split, noise: torch.Generator) -> dict:
    """Return how often the classifier reads the label that an image was drawn for.

    Also return its accuracy on real held-out images, which no model can be expected to pass by much, and that
    against the drawn images' labels in random order, which is chance.
    """
    # Labels that the data have: a model may have room for more (dataset.n_classes), of which nobody knows the look.
    y = (torch.arange(GENERATED) % (len(data.class_names) or data.n_classes)).to(held_out.y.device)
    z = torch.randn(GENERATED, model.z_dim, generator=noise).to(y.device)
    with model.evaluating():
        read = torch.cat(
            [_read(classifier, model.decode(*part).mean) for part in zip(z.split(1000), y.split(1000), strict=True)]
        )
    real = torch.cat([_read(classifier, x) for x, _ in batches(held_out, 1000)])
    shuffled = y[torch.randperm(GENERATED, generator=noise).to(y.device)]
    return {
        "label_accuracy": (read == y).cpu().double().mean().item(),
        "label_accuracy_real": (real == held_out.y).cpu().double().mean().item(),
        "label_accuracy_shuffled": (read == shuffled).cpu().double().mean().item(),
    }


def _read(classifier: nn.Module, images: Tensor) -> Tensor:
    return classifier(images).argmax(1)
