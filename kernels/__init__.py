"""Projected gradients: tensors in, tensors out. No model, no files.

Importing this needs PyTorch and llvmlite; Triton is imported when a kernel first runs on a GPU.
"""

from .corrections import Correction, Factored, Full
from .dispatch import Projector, SharedProjector, project, project_shared
from .philox import signs

__all__ = ["Correction", "Factored", "Full", "Projector", "SharedProjector", "project", "project_shared", "signs"]
