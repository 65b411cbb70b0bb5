"""Runs `python -m experiments.volatility`."""

from experiments.volatility.volatility import main

if __name__ == "__main__":
    main()
