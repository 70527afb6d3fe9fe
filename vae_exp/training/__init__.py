"""One run: its folder, its checkpoints, how it goes on, when it stops, and how its step is computed."""
