"""The record of a run while it trains: its own folder always, W&B beside it. Only this package imports wandb."""
