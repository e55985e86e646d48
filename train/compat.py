"""What importing other libraries takes on a machine without a GPU.

`import streaming` and Hugging Face's model classes import torchvision, whose wheel registers fake kernels for
`torchvision::nms`; without the compiled operators (which its CPU wheel lacks when torch has no CUDA) that fails with
"operator torchvision::nms does not exist". Declaring the two operators first is enough; Headwater never calls them.

Megatron wraps small functions in `torch.compile` while it is imported, and the wrapping alone loads torch's compiler: a
third of the time that a process takes to start.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@functools.cache
def declare_torchvision_operators() -> None:
    """To be called before `streaming` or a `transformers` model class is imported; idle where torch has CUDA."""
    import torch

    if torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        try:
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # already there: a torchvision that brought its own operators was imported before
            continue
    _LIBRARIES.append(library)


_LIBRARIES: list[object] = []  # an operator lives as long as the Library object that defined it


@contextmanager
def functions_left_plain() -> Iterator[None]:
    """Around the import of Megatron: without a GPU its small functions stay as they are written.

    What the model calls of them on a CPU is not compiled anyway, since its fusions are off there.
    """
    import torch

    if torch.cuda.is_available():
        yield
        return

    def leave(function: Any = None, *_: Any, **__: Any) -> Any:
        return (lambda each: each) if function is None else function

    compiling = torch.compile
    torch.compile = leave  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiling
