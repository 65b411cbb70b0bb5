"""Runs `python -m experiments.information_dropout`."""

from experiments.information_dropout.information_dropout import main

if __name__ == "__main__":
    main()
