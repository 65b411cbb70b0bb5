"""How is a convolutional network compressed layer by layer? Gymnasium environments and parts."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from gymnasium import register

from compress_env.data.bundle import DataBundle, load_data, make_data_bundle
from compress_env.envs import (
    LayerContext,
    LayerState,
    PotentialReward,
    PruningEnv,
    QuantizationEnv,
    SeveralBudgets,
)
from compress_env.envs.workers import make_actors
from compress_env.quantization.export import export_onnx
from compress_env.quantization.fake_quant import bake
from compress_env.quantization.packing import load, save
from compress_env.store.store import TransitionStore
from compress_env.task.rewards import RewardInput

if TYPE_CHECKING:
    from experiments.compress.call import CompressionResult, compress

__all__ = [
    "CompressionResult",
    "DataBundle",
    "LayerContext",
    "LayerState",
    "PotentialReward",
    "PruningEnv",
    "QuantizationEnv",
    "RewardInput",
    "SeveralBudgets",
    "TransitionStore",
    "bake",
    "compress",
    "export_onnx",
    "load",
    "load_data",
    "make_actors",
    "make_data_bundle",
    "save",
]

__version__ = version("compress-env")


def __getattr__(name: str) -> Any:
    """Import what needs agents and experiments only where it is used (PEP 562)."""
    if name in ("CompressionResult", "compress"):
        from experiments.compress import call

        return getattr(call, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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

# The deep tasks: small images, few minibatches, and accuracy measured at an episode's end alone, so
# that an episode takes a fraction of a second.
_DEEP: dict[str, Any] = {
    "data": "digits16",
    "finetune_at": "episode",
    "finetune_config": {"batch_size": 32, "learning_rate": 0.02, "batch_norm_batches": 2},
    "reward": "err",
    "reward_at": "episode",
    "snapshot_bytes": 0,
}
_DEEP_PRUNING: dict[str, Any] = _DEEP | {"method": "magnitude", "finetune_steps": 4}
_DEEP_QUANTIZATION: dict[str, Any] = _DEEP | {"finetune_steps": 1}

register(
    id="compress_env/PruneVGG8Digits-v0",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs=_DEEP_PRUNING | {"model": "vgg8", "flops_budget": 0.2},
)
register(
    id="compress_env/QuantizeVGG8Digits-v0",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs=_DEEP_QUANTIZATION | {"model": "vgg8", "size_budget": 0.045},
)
register(
    id="compress_env/PruneResNet20Digits-v0",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs=_DEEP_PRUNING | {"model": "resnet20", "flops_budget": 0.35},
)
register(
    id="compress_env/QuantizeResNet20Digits-v0",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs=_DEEP_QUANTIZATION | {"model": "resnet20", "size_budget": 0.046},
)
register(
    id="compress_env/PruneMobileNetV2Digits-v0",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs=_DEEP_PRUNING | {"model": "mobilenet_v2_narrow", "flops_budget": 0.5},
)
register(
    id="compress_env/QuantizeMobileNetV2Digits-v0",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs=_DEEP_QUANTIZATION | {"model": "mobilenet_v2_narrow", "size_budget": 0.1925},
)
register(
    id="compress_env/PruneDenseNetDigits-v0",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs=_DEEP_PRUNING | {"model": "densenet_small", "flops_budget": 0.35},
)
register(
    id="compress_env/QuantizeDenseNetDigits-v0",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs=_DEEP_QUANTIZATION | {"model": "densenet_small", "size_budget": 0.118},
)

# The second version: other minibatches in every episode, so that no allocation wins by one order of
# them, and little luck in each: few but large minibatches. The digits are as large as they are
# stored and lie channels last, which pays for these, and more of them validate and test.
_FAIR_FINETUNING: dict[str, Any] = {
    "batch_size": 256,
    "batch_norm_batches": 1,
    "channels_last": True,
}
_FAIR: dict[str, Any] = {
    "finetune_at": "episode",
    "reward": "err",
    "reward_at": "episode",
    "transition_noise": True,
    "prior": "uniform",
    "snapshot_bytes": 0,
}
_FAIR_PRUNING: dict[str, Any] = _FAIR | {
    "method": "magnitude",
    "finetune_steps": 2,
    "finetune_config": _FAIR_FINETUNING | {"learning_rate": 0.04},
}
_FAIR_QUANTIZATION: dict[str, Any] = _FAIR | {
    "finetune_steps": 1,
    "finetune_config": _FAIR_FINETUNING | {"learning_rate": 0.02},
}

register(
    id="compress_env/PruneLeNet5Digits-v1",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs=_FAIR_PRUNING | {"model": "lenet5", "data": "digits32", "flops_budget": 0.164},
)
register(
    id="compress_env/QuantizeLeNet5Digits-v1",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs=_FAIR_QUANTIZATION | {"model": "lenet5", "data": "digits32", "size_budget": 0.045},
)
register(
    id="compress_env/PruneLeNet5MNIST-v1",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs=_FAIR_PRUNING
    | {"model": "lenet5", "data": "mnist", "flops_budget": 0.164, "finetune_steps": 8},
)
register(
    id="compress_env/QuantizeLeNet5MNIST-v1",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs=_FAIR_QUANTIZATION | {"model": "lenet5", "data": "mnist", "size_budget": 0.045},
)
register(
    id="compress_env/PruneVGG8Digits-v1",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs=_FAIR_PRUNING | {"model": "vgg8", "data": "digits8", "flops_budget": 0.2},
)
register(
    id="compress_env/QuantizeVGG8Digits-v1",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs=_FAIR_QUANTIZATION | {"model": "vgg8", "data": "digits8", "size_budget": 0.045},
)
register(
    id="compress_env/PruneResNet20Digits-v1",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs=_FAIR_PRUNING | {"model": "resnet20", "data": "digits8", "flops_budget": 0.25},
)
register(
    id="compress_env/QuantizeResNet20Digits-v1",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs=_FAIR_QUANTIZATION | {"model": "resnet20", "data": "digits8", "size_budget": 0.046},
)
register(
    id="compress_env/PruneMobileNetV2Digits-v1",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs=_FAIR_PRUNING
    | {"model": "mobilenet_v2_narrow", "data": "digits8", "flops_budget": 0.45},
)
register(
    id="compress_env/QuantizeMobileNetV2Digits-v1",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs=_FAIR_QUANTIZATION
    | {"model": "mobilenet_v2_narrow", "data": "digits8", "size_budget": 0.1925},
)
register(
    id="compress_env/PruneDenseNetDigits-v1",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs=_FAIR_PRUNING | {"model": "densenet_small", "data": "digits8", "flops_budget": 0.3},
)
register(
    id="compress_env/QuantizeDenseNetDigits-v1",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs=_FAIR_QUANTIZATION
    | {"model": "densenet_small", "data": "digits8", "size_budget": 0.118},
)

# ResNet-20 on CIFAR-10, whose images do not come with the package: they lie in `data_root`.
_CIFAR: dict[str, Any] = {"model": "resnet20", "data": "cifar10"}

register(
    id="compress_env/PruneResNet20CIFAR10-v1",
    entry_point="compress_env.envs.pruning:PruningEnv",
    kwargs=_FAIR_PRUNING | _CIFAR | {"flops_budget": 0.3, "finetune_steps": 12},
)
register(
    id="compress_env/QuantizeResNet20CIFAR10-v1",
    entry_point="compress_env.envs.quantization:QuantizationEnv",
    kwargs=_FAIR_QUANTIZATION | _CIFAR | {"size_budget": 0.1},
)
