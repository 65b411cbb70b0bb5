"""Runs `python -m experiments.tables`."""

from experiments.tables.tables import main

if __name__ == "__main__":
    main()
