"""The configuration: its keys and rules, its checks, and the objects made from it. Only `build` imports torch."""

from vae_exp.errors import UserError

__all__ = ["UserError"]  # where it was until 0.1
