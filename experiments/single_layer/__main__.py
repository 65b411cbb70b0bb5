"""Runs `python -m experiments.single_layer`."""

from experiments.single_layer.single_layer import main

if __name__ == "__main__":
    main()
