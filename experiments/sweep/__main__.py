"""Runs `python -m experiments.sweep`."""

from experiments.sweep.sweep import main

if __name__ == "__main__":
    main()
