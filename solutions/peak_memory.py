"""How much memory a piece of code holds at the most (made for chapter 08)."""

import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Count the bytes of the tensors that exist at the same time while a block runs.

        with PeakMemory() as memory:
            masked_attention(q, k, v)
        print(memory.peak)

    Counted is what the block allocates, forward and backward, until it is let go again; what was
    there before is not. On the device "meta" nothing is computed or stored, and counted all the
    same. What one operation of PyTorch allocates and frees inside itself is not seen.

    Attributes:
        now: bytes that the block has allocated and that still exist.
        peak: the most that `now` has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for tensor in _tensors((args, kwargs)):  # the inputs of the block are met here first
            self._meet(tensor.untyped_storage(), 0)
        result = function(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            self._meet(storage, storage.nbytes())
        return result

    def _meet(self, storage: torch.UntypedStorage, size: int) -> None:
        if storage._cdata in self._known:  # a view shares the storage of another tensor
            return
        self._known.add(storage._cdata)
        weakref.finalize(storage, self._part, storage._cdata, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _part(self, key: int, size: int) -> None:
        self._known.remove(key)
        self.now -= size


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
