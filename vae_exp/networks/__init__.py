"""Encoders and decoders: tensors in, tensors out.

An encoder maps images [B, C, H, W] and a label context [B, K] to [B, 2Z], or to as many numbers as the posterior
takes; a decoder maps codes [B, Z] and the same context to one number per pixel, [B, C, H, W]. K is 0 for an
unconditional model.
"""

from vae_exp.networks.convolutional import burgess, conv, locatello, resnet
from vae_exp.networks.mlp import ACTIVATIONS, gated_mlp, mlp

__all__ = ["ACTIVATIONS", "burgess", "conv", "gated_mlp", "locatello", "mlp", "resnet"]
