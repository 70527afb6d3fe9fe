"""Where a run is written down while it trains: its own folder always, W&B beside it. Only this wing imports wandb."""
