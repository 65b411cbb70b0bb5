"""Runs `python -m experiments.importance_benefit`."""

from experiments.importance_benefit.importance_benefit import main

if __name__ == "__main__":
    main()
