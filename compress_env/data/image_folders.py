"""Folders of images, one folder for each class, and the cache of what they decode to.

Shapes: n images, C channels, H rows, W columns.
"""

import functools
import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import datasets
from torchvision.transforms import v2

from compress_env.errors import reason_of
from compress_env.networks.checkpoints import cache_dir, cache_lock, write_to_cache

__all__ = [
    "ImageTree",
    "check_same_classes",
    "decode",
    "decode_all",
    "decode_split",
    "open_image",
]

_logger = logging.getLogger(__name__)

_BOOKKEEPING = "__MACOSX"
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_N_NAMED = 3  # classes in an error
_SIXTEEN_BITS_AS_32 = ("PNG", "PPM")  # formats whose images of mode I hold 0..65535


class ImageTree(datasets.ImageFolder):  # type: ignore[misc]
    """A tree of `CLASS/IMAGE` without what begins with a dot, as `.ipynb_checkpoints` does.

    A folder below a class, by whatever links, is read once; those that hold the class are not.

    Args:
        root: The tree.
        allow_empty: Whether a class may be without images.

    Raises:
        FileNotFoundError: If there are no classes.
        ValueError: If a class has no images, or none has.
    """

    def __init__(self, root: Path, *, allow_empty: bool) -> None:
        """List the images."""
        super().__init__(
            root,
            loader=open_image,
            is_valid_file=functools.partial(_is_image, root),
            allow_empty=True,
        )
        counts = np.bincount(np.array(self.targets, dtype=int), minlength=len(self.classes))
        empty = [name for name, n in zip(self.classes, counts, strict=True) if n == 0]
        if not self.samples or (empty and not allow_empty):
            place = root / empty[0] if self.samples else root
            kinds = ", ".join(datasets.folder.IMG_EXTENSIONS)
            raise ValueError(f"folder: {place} has no images ({kinds}): add some or delete it")

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """Return the names of the classes, sorted, and their numbers."""
        entries = (entry for entry in os.scandir(directory) if entry.is_dir())
        classes = sorted(entry.name for entry in entries if not _is_hidden(entry.name))
        if not classes:
            raise FileNotFoundError(f"folder: expected a folder for each class in {directory}")
        return classes, {name: number for number, name in enumerate(classes)}

    @staticmethod
    def make_dataset(
        directory: str | Path,
        class_to_idx: dict[str, int],
        extensions: tuple[str, ...] | None = None,
        is_valid_file: Callable[[str], bool] | None = None,
        allow_empty: bool = False,
    ) -> list[tuple[str, int]]:
        """Return path and class of each image, in torchvision's order; see the base class."""
        assert is_valid_file is not None
        return [
            (path, number)
            for name, number in sorted(class_to_idx.items())
            for path in sorted_files(Path(directory) / name)
            if is_valid_file(path)
        ]


def sorted_files(root: Path) -> Iterator[str]:
    """Yield the paths of all files below a folder, also behind links, no folder's twice.

    Folders come in the order of their paths, and files in that of their names.
    """
    seen = {_identity(each) for each in root.resolve().parents}
    folders = []
    for where, names, files in os.walk(root, followlinks=True):
        identity = _identity(where)
        if identity in seen:
            names.clear()
            continue
        seen.add(identity)
        names.sort()
        folders.append((where, sorted(files)))
    for where, files in sorted(folders):
        yield from (os.path.join(where, name) for name in files)


def _identity(folder: str | Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def open_image(path: str) -> Image.Image:
    """Return an image as RGB, 8 bits a channel; those of 16 bits are scaled, not cut off.

    Raises:
        OSError: If it is no image, or no regular file.
        ValueError: If nobody knows what its largest value stands for.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is not a regular file")
    with open(path, "rb") as file:
        image: Image.Image = Image.open(file)
        is_32 = image.mode == "I" and image.format in _SIXTEEN_BITS_AS_32
        if image.mode in _SIXTEEN_BITS or is_32:
            pixels = np.asarray(image).astype(np.uint32)
            # 257 * 255 = 65535; half of it is added to round.
            image = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
        elif image.mode.startswith(("I", "F")):
            raise ValueError(
                f"its pixels are numbers of mode {image.mode}, whose range is not known: save it "
                "with 8 or 16 bits a channel"
            )
        return image.convert("RGB")


def decode_all(
    tree: ImageTree, shape: tuple[int, ...], name: str | None = None
) -> NDArray[np.uint8]:
    """Return all images of a tree, (n, C, H, W), from the cache or decoded into it.

    Args:
        tree: The tree, with a transform to uint8 tensors.
        shape: Shape of one image, (C, H, W).
        name: As for :func:`decode`.

    Raises:
        ValueError: If an image cannot be read or has another shape.
    """
    path = cache_dir() / "images" / f"{_content_name(tree, shape)}.npy"
    with cache_lock(path):
        images = _read_array(path, (len(tree), *shape))
        if images is None:
            _logger.info("decoding %d images of %s", len(tree), tree.root)
            images = np.empty((len(tree), *shape), np.uint8)
            for index in range(len(tree)):
                images[index] = decode(tree, index, shape, name)
            write_to_cache(path, functools.partial(_write_array, images))
    return images


def decode_split(
    name: str, root: Path, num_classes: int, shape: tuple[int, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Decode the trees `root/train` and `root/test`.

    Args:
        name: Name of the data set that they stand for.
        root: Holds the two trees.
        num_classes: Classes that each must have.
        shape: Shape that each image must have, (C, H, W).

    Returns:
        Images (n, C, H, W), uint8, and labels (n,), int64, of each of the two.

    Raises:
        FileNotFoundError: If a tree is not there.
        ValueError: If the classes are others than expected, or an image cannot be read.
    """
    splits = ("train", "test")
    missing = [f"{split}/" for split in splits if not (root / split).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"{name}: expected a tree of train/CLASS and test/CLASS in {root}, there is no "
            f"{' and no '.join(missing)}; name another directory with data_root= (--data-root)"
        )
    trees = [ImageTree(root / split, allow_empty=False) for split in splits]
    check_same_classes(name, {"train": trees[0].classes, "test": trees[1].classes})
    for tree in trees:
        if len(tree.classes) != num_classes:
            raise ValueError(
                f"{name}: expected {num_classes} classes in train/ and test/ of {root}, got "
                f"{len(tree.classes)}"
            )
        tree.transform = v2.PILToTensor()
    return [
        (torch.from_numpy(decode_all(tree, shape, name)), torch.tensor(tree.targets))
        for tree in trees
    ]


def check_same_classes(name: str, classes: Mapping[str, Sequence[str]]) -> None:
    """Check that a label stands for the same class in all trees of a data set.

    Args:
        name: Name of the data set.
        classes: Names of the classes by tree.

    Raises:
        ValueError: If a tree lacks a class that another has.
    """
    every = set().union(*classes.values())
    lacking = {tree: sorted(every.difference(has)) for tree, has in classes.items()}
    texts = [f"{tree}/ has no {_some(names)}" for tree, names in lacking.items() if names]
    if texts:
        trees = " and ".join(f"{tree}/" for tree in classes)
        raise ValueError(f"{name}: the classes in {trees} differ: {', '.join(texts)}")


def _some(names: Sequence[str]) -> str:
    more = len(names) - _N_NAMED
    return ", ".join(names[:_N_NAMED]) + (f" and {more} more" if more > 0 else "")


def decode(
    tree: ImageTree, index: int, shape: tuple[int, ...] | None = None, name: str | None = None
) -> Tensor:
    """Return one image, (C, H, W).

    Args:
        tree: As for :func:`decode_all`.
        index: Number of the image.
        shape: Shape that it must have; any when None.
        name: Name of the data set whose images all have that shape; the first image of the tree,
            of the data set `folder`, has it when None.

    Raises:
        ValueError: If it cannot be read or has another shape.
    """
    path = tree.samples[index][0]
    try:
        image: Tensor = tree[index][0]
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        place = f"{name or 'folder'}: cannot read the image {path}"
        raise ValueError(f"{place}: {reason_of(error)}") from error
    if shape is not None and image.shape != shape:
        raise ValueError(_wrong_shape(path, tuple(image.shape), tuple(shape), name))
    return image


def _wrong_shape(
    path: str, found: tuple[int, ...], expected: tuple[int, ...], name: str | None
) -> str:
    has, option = f"{path} has shape {found}", "size= (--image-size)"
    if name is None:
        return f"folder: {has}, the first image {expected}: give all a common side with {option}"
    side = "x".join(map(str, expected[1:]))
    return (
        f"{name}: {has}, its images have {expected}: scale it to {side}, or load the tree as the "
        f"data set folder with {option}"
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == _BOOKKEEPING


def _is_image(root: Path, path: str) -> bool:
    """Whether a file below `root` is an image by its name, in no hidden folder."""
    parts = Path(path).relative_to(root).parts
    is_image = datasets.folder.has_file_allowed_extension(path, datasets.folder.IMG_EXTENSIONS)
    return is_image and not any(map(_is_hidden, parts))


def _content_name(tree: ImageTree, shape: tuple[int, ...]) -> str:
    """Return a name that follows from the bytes of all files and what is made of them.

    The times of the files do not matter.
    """
    contents = hashlib.sha256(json.dumps([shape, repr(tree.transform)]).encode())
    for path, _ in tree.samples:
        contents.update(_file_digest(path))
    return contents.hexdigest()[:32]


def _file_digest(path: str) -> bytes:
    """Return the sha256 of a file; that of nothing for what is no file, which is named later."""
    if not os.path.isfile(path):
        return hashlib.sha256().digest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _read_array(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    if not path.exists():
        return None
    try:
        # Not mapped: reading a mapped file that has been truncated kills the process.
        images: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        _logger.warning("decoding again, the cached images are not usable: %s", error)
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _write_array(images: NDArray[np.uint8], path: Path) -> None:
    with path.open("wb") as file:  # np.save would append a suffix to a bare path
        np.save(file, images, allow_pickle=False)
