"""The page of `vae-compare --html`: one file with a script of its own, which works without a network."""
