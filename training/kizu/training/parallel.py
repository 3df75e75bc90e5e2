"""Several processes, one per GPU, as `torchrun` starts them; with one process everything here is free."""

from __future__ import annotations

import atexit
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Processes:
    """The process itself and the others that train together with it.

    Gradients are averaged by hand after each backward pass: adversarial phases call their networks in too many ways
    for a wrapper that hooks one forward call.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        if self.world_size > 1 and not dist.is_initialized():
            # Left to the interpreter's end, the group's threads can abort a process that did its work. Destroying the
            # group joins them only if nothing else holds it, and functions of torch.distributed.nn, imported late (by
            # the first optimiser), would hold it as their default argument: hence the import before the group is made.
            import torch.distributed.nn

            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
            atexit.register(dist.destroy_process_group)

    @property
    def is_main(self) -> bool:
        """True for the one process that writes files and logs."""
        return self.rank == 0

    def device(self, wanted: str) -> torch.device:
        """Return this process's device for `auto`, `cpu` or `cuda`."""
        if wanted == "auto":
            wanted = "cuda" if torch.cuda.is_available() else "cpu"
        if wanted == "cuda":
            torch.cuda.set_device(self.local_rank)
            return torch.device("cuda", self.local_rank)
        return torch.device(wanted)

    @torch.no_grad()
    def average_gradients(self, module: nn.Module) -> None:
        """Replace each gradient by its mean over the processes."""
        if self.world_size == 1:
            return
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world_size
        for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    @torch.no_grad()
    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes."""
        if self.world_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world_size

    @torch.no_grad()
    def copy_from_main(self, module: nn.Module) -> None:
        """Give every process the main one's parameters and buffers."""
        if self.world_size > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def agree(self, save: bool, stop: bool) -> tuple[bool, bool]:
        """Agree on (save, stop): save if the main process wants to, stop if any process was asked to."""
        if self.world_size == 1:
            return save, stop
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        flags = torch.tensor([save and self.is_main, stop], dtype=torch.uint8, device=device)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        agreed = flags.tolist()
        return bool(agreed[0]), bool(agreed[1])

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def gather_rng(self, device: torch.device) -> list[dict[str, Tensor]]:
        """Collect every process's random state, in order of rank (partial on other processes than the main one)."""
        state = {"cpu": torch.get_rng_state()}
        if device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(device)
        if self.world_size == 1:
            return [state]
        gathered: list[dict[str, Tensor]] = [{} for _ in range(self.world_size)]
        for name, mine in state.items():
            carrier = mine.to(device) if dist.get_backend() == "nccl" else mine
            everyone = [torch.empty_like(carrier) for _ in range(self.world_size)]
            dist.all_gather(everyone, carrier)
            for rng_state, tensor in zip(gathered, everyone, strict=True):
                rng_state[name] = tensor.cpu()
        return gathered

    def restore_rng(self, states: list[dict[str, Tensor]], device: torch.device) -> None:
        """Restore this process's state from what `gather_rng` returned."""
        state = states[self.rank]
        torch.set_rng_state(state["cpu"])
        if device.type == "cuda" and "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], device)
