"""What does it come to? One room for each question, most of them run as `compress-env NAME`.

The rooms of commands lie side by side, as `python -m experiments.NAME` finds a command by its room.
By what they are about:

- The job: `compress` does it, `train` makes networks for it; `tables` puts runs from several seeds
  together, and `smallest` those over several budgets; `throughput` tells what its steps cost.
- The job beside other ways to do it, here and in other libraries: `rivals` compares what `rival`
  runs, one at a time.
- Agents that compress: `trial` runs one, `benchmark` compares them, `budgets` asks whether one
  policy serves several budgets, `suite` does without learning, `tune` finds their hyper-parameters,
  `volatility` looks at their rewards.
- Agents on Gymnasium's tasks: `control` runs one, `ppo_penalties` compares them.
- What papers say of layers: `importance_stability`, `importance_benefit`, `single_layer` and
  `information_dropout`.
- Many runs of `compress`, `trial`, `rival` or `control` at once: `sweep`.

What they share is in `common`, how an agent searches in `search`.
"""
