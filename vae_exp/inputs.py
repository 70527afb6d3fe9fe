"""A user's own images, made what the model was trained on."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from vae_exp.config import UserError


def read_images(path: str | Path, x_shape: tuple[int, int, int]) -> Tensor:
    """The images of a file or a folder, in the order of their names: resized and centre-cropped, uint8 [N, C, H, W]."""
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"inputs={path}: there is no such file or folder.")
    channels, height, width = x_shape
    images = []
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if file.is_file() and not file.name.startswith("."):
            try:
                with Image.open(file) as image:
                    upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
            except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
                raise UserError(f"inputs={file}: cannot be read as an image ({error}).") from error
            pixels = np.array(ImageOps.fit(upright, (width, height)))
            images.append(torch.from_numpy(pixels).reshape(height, width, channels).permute(2, 0, 1))
    if not images:
        raise UserError(f"inputs={path}: there is no image in it.")
    return torch.stack(images)
