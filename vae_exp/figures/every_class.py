"""The choice of images and classes that a picture of a split shows: every class, as far as there is room."""

from collections.abc import Sequence

import torch
from torch import Tensor

ENOUGH = 0.9  # of the classes that there is room for: in a random order chance may leave out one of ten digits
MOST_CLASSES = 64  # a row each in a picture; the 62 of EMNIST's largest split fit


def in_turn(y: Tensor) -> Tensor:
    """Return the rows of labels y [N] with their classes taking turns, each class's rows in order, [N].

    [5, 5, 3, 5, 3] gives [0, 2, 1, 4, 3]. The first n rows show as many classes as n rows can, and a longer selection
    begins with the same rows.
    """
    y = y.cpu()
    _, number = y.unique(return_inverse=True)
    order = number.argsort(stable=True)
    counts = number.bincount()
    starts = counts.cumsum(0) - counts
    turn = torch.empty_like(number)
    turn[order] = torch.arange(len(y)) - starts[number[order]]
    first_row = order[starts]  # of each class
    return (turn * len(y) + first_row[number]).argsort()


def rows(y: Tensor, n: int) -> Tensor:
    """Return the first n rows of labels y [N], or n rows with classes in turn if the first show too few classes.

    A folder of class folders is sorted by class, so its first rows show only one class.
    """
    there, classes = len(y[:n].unique()), len(y.unique())
    return torch.arange(min(n, len(y))) if there >= ENOUGH * min(n, classes) else in_turn(y)[:n]


def shown_classes(n_classes: int, class_names: Sequence[str]) -> int:
    """Return how many classes get a row each: those in the data, and no more than a picture has room for.

    A model may have room for more classes than there are (dataset.n_classes), of which it has learned nothing.
    """
    return min(n_classes, len(class_names) or n_classes, MOST_CLASSES)
