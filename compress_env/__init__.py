"""Gymnasium environments in which an agent compresses a convolutional network layer by layer."""

from gymnasium import register

from compress_env.data import DataBundle, load_data, make_data_bundle
from compress_env.envs import LayerState, PruningEnv, QuantizationEnv
from compress_env.quantization.export import export_onnx
from compress_env.quantization.fake_quant import bake
from compress_env.quantization.packing import load, save
from compress_env.rewards import RewardInput
from compress_env.store import TransitionStore
from compress_env.workers import make_actors

__all__ = [
    "DataBundle",
    "LayerState",
    "PruningEnv",
    "QuantizationEnv",
    "RewardInput",
    "TransitionStore",
    "bake",
    "export_onnx",
    "load",
    "load_data",
    "make_actors",
    "make_data_bundle",
    "save",
]

register(
    id="compress_env/Pruning-v0",
    entry_point="compress_env.envs.pruning:PruningEnv",
)
register(
    id="compress_env/Quantization-v0",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
)
register(
    id="compress_env/PruneLeNet5Digits-v0",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs={"model": "lenet5", "data": "digits", "flops_budget": 0.164},
)
register(
    id="compress_env/QuantizeLeNet5Digits-v0",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs={"model": "lenet5", "data": "digits", "size_budget": 0.1},
)
register(
    id="compress_env/PruneLeNet5MNIST-v0",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs={"model": "lenet5", "data": "mnist", "flops_budget": 0.164},
)
register(
    id="compress_env/QuantizeLeNet5MNIST-v0",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs={"model": "lenet5", "data": "mnist", "size_budget": 0.1},
)
register(
    id="compress_env/PruneVGG8Digits-v0",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs={
        "model": "vgg8",
        "data": "digits16",
        "method": "magnitude",
        "flops_budget": 0.2,
        "finetune_steps": 4,
        "finetune_at": "episode",
        "finetune_config": {"batch_size": 32, "learning_rate": 0.02, "batch_norm_batches": 2},
        "reward": "err",
        "reward_at": "episode",
        "snapshot_bytes": 0,
    },
)
register(
    id="compress_env/QuantizeVGG8Digits-v0",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs={
        "model": "vgg8",
        "data": "digits16",
        "size_budget": 0.044,
        "finetune_steps": 1,
        "finetune_at": "episode",
        "finetune_config": {"batch_size": 32, "learning_rate": 0.02, "batch_norm_batches": 2},
        "reward": "err",
        "reward_at": "episode",
        "snapshot_bytes": 0,
    },
)
register(
    id="compress_env/PruneResNet20Digits-v0",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs={
        "model": "resnet20",
        "data": "digits16",
        "method": "magnitude",
        "flops_budget": 0.35,
        "finetune_steps": 4,
        "finetune_at": "episode",
        "finetune_config": {"batch_size": 32, "learning_rate": 0.02, "batch_norm_batches": 2},
        "reward": "err",
        "reward_at": "episode",
        "snapshot_bytes": 0,
    },
)
register(
    id="compress_env/QuantizeResNet20Digits-v0",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs={
        "model": "resnet20",
        "data": "digits16",
        "size_budget": 0.046,
        "finetune_steps": 1,
        "finetune_at": "episode",
        "finetune_config": {"batch_size": 32, "learning_rate": 0.02, "batch_norm_batches": 2},
        "reward": "err",
        "reward_at": "episode",
        "snapshot_bytes": 0,
    },
)
register(
    id="compress_env/PruneMobileNetV2Digits-v0",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs={
        "model": "mobilenet_v2_narrow",
        "data": "digits16",
        "method": "magnitude",
        "flops_budget": 0.5,
        "finetune_steps": 4,
        "finetune_at": "episode",
        "finetune_config": {"batch_size": 32, "learning_rate": 0.02, "batch_norm_batches": 2},
        "reward": "err",
        "reward_at": "episode",
        "snapshot_bytes": 0,
    },
)
register(
    id="compress_env/QuantizeMobileNetV2Digits-v0",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs={
        "model": "mobilenet_v2_narrow",
        "data": "digits16",
        "size_budget": 0.1925,
        "finetune_steps": 1,
        "finetune_at": "episode",
        "finetune_config": {"batch_size": 32, "learning_rate": 0.02, "batch_norm_batches": 2},
        "reward": "err",
        "reward_at": "episode",
        "snapshot_bytes": 0,
    },
)
register(
    id="compress_env/PruneDenseNetDigits-v0",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs={
        "model": "densenet_small",
        "data": "digits16",
        "method": "magnitude",
        "flops_budget": 0.35,
        "finetune_steps": 4,
        "finetune_at": "episode",
        "finetune_config": {"batch_size": 32, "learning_rate": 0.02, "batch_norm_batches": 2},
        "reward": "err",
        "reward_at": "episode",
        "snapshot_bytes": 0,
    },
)
register(
    id="compress_env/QuantizeDenseNetDigits-v0",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs={
        "model": "densenet_small",
        "data": "digits16",
        "size_budget": 0.118,
        "finetune_steps": 1,
        "finetune_at": "episode",
        "finetune_config": {"batch_size": 32, "learning_rate": 0.02, "batch_norm_batches": 2},
        "reward": "err",
        "reward_at": "episode",
        "snapshot_bytes": 0,
    },
)
