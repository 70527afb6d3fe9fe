"""What vae_exp is measured against: the tutorial's own loop, and pythae on the same network, as people type them."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH_SIZE = 128


class TutorialVAE(nn.Module):
    """The network of the classic tutorial, in its own words."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc21, self.fc22 = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.fc3, self.fc4 = nn.Linear(20, 400), nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.fc1(x))
        mu, logvar = self.fc21(h), self.fc22(h)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


def tutorial_epoch(root: Path, device: torch.device) -> Callable[[], float]:
    """The tutorial's training loop over a DataLoader of torchvision's MNIST, as people type it."""
    from torchvision import datasets, transforms

    data = datasets.MNIST(root, train=True, transform=transforms.ToTensor(), download=True)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH_SIZE, shuffle=True)
    model = TutorialVAE().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def epoch() -> float:
        started, total = time.perf_counter(), 0.0
        for data, _ in loader:
            data = data.to(device)
            optimizer.zero_grad()
            recon, mu, logvar = model(data.view(-1, 784))
            bce = F.binary_cross_entropy(recon, data.view(-1, 784), reduction="sum")
            loss = bce - 0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            loss.backward()
            total += loss.item()
            optimizer.step()
        return time.perf_counter() - started

    return epoch


def pythae_epoch(root: Path, device: torch.device) -> Callable[[], float]:
    """pythae's trainer on MNIST in memory: of three epochs the last two."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.pipelines import TrainingPipeline
    from pythae.trainers import BaseTrainerConfig
    from torchvision import datasets

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.mean, self.log_var = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)

        def forward(self, x: Tensor) -> ModelOutput:
            h = F.relu(self.hidden(x.flatten(1)))
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_var(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.pixels = nn.Linear(20, 400), nn.Linear(400, 784)

        def forward(self, z: Tensor) -> ModelOutput:
            pixels = torch.sigmoid(self.pixels(F.relu(self.hidden(z))))
            return ModelOutput(reconstruction=pixels.unflatten(1, (1, 28, 28)))

    images = datasets.MNIST(root, train=True, download=True).data[:, None].float() / 255

    def seconds(epochs: int) -> float:
        settings = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
        with tempfile.TemporaryDirectory() as folder:
            training = BaseTrainerConfig(
                output_dir=folder, num_epochs=epochs, learning_rate=1e-3, optimizer_cls="Adam",
                per_device_train_batch_size=BATCH_SIZE, no_cuda=device.type != "cuda",
            )  # fmt: skip
            pipeline = TrainingPipeline(VAE(settings, encoder=Encoder(), decoder=Decoder()), training)
            started = time.perf_counter()
            pipeline(train_data=images)
            return time.perf_counter() - started

    return lambda: (seconds(3) - seconds(1)) / 2
