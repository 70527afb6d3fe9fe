"""Runs laid side by side, from their folders alone: no torch and no W&B."""
