"""Packing: parameters moved one behind the other in memory, so that one product reads them all.

The parameter objects stay what they are; their data become slices of one buffer. ``state_dict``,
``load_state_dict`` and in-place changes keep working. What replaces the data (``module.to()``)
undoes the packing; `is_packed` tells.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fuseline._torch import has_hooks, is_fake, storage_holders, storage_of
from fuseline.runtime import resident
from fuseline.runtime.fork import renew_in_children


def pack(groups: Iterable[Sequence[Tensor]]) -> list[str]:
    """Pack each group of parameters into one buffer, in order.

    At most one group exists twice at a time. A group that lies side by side already is left as it
    is, so packing again does nothing. One thread packs at a time: programs may share parameters.

    Returns:
        For each group, why it could not be packed; empty where it is packed now.
    """
    with _one_at_a_time():
        return [_pack(tuple(group)) for group in groups]


class _OneAtATime:
    """A lock that a forked child has for itself."""

    def __init__(self) -> None:
        self.renew()
        renew_in_children(self)

    def renew(self) -> None:
        """In a forked child: nobody else packs there."""
        self.lock = threading.Lock()

    def __call__(self) -> threading.Lock:
        return self.lock


_one_at_a_time = _OneAtATime()


def is_packed(group: Sequence[Tensor]) -> bool:
    """Whether the tensors lie one behind the other, in order, in one storage."""
    if not group or not all(t.is_contiguous() for t in group):
        return False
    first = group[0]
    place = first.data_ptr()
    for tensor in group:
        same = tensor.dtype is first.dtype and storage_of(tensor) == storage_of(first)
        if not same or tensor.data_ptr() != place:
            return False
        place += tensor.nbytes
    return True


def pinned(params: Mapping[str, Tensor]) -> dict[str, str]:
    """Which tensors must stay where they are, and why, by name.

    Packed parameters of an earlier call are free, as long as all that share their storage are
    given. One tensor under two names is tied to itself.
    """
    _forget_dead([p] for p in params.values() if _is_whole(p))
    reasons = {name: reason for name, p in params.items() if (reason := _own_reason(p))}
    by_storage: dict[int, list[str]] = {}
    for name, tensor in params.items():
        if name not in reasons and tensor.numel():
            by_storage.setdefault(storage_of(tensor), []).append(name)
    for names in by_storage.values():
        reasons |= _storage_reasons({name: params[name] for name in names})
    return reasons


def _pack(group: tuple[Tensor, ...]) -> str:
    if is_packed(group):
        return ""
    if reason := _group_reason(group):
        return reason
    first = group[0]
    # A parameter made in inference mode stays one: torch knows them apart by their data.
    with torch.inference_mode(first.is_inference()), torch.no_grad():
        total = sum(p.numel() for p in group)
        try:
            buffer = torch.empty(total, dtype=first.dtype, device=first.device)
        except torch.OutOfMemoryError:
            return f"{first.device} has no {total * first.element_size()} bytes to bring them into"
        start = 0
        for p in group:
            part = buffer[start : start + p.numel()].view(p.shape)
            part.copy_(p.detach())
            resident.forget(p.detach())  # memory of a file would stay with us as long as the file
            p.data = part  # other old memory is free from here on
            start += p.numel()
    return ""


def _group_reason(group: Sequence[Tensor]) -> str:
    """Why these parameters cannot be brought into one buffer; empty where they can."""
    if not group:
        return "there is nothing to pack"
    kinds = {(str(p.dtype), str(p.device), p.is_inference()) for p in group}
    if len(kinds) > 1:
        shown = sorted(f"{t} on {d}{', made in inference mode' * i}" for t, d, i in kinds)
        return f"the parameters differ: {'; '.join(shown)}"
    by_storage: dict[int, list[Tensor]] = {}
    for p in group:
        by_storage.setdefault(storage_of(p), []).append(p)
    if any(map(_overlap, by_storage.values())):
        return "two of the parameters share their memory"
    _forget_dead(by_storage.values())
    for members in by_storage.values():  # several, or a part, where an earlier pack was broken up
        p, others = members[0], storage_holders(members[0]) - len(members)
        own = [reason for member in members if (reason := _own_reason(member))]
        if reason := (own or [_shared(others)])[0]:
            return f"the parameter of shape {list(p.shape)} {reason}"
    return ""


def _overlap(members: Sequence[Tensor]) -> bool:
    ordered = sorted(members, key=Tensor.data_ptr)
    return any(a.data_ptr() + a.nbytes > b.data_ptr() for a, b in pairwise(ordered))


def _shared(others: int) -> str:
    kinds = "a view, or a held state_dict"
    return f"shares its memory with {others} other tensors ({kinds})" if others > 0 else ""


def _forget_dead(sharing: Iterable[Sequence[Tensor]]) -> None:
    """Collect garbage if that may help: a tensor that only a dead cycle holds is no reader."""
    groups = [members for members in sharing if not members[0].is_meta]
    if any(storage_holders(members[0]) > len(members) for members in groups):
        gc.collect()


def _own_reason(p: Tensor) -> str:
    """What about a tensor itself forbids to move its data; empty for a plain parameter."""
    if type(p) is not nn.Parameter:
        return f"is a {type(p).__name__}, not a plain parameter"
    if p.layout is not torch.strided or p.is_quantized:
        return "is quantised" if p.is_quantized else f"has the layout {p.layout}"
    if p.is_meta or is_fake(p):
        return "has no memory (it is on the meta device)"
    if not p.is_contiguous():
        return "is not contiguous"
    if p.is_shared() and not p.is_cuda:
        return "lies in memory that processes share"
    if has_hooks(p):
        return "has hooks"
    return ""


def _storage_reason(p: Tensor) -> str:
    """Why the memory of a parameter is not its alone; empty where it is."""
    if not _is_whole(p):
        return "is a part of a larger storage"
    return _shared(storage_holders(p) - 1)


def _is_whole(p: Tensor) -> bool:
    """Whether a tensor is all of its storage."""
    return not p.is_meta and p.untyped_storage().nbytes() == p.nbytes


def _storage_reasons(sharing: Mapping[str, Tensor]) -> dict[str, str]:
    """The reasons among all given tensors of one storage: free if they tile it, in any order."""
    order = sorted(sharing, key=lambda name: sharing[name].data_ptr())
    first, rest = order[0], order[1:]
    storage = sharing[first].untyped_storage()
    end = storage.data_ptr()
    reasons: dict[str, str] = {}
    for name, before in zip(order, [first, *order], strict=False):
        start = sharing[name].data_ptr()
        if start < end:
            reasons[name] = f"is tied to {before}"
            reasons.setdefault(before, f"is tied to {name}")
        elif start > end:
            return dict.fromkeys(order, "is a part of a larger storage")
        end = max(end, start + sharing[name].nbytes)
    if not reasons and end != storage.data_ptr() + storage.nbytes():
        return dict.fromkeys(order, "is a part of a larger storage")
    if not rest and not reasons and (reason := _storage_reason(sharing[first])):
        return {first: reason}
    return reasons
