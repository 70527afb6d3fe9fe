"""Which images of a split a picture shows, and which classes: every class, as far as there is room."""

from collections.abc import Sequence

import torch
from torch import Tensor

ENOUGH = 0.9  # of the classes that there is room for: in a random order chance may leave out one of ten digits
MOST_CLASSES = 64  # a row each in a picture; the 62 of EMNIST's largest split fit


def in_turn(y: Tensor) -> Tensor:
    """The rows of labels y [N] so that their classes take turns, each class's rows in their order, [N].

    [5, 5, 3, 5, 3] gives [0, 2, 1, 4, 3]. The first rows show as many classes as there can be in so many, and of a
    longer part the beginning is the same.
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
    """The first n rows of labels y [N], or n rows in turn where the first ones show too few of the classes.

    A folder of class folders is in the order of its classes, and its first rows show one class.
    """
    there, classes = len(y[:n].unique()), len(y.unique())
    return torch.arange(min(n, len(y))) if there >= ENOUGH * min(n, classes) else in_turn(y)[:n]


def shown_classes(n_classes: int, class_names: Sequence[str]) -> int:
    """How many classes get a row each: those that the data have, and no more than a picture has room for.

    A model may have room for more classes than there are (dataset.n_classes), of which it has learned nothing.
    """
    return min(n_classes, len(class_names) or n_classes, MOST_CLASSES)
