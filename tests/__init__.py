"""Tests of vae_exp, and what they share. A package, so that no other that is installed under this name hides it."""
