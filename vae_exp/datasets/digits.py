"""The bundled dataset: it needs no download and no account."""

import importlib.util
from pathlib import Path

import numpy as np
import torch

from vae_exp.datasets.splits import Source, Split
from vae_exp.errors import UserError

TEST_SIZE = 300
FILE = Path("datasets", "data", "digits.csv.gz")  # in scikit-learn: 64 pixels from 0 to 16 and the digit, in each line


def digits(name: str) -> Source:
    """Return the 1,797 8x8 digits inside scikit-learn (Alpaydin & Kaynak 1998), scaled from 0..16 to 0..255."""
    # Importing scikit-learn itself would take half as long as importing PyTorch.
    package = importlib.util.find_spec("sklearn")
    path = Path(package.origin or "").parent / FILE if package else FILE
    if not path.is_file():
        raise UserError(f"dataset=digits: {FILE} of scikit-learn is not there. Install it: pip install scikit-learn")
    raw = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.uint8))
    x = (raw[:, :-1].double() * 255 / 16).round().to(torch.uint8).unflatten(1, (1, 8, 8))
    y = raw[:, -1].long()
    # The test split is the same for every seed, or runs of different seeds could not be compared.
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    test, train = Split(x, y)[rows[:TEST_SIZE]], Split(x, y)[rows[TEST_SIZE:]]
    return Source(name, train, lambda: test, [str(digit) for digit in range(10)])
