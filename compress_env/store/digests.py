"""Digests of values, data sets and the code that augments images.

Two digests are equal only if what they stand for is. What cannot be told apart reliably (an open
file, a generator, code that looks up its names at run time, an object written in C) gets a digest
that is different each time, so that nothing is ever mistaken for something else.
"""

from __future__ import annotations

import dataclasses
import dis
import enum
import functools
import hashlib
import os
import site
import sys
import sysconfig
import types
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Code", "digest", "file_stamps", "identify"]

# Names through which code reaches what its own text does not show.
_OPAQUE_NAMES = {"__import__", "eval", "exec", "globals", "input", "locals", "open", "vars"}
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE, which every class made by Python code has
# An instance of more bytes than these has slots or a part in C that its dict does not show.
_PLAIN_SIZE = object.__basicsize__ + 16
# What has no identity that matters: others are told apart from their equals.
_VALUES = (
    bool, int, float, complex, str, bytes, tuple, frozenset, type(None), type(Ellipsis), enum.Enum,
    torch.dtype, torch.device, np.generic, np.dtype, types.CodeType, types.MethodType,
    types.BuiltinFunctionType, types.MappingProxyType, property, staticmethod, classmethod,
)  # fmt: skip
# What a class's namespace holds beside its own code and constants.
_BOOKKEEPING = {
    "__abstractmethods__", "__annotations__", "__dataclass_fields__", "__dataclass_params__",
    "__dict__", "__doc__", "__firstlineno__", "__match_args__", "__module__", "__orig_bases__",
    "__parameters__", "__qualname__", "__slotnames__", "__static_attributes__", "__weakref__",
    "_abc_impl",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Code:
    """Marks a value that may hold code: where it cannot be identified, a digest is unique."""

    value: Any
    """Any callable or object."""


def digest(*parts: Any) -> str:
    """Return a hex sha256 of values, the same in every process and on every device.

    Args:
        parts: Numbers, strings, bytes, tensors, arrays, containers of these, and `Code`.

    Raises:
        TypeError: If a part outside `Code` cannot be identified.
    """
    encoder = _Encoder()
    for part in parts:
        encoder.write("part", b"")
        if isinstance(part, Code):
            encoder.write("code", (identify(part.value) or uuid.uuid4().hex).encode())
        else:
            encoder.feed(part)
    return encoder.hash.hexdigest()


def file_stamps(paths: Iterable[str | os.PathLike[str]]) -> list[tuple[str | int, ...]]:
    """Return what a file's content changes with: path, size, times of change in ns, and inode.

    Whoever changes a file can set its time of modification, but not that of its inode's change.

    Raises:
        OSError: If a file is not there.
    """
    files = [(os.path.abspath(path), os.stat(path)) for path in paths]
    return [(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for path, s in files]


def identify(value: Any) -> str | None:
    """Return the digest of a value that may hold code, None where it cannot be identified."""
    encoder = _Encoder()
    try:
        encoder.feed(value)
    except Exception:  # a value is asked for its parts, whose code may do anything
        return None
    return encoder.hash.hexdigest()


class _Encoder:
    """Feeds values to a hash, each with its kind and its length, so that no two read the same."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        # What has been fed, which may be met again, also within itself; kept, as its id is.
        self._fed: dict[int, tuple[int, Any]] = {}

    def write(self, kind: str, content: Any) -> None:
        """Feed bytes or a contiguous array."""
        self.hash.update(f"{kind}:{memoryview(content).nbytes}:".encode())
        self.hash.update(content)

    def feed(self, value: Any) -> None:
        """Feed any value.

        Raises:
            TypeError: If it cannot be identified.
        """
        number, _ = self._fed.get(id(value), (None, None))
        if number is not None:
            return self.write("again", str(number).encode())
        if not isinstance(value, _VALUES):
            self._fed[id(value)] = (len(self._fed), value)
        if not (self._feed_plain(value) or self._feed_array(value) or self._feed_code(value)):
            self._feed_object(value)

    def _feed_plain(self, value: Any) -> bool:
        """Feed a constant or a container; return whether it was one."""
        if value is None or value is Ellipsis or type(value) in (bool, int, float, complex, str):
            self.write(type(value).__name__, repr(value).encode("utf-8", "surrogatepass"))
        elif type(value) in (bytes, bytearray):
            self.write("bytes", value)
        elif isinstance(value, enum.Enum):
            self._feed_all("enum", [_name_of(type(value)), value.name, value.value])
        elif type(value) in (tuple, list, torch.Size):
            self._feed_all(type(value).__name__, value)
        elif type(value) in (dict, OrderedDict, types.MappingProxyType):
            self._feed_all("dict", [x for item in value.items() for x in item])
        elif type(value) in (set, frozenset):
            # Their order is not the same in every process.
            self._feed_all(type(value).__name__, sorted(_value_digest(x) for x in value))
        else:
            return False
        return True

    def _feed_array(self, value: Any) -> bool:
        """Feed a tensor, an array or a dtype; return whether it was one."""
        if type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided:
            flat = value.detach().cpu().contiguous().reshape(-1)
            self.write(f"tensor {value.dtype} {tuple(value.shape)}", flat.view(torch.uint8).numpy())
        elif type(value) is np.ndarray and not value.dtype.hasobject:
            self.write(f"array {value.dtype.descr} {value.shape}", np.ascontiguousarray(value))
        elif isinstance(value, np.generic | np.dtype | torch.dtype | torch.device):
            self.write(_name_of(type(value)), repr(value).encode())
        else:
            return False
        return True

    def _feed_code(self, value: Any) -> bool:
        """Feed a function, a class, a module or a code object; return whether it was one."""
        if isinstance(value, types.FunctionType):
            self._feed_function(value)
        elif isinstance(value, types.CodeType):
            self._feed_all("code", [value.co_code, value.co_consts, value.co_names])
            self._feed_all("arguments", [value.co_varnames, value.co_argcount, value.co_flags])
            self.write("handlers", getattr(value, "co_exceptiontable", b""))
        elif isinstance(value, types.MethodType):
            self._feed_all("method", [value.__func__, value.__self__])
        elif type(value) is functools.partial:
            self._feed_all("partial", [value.func, value.args, value.keywords])
        elif isinstance(value, staticmethod | classmethod):
            self._feed_all(type(value).__name__, [value.__func__])
        elif isinstance(value, property):
            self._feed_all("property", [value.fget, value.fset])
        elif isinstance(value, types.BuiltinFunctionType):
            self._feed_builtin(value)
        elif isinstance(value, types.ModuleType):
            self._feed_all("module", [value.__name__, _require_version(value.__name__)])
        elif isinstance(value, type):
            self._feed_class(value)
        else:
            return False
        return True

    def _feed_all(self, kind: str, values: Iterable[Any]) -> None:
        values = list(values)
        self.write(kind, str(len(values)).encode())
        for value in values:
            self.feed(value)

    def _feed_function(self, function: types.FunctionType) -> None:
        module = function.__module__ or ""
        self._feed_all("function", [module, function.__qualname__])
        try:
            captured = [cell.cell_contents for cell in function.__closure__ or ()]
        except ValueError:
            raise TypeError(f"{function.__qualname__} has an empty cell") from None
        self._feed_all("captured", [function.__defaults__, function.__kwdefaults__, *captured])
        version = _version(module)
        if version is not None:
            self.write("version", version.encode())
        else:
            self._feed_all("body", [function.__code__, vars(function)])
            self._feed_globals(function)

    def _feed_globals(self, function: types.FunctionType) -> None:
        """Feed what the code's global names stand for now."""
        for name in sorted(set(_global_names(function.__code__))):
            if name in function.__globals__:
                self._feed_all("global", [name, function.__globals__[name]])
            elif name in _OPAQUE_NAMES:
                raise TypeError(f"{function.__qualname__} uses {name}()")

    def _feed_builtin(self, function: types.BuiltinFunctionType) -> None:
        owner = function.__self__
        module = owner.__name__ if isinstance(owner, types.ModuleType) else function.__module__
        if owner is not None and not isinstance(owner, types.ModuleType | type):
            self.feed(owner)
        names = [module, function.__qualname__, _require_version(module or "builtins")]
        self._feed_all("builtin", names)

    def _feed_class(self, kind: type) -> None:
        self._feed_all("class", [_module_name(kind), kind.__qualname__])
        version = _version(kind.__module__)
        if version is not None:
            self.write("version", version.encode())
            return self._feed_all("patches", _patches(kind))
        if not kind.__flags__ & _HEAP_TYPE:
            raise TypeError(f"{kind.__qualname__} is not made by Python code")
        for name, value in sorted(vars(kind).items()):
            if name not in _BOOKKEEPING and not _is_generated(kind, value):
                self._feed_all("attribute", [name, value])
        self._feed_all("bases", [base for base in kind.__bases__ if base is not object])

    def _feed_object(self, value: Any) -> None:
        """Feed an instance of a class made by Python code: the class and all its attributes."""
        kind = type(value)
        by_python = all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__)
        if not (by_python and kind.__basicsize__ <= _PLAIN_SIZE and hasattr(value, "__dict__")):
            raise TypeError(f"a {kind.__qualname__} cannot be identified")
        self._feed_all("object", [kind, dict(value.__dict__)])


def _patches(kind: type) -> list[Any]:
    """Return the functions that other code has put into a class of an installed package."""
    root = kind.__module__.partition(".")[0]
    return [
        [name, value]
        for name, value in sorted(vars(kind).items())
        if isinstance(value, types.FunctionType) and _version(value.__module__ or "") is None
        if (value.__module__ or "").partition(".")[0] != root
    ]


def _value_digest(value: Any) -> str:
    encoder = _Encoder()
    encoder.feed(value)
    return encoder.hash.hexdigest()


def _name_of(kind: type) -> str:
    return f"{_module_name(kind)}.{kind.__qualname__}"


def _module_name(kind: type) -> str:
    """Return the module of a class; spawned processes call a script's by another name."""
    return "__main__" if kind.__module__ == "__mp_main__" else kind.__module__


def _is_generated(kind: type, value: Any) -> bool:
    """Whether `dataclass` wrote a method; the fields say all about it."""
    code = getattr(value, "__code__", None) or getattr(
        getattr(value, "__wrapped__", None), "__code__", None
    )
    return dataclasses.is_dataclass(kind) and code is not None and code.co_filename == "<string>"


def _global_names(code: types.CodeType) -> Iterator[str]:
    """Yield the global names that code reads, nested functions included.

    Raises:
        TypeError: If it imports something that is not an installed package.
    """
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
        elif instruction.opname == "IMPORT_NAME":
            _require_version(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_names(constant)


def _require_version(module: str) -> str:
    version = _version(module)
    if version is None:
        raise TypeError(f"the code of {module} has no version")
    return version


@functools.cache
def _version(module: str) -> str | None:
    """Return the version of the installed package that a module belongs to; None for other code.

    A package that is installed in place can change without its version and counts as other code.
    """
    root = module.partition(".")[0]
    if root in sys.stdlib_module_names and root != "__main__":
        return sys.version
    package = sys.modules.get(root)
    file, version = getattr(package, "__file__", None), getattr(package, "__version__", None)
    if file is None or version is None:
        return None
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *_site_folders()]
    inside = any(os.path.realpath(file).startswith(os.path.realpath(f) + os.sep) for f in folders)
    return str(version) if inside else None


def _site_folders() -> list[str]:
    """Return the other folders that packages are installed in."""
    return [*site.getsitepackages(), site.getusersitepackages()]
