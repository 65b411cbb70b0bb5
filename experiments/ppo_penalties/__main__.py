"""Runs `python -m experiments.ppo_penalties`."""

from experiments.ppo_penalties.ppo_penalties import main

if __name__ == "__main__":
    main()
