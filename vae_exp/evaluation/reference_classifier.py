"""Train the classifier of real images whose features and labels judge samples."""

import hashlib
import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

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
    train, n_classes = data.read_train().to(device), data.n_classes
    path = cache_folder("features") / f"judge-{RECIPE}-{digest(train)}-{n_classes}.npz"
    with torch.device("meta"):  # no random numbers are drawn for weights that are cached
        classifier = _build(train, n_classes)
    if weights := read_arrays(path, dict.fromkeys(classifier.state_dict(), np.float32)):
        classifier.load_state_dict({name: torch.from_numpy(values) for name, values in weights.items()}, assign=True)
        classifier = classifier.to(device).eval()
    else:
        classifier = train_classifier(train, n_classes, seed=0)
        weights = {name: values.cpu().numpy() for name, values in classifier.state_dict().items()}
        write_arrays(path, weights)
    # Named by the weights themselves: another machine trains another classifier of the same images.
    content = b"".join(weights[name].tobytes() for name in sorted(weights))
    return classifier, f"judge-{hashlib.sha256(content).hexdigest()[:16]}"


def _build(train: Split, n_classes: int) -> nn.Sequential:
    hidden = nn.Linear(math.prod(train.x_shape), HIDDEN)
    return nn.Sequential(nn.Flatten(), hidden, nn.ReLU(), nn.Dropout(0.2), nn.Linear(HIDDEN, n_classes))


@torch.enable_grad()
def train_classifier(train: Split, n_classes: int, seed: int) -> nn.Sequential:
    device = train.y.device
    with torch.random.fork_rng(devices=[]):  # its weights are its own affair
        torch.manual_seed(seed)
        classifier = _build(train, n_classes).to(device)
        optimizer = torch.optim.Adam(classifier.parameters(), lr=2e-3, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
        order = torch.Generator().manual_seed(seed)
        epochs = (batches(train, BATCH_SIZE, order) for _ in itertools.count())
        with console.progress_bar(STEPS, desc="classifier", delay=SILENT_SECONDS) as bar:
            for x, y in itertools.islice(itertools.chain.from_iterable(epochs), STEPS):
                loss = F.cross_entropy(classifier(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return classifier.eval()


@torch.no_grad()
@full_precision()
def label_accuracy(model: VAE, classifier: nn.Module, data: Data, held_out: Split, noise: torch.Generator) -> dict:
    """Return how often the classifier reads the label that an image was drawn for.

    Also return its accuracy on real held-out images, the most to expect, and with labels in random order, chance.
    """
    # Labels that the data have: a model may have room for more (dataset.n_classes), of which nobody knows the look.
    y = (torch.arange(N_GENERATED) % (len(data.class_names) or data.n_classes)).to(held_out.y.device)
    z = model.prior_sample(N_GENERATED, noise, y)
    with model.evaluating():
        parts = zip(z.split(1000), y.split(1000), strict=True)
        read = torch.cat([classifier(model.decode(*part).mean).argmax(1) for part in parts])
    real = torch.cat([classifier(x).argmax(1) for x, _ in batches(held_out, 1000)])
    shuffled = y[torch.randperm(N_GENERATED, generator=noise).to(y.device)]
    return {
        "label_accuracy": (read == y).cpu().double().mean().item(),
        "label_accuracy_real": (real == held_out.y).cpu().double().mean().item(),
        "label_accuracy_shuffled": (read == shuffled).cpu().double().mean().item(),
    }
