"""A GPU that is none: tensors "moved" to it stay in memory, with their values, and refuse to meet those of the CPU.

Notable here:
- Real values, so that whatever a run does (autograd twice, losses read at control points, checkpoints, a coreset) runs
  to its end; FakeTensor's CUDA cannot run a backward pass where PyTorch was built with CUDA and finds no device.
- A storage carries its device. What PyTorch's own code makes on the way (of no tensor) belongs to whatever uses it.
- Rules are those of PyTorch: operands share a device but for copies, tensors without dimensions, and indices.
- `step` forbids what makes the host wait: reading a value, sizes that depend on values, copies to the CPU.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
UNDECIDED = None
"""Made by PyTorch's own code, of no tensor: it belongs to whatever uses it."""
FACTORIES = ("arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "tensor", "zeros")
RANDOM = ("rand", "randint", "randn", "randperm")
"""Functions of `torch` that make tensors of none."""
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero")
"""Operators whose caller waits for the device."""
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")


class MixedDevicesError(RuntimeError):
    """An operator got tensors of two devices."""


class HostWaitError(RuntimeError):
    """A training step waited for the device."""


class PretendedGPU:
    """Which storage lies where, and whether the host may wait."""

    def __init__(self) -> None:
        self.storages: dict[int, tuple[StorageWeakRef, torch.device | None]] = {}
        self.in_step = False
        self.seen: set[str] = set()
        """Names of the operators that ran on it."""

    def of(self, tensor: torch.Tensor) -> torch.device | None:
        """Device of a tensor; the CPU's where nothing is known."""
        found = self.storages.get(_storage(tensor).cdata)
        return CPU if found is None else found[1]

    def put(self, tensor: torch.Tensor, device: torch.device | None) -> None:
        """Declare that a tensor lies on a device."""
        storage = _storage(tensor)
        self.storages[storage.cdata] = storage, device

    @contextmanager
    def step(self, on: bool = True) -> Iterator[None]:
        """Forbid waiting for the device."""
        before, self.in_step = self.in_step, on
        try:
            yield
        finally:
            self.in_step = before

    def wait(self, what: str) -> None:
        """Raise where the host must not wait."""
        if self.in_step:
            raise HostWaitError(f"{what} waits for the device in a training step")


def _storage(tensor: torch.Tensor) -> StorageWeakRef:
    with torch._C.DisableTorchFunction():
        return StorageWeakRef(torch.Tensor.untyped_storage(tensor))


class _Operators(TorchDispatchMode):
    """Checks operands, and puts results where they are."""

    def __init__(self, gpu: PretendedGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        operands = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        name = func.overloadpacket.__name__
        device = self._device(name, args, operands)
        result = func(*args, **kwargs)
        known = {_storage(x).cdata for x in operands}
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and _storage(x).cdata not in known:
                self.gpu.put(x, device)
        return result

    def _device(self, name: str, args: Any, operands: list[torch.Tensor]) -> torch.device | None:
        if not operands:
            return UNDECIDED
        if name in ("copy_", "_foreach_copy_"):
            return self.gpu.of(operands[0])
        decisive = operands
        if name in INDEXING:
            if self.gpu.of(args[0]) == GPU:
                self._masks(name, args)
                decisive = [x for x in operands if x is args[0] or self.gpu.of(x) == GPU]
        elif len(operands) > 1:
            decisive = [x for x in operands if x.ndim] or operands
        found = {device for x in decisive if (device := self.gpu.of(x)) is not UNDECIDED}
        if len(found) > 1:
            raise MixedDevicesError(f"{name}: expected all tensors to be on the same device, found cpu and cuda:0")
        if GPU in found:
            self.gpu.seen.add(name)
            if name in WAITING:
                self.gpu.wait(name)
        for x in operands:
            if found and self.gpu.of(x) is UNDECIDED:
                self.gpu.put(x, next(iter(found)))
        return next(iter(found), UNDECIDED)

    def _masks(self, name: str, args: Any) -> None:
        if any(isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8) for x in args[1]):
            self.gpu.wait(f"{name} by a mask")


class _Functions(TorchFunctionMode):
    """Takes `device` out of calls, for nothing here can be asked of CUDA, and puts results there."""

    def __init__(self, gpu: PretendedGPU):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("to", "cpu", "cuda") and isinstance(args[0], torch.Tensor):
            return self._moved(name, args, kwargs)
        if name in ("tolist", "numpy") and self.gpu.of(args[0]) == GPU:
            if name == "numpy":
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
            self.gpu.wait(name)
        if name == "one_hot" and self.gpu.in_step and len(args) > 1 and args[1] > 0:
            with self.gpu.step(False):  # on CUDA it checks the classes there; on the CPU it reads them
                return func(*args, **kwargs)
        if (wanted := kwargs.pop("device", None)) is not None:  # torch.randn_like, Tensor.new_zeros and the like
            result = func(*args, **kwargs)
            self.gpu.put(result, _named(wanted))
            return result
        return func(*args, **kwargs)

    def _moved(self, name: str, args: Any, kwargs: Any) -> torch.Tensor:
        tensor, here = args[0], self.gpu.of(args[0])
        kwargs.pop("non_blocking", None)
        wanted = kwargs.pop("device", None) if name == "to" else name
        for value in args[1:]:
            if isinstance(value, str | torch.device):
                wanted = value
            elif isinstance(value, torch.Tensor):
                wanted, kwargs["dtype"] = self.gpu.of(value), value.dtype
            elif isinstance(value, torch.dtype):
                kwargs["dtype"] = value  # what is left are flags that change no value
        converted: torch.Tensor = torch.Tensor.to(tensor, **kwargs) if kwargs else tensor
        if wanted is None or _named(wanted) == here:
            return converted
        if here == GPU:
            self.gpu.wait("a copy to the CPU")
        result = converted.clone()
        self.gpu.put(result, _named(wanted))
        return result


def _named(device: Any) -> torch.device:
    return GPU if torch.device(device).type == "cuda" else torch.device(device)


def _factory(gpu: PretendedGPU, function: Any) -> Any:
    """`function`, whose results are put where they were asked for, in a backward pass too."""

    def make(*args: Any, **kwargs: Any) -> Any:
        device = _named(kwargs.pop("device", None) or CPU)
        if (generator := kwargs.get("generator")) is not None and generator.device.type != device.type:
            raise RuntimeError(f"Expected a '{device.type}' device type for generator but found 'cpu'")
        result = function(*args, **kwargs)
        gpu.put(result, device)
        return result

    return make


@contextmanager
def pretended_gpu() -> Iterator[PretendedGPU]:
    """Let `cuda` be a device on which everything runs that does not mix devices; autocast is that of the CPU."""
    gpu = PretendedGPU()
    autocast, fork_rng = torch.autocast, torch.random.fork_rng

    def device(tensor: torch.Tensor) -> torch.device:
        return gpu.of(tensor) or CPU

    def on_cpu(device_type: str, **options: Any) -> Any:
        return autocast("cpu", **options) if device_type in ("cuda", "cpu") else autocast(device_type, **options)

    with ExitStack() as stack:
        for target, attribute, value in (
            (torch.Tensor, "device", property(device)),
            (torch.Tensor, "is_cuda", property(lambda tensor: device(tensor) == GPU)),
            (torch.Tensor, "is_cpu", property(lambda tensor: device(tensor) == CPU)),
            (torch, "autocast", on_cpu),
            (torch.random, "fork_rng", lambda **_: fork_rng(devices=[])),
            (torch.cuda, "mem_get_info", lambda _=None: (1 << 34, 1 << 34)),
            (torch.cuda, "get_rng_state", lambda _=None: torch.get_rng_state()),
            (torch.cuda, "set_rng_state", lambda *_: None),
            (torch.cuda, "set_device", lambda _: None),
        ):
            stack.enter_context(patch.object(target, attribute, value, create=True))
        for name in FACTORIES + RANDOM:
            stack.enter_context(patch.object(torch, name, _factory(gpu, getattr(torch, name))))
        stack.enter_context(_Operators(gpu))
        stack.enter_context(_Functions(gpu))
        yield gpu
