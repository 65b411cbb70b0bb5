"""Runs `python -m experiments.control`."""

from experiments.control.control import main

if __name__ == "__main__":
    main()
