"""Images in the forms in which people have them, made into a `DataBundle`.

Shapes: n images, C channels, H rows, W columns.
"""

from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    default_collate,
)

from compress_env.data.augment import Augment
from compress_env.data.bundle import DATASETS, DataBundle, load_data, make_data_bundle

__all__ = ["Images", "as_bundle"]

Images = Dataset[Any] | DataLoader[Any] | Sequence[Tensor] | str | Path
"""A map-style data set of (image tensor, label), a `DataLoader` over one or, by a
`SubsetRandomSampler`, over a part of one, a pair of tensors (images (n, C, H, W), labels (n,)), or
the path of a tree `CLASS/IMAGE`."""


def as_bundle(
    train: DataBundle | Images,
    test: Images | None = None,
    *,
    name: str = "custom",
    num_classes: int | None = None,
    image_size: int | None = None,
    augment: Augment | None = None,
    num_workers: int = 0,
    seed: int = 0,
) -> DataBundle:
    """Make a bundle of whatever holds the images.

    Args:
        train: Training images; a `DataBundle` is returned as it is. Without `test`: the name of a
            data set, or a folder with trees `train`, `val` and `test` (or one of the last two) or
            with classes alone, see `compress_env.data.bundle.load_data`.
        test: Images to be split into validation and test images, in any of the same forms.
        name: Name of the bundle, used in file names.
        num_classes: Number of classes; by default one more than the largest label.
        image_size: Side in pixels to which the images of a folder are scaled; as they are when
            None.
        augment: Augmentation of the training minibatches. Data sets often have their own.
        num_workers: Number of reading processes of data sets that are not in memory; that of
            `train` where it is a `DataLoader`.
        seed: Seed of the splits.

    Raises:
        TypeError: If something is in no such form.
        ValueError: If images or labels are not as they should be.
        FileNotFoundError: If there is no such folder.
    """
    if isinstance(train, DataBundle):
        if test is not None:
            raise TypeError("a DataBundle has its own test images: leave test out")
        return train
    if test is None:
        if not isinstance(train, str | Path):
            raise TypeError(
                "expected test images beside the training images; only a DataBundle, a folder or "
                "a name holds both"
            )
        return _load(train, image_size, seed)
    if isinstance(train, DataLoader):
        num_workers = num_workers or train.num_workers
    datasets = _dataset("train", train, image_size), _dataset("test", test, image_size)
    _check_classes(*datasets)
    return make_data_bundle(
        *datasets,
        name=name,
        num_classes=num_classes,
        augment=augment,
        num_workers=num_workers,
        seed=seed,
    )


def _load(where: str | Path, image_size: int | None, seed: int) -> DataBundle:
    if str(where) in DATASETS and str(where) != "folder":
        return load_data(str(where), size=image_size, seed=seed)
    return load_data("folder", data_root=where, size=image_size, seed=seed)


def _dataset(role: str, images: Images, image_size: int | None) -> Dataset[Any]:
    """Return a map-style data set.

    Raises:
        TypeError: If nobody can make one of it.
    """
    if isinstance(images, DataLoader):
        images = _behind(role, images)
    if isinstance(images, str | Path):
        return _tree(Path(images).expanduser(), image_size)
    if isinstance(images, Sequence) and not isinstance(images, Dataset):
        return _pair(role, images)
    is_map = hasattr(images, "__getitem__") and hasattr(images, "__len__")
    if isinstance(images, IterableDataset) or not is_map:
        raise TypeError(
            f"{role} must be a map-style data set (with __getitem__ and __len__), a DataLoader "
            f"over one, a pair of tensors or a folder, got {type(images).__name__}"
        )
    return images


def _behind(role: str, loader: DataLoader[Any]) -> Dataset[Any]:
    """Return the images that a loader yields in one pass, each by itself.

    Raises:
        TypeError: If that cannot be told.
    """
    if loader.collate_fn is not default_collate:
        raise TypeError(
            f"the DataLoader of {role} has a collate_fn, which single images know nothing of: "
            "give a data set that yields (image tensor, label)"
        )
    dataset: Dataset[Any] = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return dataset  # which is refused as such
    batches = loader.batch_sampler
    sampler: Any = batches.sampler if type(batches) is BatchSampler else batches or loader.sampler
    if type(sampler) is SubsetRandomSampler:
        return _part(role, dataset, list(sampler.indices))
    if type(sampler) in (SequentialSampler, RandomSampler):
        n = len(sampler.data_source)
        return dataset if n == len(dataset) else _part(role, dataset, range(n))
    kind = "batch_sampler" if sampler is batches else "sampler"
    raise TypeError(
        f"the DataLoader of {role} has a {kind} ({type(sampler).__name__}) of which nobody knows "
        "which images it chooses: give the data set itself, or a Subset of it"
    )


def _part(role: str, dataset: Dataset[Any], indices: Sequence[int]) -> Dataset[Any]:
    n = len(cast(Sized, dataset))
    beyond = next((int(index) for index in indices if not -n <= index < n), None)
    if beyond is not None:
        raise ValueError(f"the sampler of {role} chooses image {beyond} of {n}")
    return Subset(dataset, indices)


def _pair(role: str, tensors: Sequence[Any]) -> Dataset[Any]:
    if len(tensors) != 2 or not all(isinstance(each, Tensor) for each in tensors):
        kinds = ", ".join(type(each).__name__ for each in tensors[:3])
        raise TypeError(
            f"{role} must be two tensors, images (n, C, H, W) and labels (n,), got {kinds}"
        )
    if len(tensors[0]) != len(tensors[1]):
        raise ValueError(f"{role} has {len(tensors[0])} images and {len(tensors[1])} labels")
    return TensorDataset(*tensors)


def _check_classes(train: Dataset[Any], test: Dataset[Any]) -> None:
    """Check that the numbers of two trees' classes stand for the same classes.

    Raises:
        ValueError: If they do not.
    """
    names = [getattr(dataset, "classes", None) for dataset in (train, test)]
    if None not in names and list(names[0]) != list(names[1]):  # type: ignore[arg-type]
        differing = sorted(set(names[0]) ^ set(names[1]))  # type: ignore[arg-type]
        raise ValueError(
            f"train and test have different classes, {', '.join(differing[:3])} in one only"
        )


def _tree(root: Path, image_size: int | None) -> Dataset[Any]:
    """Return the images of a tree `CLASS/IMAGE`, uint8 (3, H, W)."""
    from torchvision.transforms import v2

    from compress_env.data.image_folders import ImageTree

    if not root.is_dir():
        raise FileNotFoundError(f"no folder {str(root)!r}")
    tree = ImageTree(root, allow_empty=False)
    sized = [] if image_size is None else [v2.Resize(image_size), v2.CenterCrop(image_size)]
    tree.transform = v2.Compose([*sized, v2.PILToTensor()])
    images: Dataset[Any] = tree
    return images
