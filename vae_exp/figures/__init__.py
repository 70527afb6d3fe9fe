"""Every picture of a model: what a run logs and what vae-generate draws come from the same functions."""
