"""The bundled dataset: it needs no download and no account."""

import torch

from vae_exp.datasets.splits import Source, Split

TEST_SIZE = 300


def digits(name: str) -> Source:
    """The 1,797 8x8 digits inside scikit-learn (Alpaydin & Kaynak 1998), scaled from 0..16 to 0..255."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = torch.from_numpy(raw.images * 255 / 16).round().to(torch.uint8)[:, None]
    y = torch.from_numpy(raw.target).long()
    # The test split is the same for every seed, or runs of different seeds could not be compared.
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = Split(x, y)[rows[:TEST_SIZE]], Split(x, y)[rows[TEST_SIZE:]]
    return Source(name, train, lambda: test, [str(digit) for digit in range(10)])
