"""The projection on a GPU: which kernel and tiling, by architecture, type and alignment.

Not yet run on a GPU: the parts are tested in Triton's interpreter and compiled for each architecture (`compile_check`).

Shapes: T tokens of a packed sequence, B segments, O outputs, I inputs, kO x kI the projected gradient.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .corrections import Full, Layer, shared_rights
from .triton_factored import ThinFactor, segment_products
from .triton_full import FullLayer, choose_config


def architecture(device: torch.device) -> str:
    """ "sm_90", "gfx942" and so on."""
    if torch.version.hip:
        return torch.cuda.get_device_properties(device).gcnArchName.split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def has_descriptors(arch: str) -> bool:
    """Whether an architecture has a unit for tensor descriptors (TMA)."""
    return arch.startswith("sm_") and int(arch.removeprefix("sm_")) >= 90


def _contiguous_rows(x_TK: Tensor) -> Tensor:
    return x_TK if x_TK.stride(1) == 1 else x_TK.contiguous()


class Group:
    """Layers that share an input, prepared for inputs of one type.

    Args:
        layers: checked layers on one device.
        dtype: of the inputs: bfloat16, float16 or float32.
        arch: of the GPU; by default that of the layers' device.
    """

    def __init__(self, layers: list[Layer], dtype: torch.dtype, arch: str | None = None) -> None:
        self.device = layers[0].left_Ok.device
        self.arch = arch or architecture(self.device)
        self.descriptors = has_descriptors(self.arch)
        self.precision = "tf32x3" if self.arch.startswith("sm_") else "ieee"
        self.dtype = dtype
        self.sides = [layer.sides for layer in layers]
        self.full: dict[int, FullLayer] = {}
        for i, layer in enumerate(layers):
            if isinstance(layer.correction, Full):
                self.full[i] = FullLayer(layer.left_Ok, layer.right_Ik, layer.correction.w_OI, dtype)
        self.thin = [i for i in range(len(layers)) if i not in self.full]
        if self.thin:
            right_IK, self.columns = shared_rights([layers[i] for i in self.thin], 16)
            self.right = ThinFactor(right_IK, dtype)
            self.lefts = [ThinFactor(layers[i].fold_left(), dtype) for i in self.thin]

    def rows(self, deltas: Sequence[Tensor], a_TI: Tensor, bounds_B: Tensor) -> list[Tensor]:
        """One [B, kO, kI] float32 per layer; `bounds_B` is int32 [B + 1] on the device."""
        a_TI = _contiguous_rows(a_TI)
        deltas = [_contiguous_rows(delta_TO) for delta_TO in deltas]
        rows: dict[int, Tensor] = {}
        if self.thin:
            z_TK = self.right.products(a_TI, self.precision, self.arch)
            for i, columns, left in zip(self.thin, self.columns, self.lefts, strict=True):
                y_Tk = left.products(deltas[i], self.precision, self.arch)
                scale = left.scale * self.right.scale
                rows[i] = segment_products(y_Tk, z_TK[:, columns], bounds_B, scale, self.precision)
        for i, layer in self.full.items():
            aligned = self.descriptors and layer.aligned(deltas[i], a_TI)
            config = choose_config(self.arch, self.dtype, max(left.shape[1] for left in layer.lefts_Ok), aligned)
            rows[i] = layer.rows(deltas[i], a_TI, bounds_B, config, self.precision)
        return [rows[i][:, :kO, :kI].contiguous() for i, (kO, kI) in enumerate(self.sides)]
