"""The transition store and the snapshots change how long a step takes, and nothing else."""

from __future__ import annotations

import json
import math
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from compress_env.envs.base import LayerwiseCompressionEnv
from compress_env.task.task import FinetuneConfig
from tests.compress_env.envs.fakes import (
    EPISODES,
    KINDS,
    Episode,
    Named,
    Result,
    as_text,
    assert_same,
    make,
    play,
    prefixes,
    take,
)
from tests.fakes import BranchedNet, seeded, slow_but


class TestSameWithAndWithout:
    @pytest.mark.parametrize("kind", slow_but(("magnitude", "channel", "bits"), KINDS))
    @settings(max_examples=2, suppress_health_check=[HealthCheck.too_slow])
    @given(
        # few values, so that sequences share their beginnings
        episodes=st.lists(
            st.lists(st.sampled_from([-1.0, -0.2, 0.6, 1.0]), max_size=8), min_size=2, max_size=4
        ),
        reward_at=st.sampled_from(["layer", "episode"]),
    )
    def test_any_episodes(self, kind: str, episodes: list[Episode], reward_at: Any) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "store"
            with closing(make(kind, reward_at=reward_at, store=path)) as filling:
                for episode in reversed(episodes):
                    play(filling, episode)
            reference = make(kind, reward_at=reward_at, store=None)
            envs = {
                "memory": make(kind, reward_at=reward_at),
                "few bytes": make(kind, reward_at=reward_at, snapshot_bytes=3000),
                "no bytes": make(kind, reward_at=reward_at, snapshot_bytes=0),
                "file": make(kind, reward_at=reward_at, store=path),
            }
            for episode in [*episodes, episodes[0]]:
                expected = play(reference, episode)
                for env in envs.values():
                    assert_same(play(env, episode), expected)
            assert envs["file"].n_hits == envs["file"].n_lookups
            for env in envs.values():
                env.close()
            assert reference.n_lookups == reference.n_hits == 0

    @pytest.mark.parametrize("kind", ["channel", "bits"])
    def test_networks_asked_for_in_the_midst_of_episodes(self, kind: str) -> None:
        """Only some steps compute the network, or leave one behind to go on from."""

        def run(env: LayerwiseCompressionEnv) -> list[Any]:
            texts: list[Any] = []
            for episode, asks in zip(EPISODES, [(), (1,), (0, 2), (), (1,), (0, 1)], strict=True):
                texts.append(as_text(env.reset()))
                for t, action in enumerate(episode[: len(env.walk)]):
                    if t in asks:
                        texts.append([p.tolist() for p in env.compressed_model().parameters()])
                    texts += take(env, [action])
            return texts

        assert run(make(kind)) == run(make(kind, store=None))
        assert run(make(kind, snapshot_bytes=0)) == run(make(kind, store=None))

    @pytest.mark.parametrize("kind", ["magnitude", "bits"])
    def test_transition_noise(self, kind: str, tmp_path: Path) -> None:
        def run(**options: Any) -> list[Any]:
            with closing(make(kind, transition_noise=True, **options)) as env:
                texts: list[Any] = []
                for seed in (1, None, 1, None, None):
                    texts.append(as_text(env.reset(seed=seed)))
                    texts += take(env, [0.5] * 8)
                    texts += [p.tolist() for p in env.compressed_model().parameters()]
                return texts

        expected = run(store=None)
        assert run() == expected
        assert run(store=tmp_path / "store") == expected
        assert run(store=tmp_path / "store", snapshot_bytes=0) == expected

    @pytest.mark.parametrize("learning_rate", [1e12, 1e30], ids=["later", "at once"])
    def test_failures_are_stored_and_replayed(self, learning_rate: float, tmp_path: Path) -> None:
        options: dict[str, Any] = {
            "kind": "channel",
            "finetune_config": FinetuneConfig(learning_rate=learning_rate, batch_size=16),
            "finetune_steps": 1,
        }
        reference = make(store=None, **options)
        expected = [play(reference, [0.5] * 3) for _ in range(2)]
        assert any("FloatingPointError" in text for text in expected[0][0])
        for _ in range(2):
            with closing(make(store=tmp_path / "store", **options)) as env:
                for result in expected:
                    assert_same(play(env, [0.5] * 3), result)
        assert env.n_hits == env.n_lookups > 0

    def test_a_step_is_computed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        env = make("magnitude")
        scored = []
        score = env.task.score

        def counting(model: nn.Module) -> float:
            scored.append(1)
            return score(model)

        monkeypatch.setattr(env.task, "score", counting)
        for episode in EPISODES:
            play(env, episode)
        counted = json.loads(play(env, [0.5])[0][-1])[-1]["n_evaluations"]
        n_distinct = len(prefixes(make("magnitude"), EPISODES))
        assert len(scored) == counted == n_distinct < env.n_lookups
        assert env.n_lookups - env.n_hits == n_distinct
        assert env.store is not None
        assert len(env.store) == n_distinct


class TestOutOfMemory:
    def test_it_is_not_stored(self, monkeypatch: pytest.MonkeyPatch) -> None:
        env = make("magnitude")
        expected = play(make("magnitude"), [0.5] * 4)
        score, left = env.task.score, [1]

        def scarce(model: nn.Module) -> float:
            if left.pop() if left else 0:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return score(model)

        monkeypatch.setattr(env.task, "score", scarce)
        failed, _ = play(env, [0.5] * 4)
        assert len(failed) == 2
        assert "OutOfMemoryError" in failed[1]
        assert env.store is not None
        assert len(env.store) == 0
        env.forget_evaluations()
        assert_same(play(env, [0.5] * 4), expected)


class TestLentNetworks:
    @staticmethod
    def spoil(env: LayerwiseCompressionEnv) -> None:
        """Change the live network such that everything after it is different."""
        with torch.no_grad():
            for parameter in env.live_model().parameters():
                parameter.add_(0.1)

    @pytest.mark.parametrize("kind", slow_but(("magnitude", "bits"), KINDS))
    @pytest.mark.parametrize("n_before", [0, 1, 2])
    def test_a_change_takes_effect_and_ends_with_the_episode(
        self, kind: str, n_before: int
    ) -> None:
        episode = [0.5, -0.5, 0.2, 0.4]
        clean = play(make(kind, store=None), episode)

        def run(env: LayerwiseCompressionEnv, times: int) -> list[Result]:
            results = []
            for _ in range(times):
                env.reset(seed=7)
                env.forget_evaluations()
                texts = take(env, episode[:n_before])
                self.spoil(env)
                texts += take(env, episode[n_before:])
                results.append((texts, dict(env.compressed_model().state_dict())))
            return results

        (changed,) = run(make(kind, store=None), 1)
        known = make(kind)
        assert_same(play(known, episode), clean)  # fills the store and the snapshots
        n_known = (known.n_lookups, known.n_hits)
        for result in run(known, 2):
            assert_same(result, changed)
        n_after = known.n_lookups - n_known[0]
        assert n_after == known.n_hits - n_known[1] == 2 * n_before
        known.forget_evaluations()
        assert_same(play(known, episode), clean)
        fresh = make(kind)
        for result in run(fresh, 2):
            assert_same(result, changed)
        fresh.forget_evaluations()
        assert_same(play(fresh, episode), clean)
        assert any(
            not torch.equal(a, b)
            for a, b in zip(changed[1].values(), clean[1].values(), strict=True)
            if a.shape == b.shape
        )

    def test_a_network_kept_beyond_its_episode_is_of_no_consequence(self) -> None:
        env = make("magnitude")
        expected = play(make("magnitude", store=None), [0.5] * 4)
        env.reset()
        take(env, [0.5])
        live = env.live_model()
        env.reset()
        for parameter in live.parameters():
            nn.init.zeros_(parameter)
        env.forget_evaluations()
        assert_same(play(env, [0.5] * 4), expected)

    def test_it_is_the_network_itself(self) -> None:
        env = make("bits")
        env.reset()
        take(env, [0.5])
        live = env.live_model()
        assert env.live_model() is live
        take(env, [0.5])
        assert env.live_model() is live
        assert env.compressed_model() is not live


class TestSnapshots:
    def test_a_miss_computes_the_layers_after_the_longest_known_prefix(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        env = make("bits")
        env._networks.copying_share = math.inf  # however long a copy takes here
        done: list[int] = []
        finetune = env.task.finetune

        def counting(model: nn.Module, n_steps: int, generator: torch.Generator) -> None:
            done.append(1)
            finetune(model, n_steps, generator)

        monkeypatch.setattr(env.task, "finetune", counting)

        def n_finetuned(episode: Episode) -> int:
            done.clear()
            env.reset()
            take(env, episode)
            return len(done)

        assert n_finetuned([1.0, 1.0, 1.0, 1.0]) == 4
        assert n_finetuned([1.0, 1.0, 1.0, 1.0]) == 0
        assert n_finetuned([1.0, 1.0, -1.0, -1.0]) == 2
        assert n_finetuned([1.0, 1.0, -1.0]) == 0
        assert n_finetuned([-1.0, 1.0, 1.0, 1.0]) == 4
        env._networks.snapshots.clear()
        # Three steps are known, the network before the fourth is not.
        assert n_finetuned([1.0, 1.0, 1.0, -1.0]) == 4

    def test_the_last_network_is_at_hand_without_snapshots(self) -> None:
        env = make("bits", snapshot_bytes=0)
        env.reset()
        take(env, [0.5] * 8)
        advanced = env.step_seconds
        env.compressed_model()
        assert env.step_seconds == advanced
        assert len(env._networks.snapshots) == 0

    def test_bytes_are_bounded(self) -> None:
        bound = 3 * 4 * sum(p.numel() for p in seeded(BranchedNet).parameters())
        env = make("magnitude", snapshot_bytes=bound)
        env._networks.copying_share = math.inf
        for episode in EPISODES:
            play(env, episode)
            assert env._networks.snapshots.n_bytes <= bound
        assert len(env._networks.snapshots) > 1

    def test_there_are_none_without_a_store(self) -> None:
        env = make("magnitude", store=None)
        play(env, [0.5] * 4)
        assert len(env._networks.snapshots) == 0


class TestScorers:
    def test_without_a_fingerprint_it_is_always_asked(self, tmp_path: Path) -> None:
        answers = iter([0.1, 0.2, 0.3])
        with closing(make(scorer=lambda _: next(answers), store=tmp_path / "store")) as env:
            accuracies = [json.loads(play(env, [0.5])[0][-1])[-1]["accuracy"] for _ in range(3)]
        assert accuracies == [0.1, 0.2, 0.3]
        assert not (tmp_path / "store").exists()

    def test_no_name_is_no_fingerprint(self) -> None:
        scorer = Named(None)
        env = make(scorer=scorer)
        play(env, [0.5])
        play(env, [0.5])
        assert scorer.n_calls == 2
        assert env.store is None

    def test_with_a_fingerprint_it_is_asked_once(self, tmp_path: Path) -> None:
        scorers = [Named(), Named(), Named("other")]
        for scorer in scorers:
            with closing(make(scorer=scorer, store=tmp_path / "store")) as env:
                play(env, [0.5] * 4)
                play(env, [0.5] * 4)
        assert [scorer.n_calls for scorer in scorers] == [4, 0, 4]

    def test_a_fingerprint_that_is_not_a_string_is_refused(self) -> None:
        with pytest.raises(TypeError, match="fingerprint must be a string, got 3"):
            make(scorer=Named(3))


class Shift:
    """A training loop that counts how often it is called."""

    def __init__(self, name: Any = "shift") -> None:
        self.fingerprint = name
        self.n_calls = 0

    def __call__(self, model: nn.Module, n_steps: int) -> None:
        self.n_calls += 1
        for parameter in model.parameters():
            parameter.data += 0.01 * n_steps * torch.randn(parameter.shape)


class TestFinetuners:
    @pytest.mark.parametrize("kind", ["magnitude", "bits"])
    def test_each_step_calls_it_and_repeats(self, kind: str) -> None:
        finetuner, actions = Shift(None), [0.5, 0.1]
        envs = [make(kind, finetuner=finetuner) for _ in range(2)]
        one, again = (play(env, actions) for env in envs)
        assert (finetuner.n_calls, envs[0].store) == (4, None)
        assert_same(one, again)
        for options in ({}, {"finetuner": finetuner, "seed": 1}):
            assert one[0] != play(make(kind, **options), actions)[0]

    def test_with_a_fingerprint_results_are_stored(self, tmp_path: Path) -> None:
        finetuners = [Shift(), Shift(), Shift("other")]
        results = []
        for finetuner in finetuners:
            with closing(make(finetuner=finetuner, store=tmp_path / "store")) as env:
                env.reset()
                results.append(take(env, [0.5, 0.1]))
        assert [finetuner.n_calls for finetuner in finetuners] == [2, 0, 2]
        assert results[0] == results[1]

    def test_a_store_needs_both_names(self) -> None:
        assert make(finetuner=Shift(), scorer=Named()).store is not None
        assert make(finetuner=Shift(), scorer=Named(None)).store is None
        assert make(finetuner=Shift(None), scorer=Named()).store is None

    def test_at_the_end_of_the_episode_alone_if_wished(self) -> None:
        finetuner = Shift()
        env = make("bits", finetuner=finetuner, finetune_at="episode")
        play(env, [0.5] * len(env.walk))
        assert finetuner.n_calls == 1

    def test_what_cannot_be_called_is_refused(self) -> None:
        with pytest.raises(TypeError, match=r"^finetuner must be a function of a network, got 3$"):
            make(finetuner=3)
        with pytest.raises(TypeError, match="the finetuner's fingerprint must be a string, got 3"):
            make(finetuner=Shift(3))
