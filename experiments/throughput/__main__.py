"""Runs `python -m experiments.throughput`."""

from experiments.throughput.throughput import main

if __name__ == "__main__":
    main()
