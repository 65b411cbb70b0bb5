"""Runs `python -m experiments.importance_stability`."""

from experiments.importance_stability.importance_stability import main

if __name__ == "__main__":
    main()
