"""CelebA: torchvision's files and attributes, decoded into the cache of image folders."""

from pathlib import Path

from vae_exp.datasets.image_cache import Decoding
from vae_exp.datasets.image_folder import decoded, image_shape
from vae_exp.datasets.splits import Source, Split
from vae_exp.datasets.torchvision import CELEBA, open_torchvision
from vae_exp.errors import UserError
from vae_exp.files import of_files

EVERY = 200  # images of which one is looked at, to know the data again: 202,599 files take long


def celeba(
    name: str,
    root: str,
    image_size: int | list[int],
    crop: int | None,
    attribute: str | None,
    on_error: str,
    cache: str | None = None,
) -> Source:
    """Return CelebA (Liu et al. 2015) with its own three splits. The label is one of 40 attributes, 0 or 1, or none."""
    folder = Path(root).expanduser()

    def read(part: str) -> Split:
        raw = open_torchvision("celeba", folder, part)
        labels = [0] * len(raw.filename)
        if attribute is not None:
            known = [attribute_name for attribute_name in raw.attr_names if attribute_name]
            if attribute not in known:
                raise UserError(f"dataset.attribute={attribute}: it takes null or one of {', '.join(known)}.")
            labels = raw.attr[:, known.index(attribute)].tolist()
        images = folder / raw.base_folder / "img_align_celeba"
        how = Decoding(image_shape(image_size, 3), crop, on_error=on_error, cache=cache)
        return decoded(images, raw.filename, labels, how)

    class_names = [] if attribute is None else [f"not {attribute}", attribute]
    train, val = read("train"), read("valid")
    names = (*CELEBA[1:], *(f"{CELEBA[0]}/{number:06}.jpg" for number in range(1, 202_600, EVERY)))
    digests = of_files({path: folder / "celeba" / path for path in names})
    return Source(name, train, lambda: read("test"), class_names, val, files=digests)
