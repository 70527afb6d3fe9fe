"""Whether a conditional model draws what its label says: a classifier of real images reads the labels back."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vae_exp.datasets.prepare import Data
from vae_exp.datasets.splits import Split, batches
from vae_exp.run.speed import exact_products
from vae_exp.vae import VAE

STEPS, BATCH_SIZE, HIDDEN = 2000, 128, 512
GENERATED = 5000  # images drawn to be read


def train_classifier(train: Split, n_classes: int, seed: int) -> nn.Module:
    """A small classifier of real images: one hidden layer, trained for a fixed number of steps."""
    device = train.y.device
    with torch.random.fork_rng(devices=[]):  # its weights are its own affair
        torch.manual_seed(seed)
        classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(train.x_shape), HIDDEN),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(HIDDEN, n_classes),
        ).to(device)
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


@torch.no_grad()
@exact_products()
def label_accuracy(model: VAE, classifier: nn.Module, data: Data, held_out: Split, noise: torch.Generator) -> dict:
    """How often the classifier reads the label that an image was drawn for.

    Beside it its accuracy on real held-out images, which no model can be expected to pass by much, and that
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
