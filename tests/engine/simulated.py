"""A device that computes on the CPU but is as strict as a GPU: for the logic of passes on a device, without one.

Its tensors say `sim:0`, live only inside `Simulated()`, and refuse NumPy and the company of CPU tensors, but for copies
and numbers (tensors of no dimension), as CUDA's do. That indices must be there too is stricter than CUDA. Its float32
products cut their inputs to TF32 where CUDA's are told to. It may have room for tensors of so many bytes only.
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from diva_ray.core.products import rounded

NAME = "sim"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)
COPIES = {"aten::copy_", "aten::_to_copy", "aten::_local_scalar_dense"}


class There(torch.Tensor):
    """A tensor on the device; `inner` holds its values."""

    @staticmethod
    def __new__(cls, inner):
        """Wrap values."""
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        """Never called outside of the mode."""
        raise AssertionError(f"{func} on the device outside of `Simulated()`")


class Simulated(TorchDispatchMode):
    """Computes what is asked of the device; counts operations on it by name."""

    def __init__(self, most=1 << 40):
        super().__init__()
        self.counts, self.most = {}, most

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        there = [x for x in flat if isinstance(x, There)]
        name, wanted = func._schema.name, kwargs.get("device")
        if not there and (wanted is None or torch.device(wanted).type != NAME):
            return func(*args, **kwargs)
        mixed = [x for x in flat if not isinstance(x, There) and x.ndim > 0]
        if mixed and name not in COPIES:
            raise RuntimeError(f"{name}: tensors on {DEVICE} and of shape {tuple(mixed[0].shape)} on the CPU")
        self.counts[name] = self.counts.get(name, 0) + 1
        args, inner = tree_map_only(There, lambda x: x.inner, (args, kwargs))
        stays = wanted is None or torch.device(wanted).type == NAME
        if wanted is not None:
            inner["device"] = torch.device("cpu")
        inner.pop("pin_memory", None)
        if (
            name in ("aten::mm", "aten::addmm_", "aten::bmm", "aten::baddbmm")
            and torch.backends.cuda.matmul.fp32_precision == "tf32"
        ):
            args = [*args[:-2], *(rounded(x, "tf32") if x.dtype == torch.float32 else x for x in args[-2:])]
        if name == "aten::mm" and func._overloadname == "dtype":  # CUDA alone has it
            result = args[0].float() @ args[1].float()
        else:
            result = func(*args, **inner)
        if not stays:
            return result
        if any(isinstance(x, torch.Tensor) and x.nbytes > self.most for x in tree_flatten(result)[0]):
            raise torch.OutOfMemoryError(f"{DEVICE} out of memory. Tried to allocate more than {self.most} bytes")
        known = {id(x.inner): x for x in there}  # what was changed in place, or given as `out`
        if name == "aten::copy_" and not isinstance(flat[0], There):
            return flat[0]
        return tree_map_only(torch.Tensor, lambda x: known.get(id(x)) if id(x) in known else There(x), result)
