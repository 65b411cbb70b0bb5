"""Runs `python -m experiments.tune`."""

from experiments.tune.tune import main

if __name__ == "__main__":
    main()
