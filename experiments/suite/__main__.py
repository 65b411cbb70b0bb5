"""Runs `python -m experiments.suite`."""

from experiments.suite.suite import main

if __name__ == "__main__":
    main()
