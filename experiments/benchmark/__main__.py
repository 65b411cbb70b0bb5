"""Runs `python -m experiments.benchmark`."""

from experiments.benchmark.benchmark import main

if __name__ == "__main__":
    main()
