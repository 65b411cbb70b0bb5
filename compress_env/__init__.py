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
