"""Runs `python -m experiments.compress`."""

from experiments.compress.compress import main

if __name__ == "__main__":
    main()
