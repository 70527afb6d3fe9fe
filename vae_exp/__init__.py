"""vae_exp: train, sweep and compare variational autoencoders."""

__version__ = "0.1.0"
