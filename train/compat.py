"""Lets libraries that import torchvision be imported beside a CPU-only torch.

`import streaming` and Hugging Face's model classes import torchvision, whose wheel registers fake kernels for
`torchvision::nms`; without the compiled operators (which its CPU wheel lacks when torch has no CUDA) that fails with
"operator torchvision::nms does not exist". Declaring the two operators first is enough; Headwater never calls them.
"""

from __future__ import annotations

import functools


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
