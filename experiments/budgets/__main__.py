"""Runs `python -m experiments.budgets`."""

from experiments.budgets.budgets import main

if __name__ == "__main__":
    main()
