"""How good samples are, as plain functions of feature arrays [N, D]: no model, no files, no run.

    from vae_exp import scores
    scores.frechet(real, fake)    # tensors or NumPy arrays, a row per image; the lower the better

Whatever turns images into features is vae_exp.scores.features, or the user's own.
"""

from vae_exp.scores.frechet import frechet
from vae_exp.scores.kernel import kid
from vae_exp.scores.neighbours import coverage, density, nearest, precision, recall

__all__ = ["coverage", "density", "frechet", "kid", "nearest", "precision", "recall"]
