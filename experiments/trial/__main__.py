"""Runs `python -m experiments.trial`."""

from experiments.trial.trial import main

if __name__ == "__main__":
    main()
