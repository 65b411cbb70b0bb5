"""Runs `python -m experiments.smallest`."""

from experiments.smallest.smallest import main

if __name__ == "__main__":
    main()
