"""Runs `python -m experiments.train`."""

from experiments.train.train import main

if __name__ == "__main__":
    main()
