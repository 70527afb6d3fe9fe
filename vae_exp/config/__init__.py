"""What a configuration may say, and what becomes of it. All but `build` answers without importing torch."""

from vae_exp.errors import UserError

__all__ = ["UserError"]  # where it was until 0.1
