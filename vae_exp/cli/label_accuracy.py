"""The label accuracy of a conditional model: a classifier of real images reads the labels of its images back."""

import torch
from torch import Tensor, nn

from vae_exp.datasets.prepare import Data
from vae_exp.datasets.splits import Split, batches
from vae_exp.training.speed import full_precision
from vae_exp.vae import VAE

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
