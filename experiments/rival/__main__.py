"""Runs `python -m experiments.rival`."""

from experiments.rival.rival import main

if __name__ == "__main__":
    main()
