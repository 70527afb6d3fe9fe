"""`python -m vae_exp` is `vae-train`."""

from vae_exp.cli.train import main

if __name__ == "__main__":
    main()
