"""Rows of the output head, made as its loss is: from the gradients of a chunk's logits, which nobody holds.

The head's gradient for an example is the sum over its predictions of (q - e_y) h^T, with the hidden state h and what
the loss pulls at the logits: it needs a forward pass alone. No module is called for it (train/losses.py multiplies by
the weight itself), so it is watched there and not by hooks; a head that is tied to the embedding has rows of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from headwater.train.losses import watched_head

Seen = Callable[[Tensor, Tensor, Tensor], None]
"""Called with the logits' gradients [C, V], the hidden states [C, d] and where the segments begin and end among the C
predictions, int32 [segments + 1]."""


class HeadWatch:
    """While it is entered, hands on what each chunk of predictions adds to the head's gradient.

    Args:
        predicting: asked for the places, int64 [K] and rising, of the batch whose loss is being taken.
        bounds: asked where its segments begin and end in the flattened tokens, rising: a list on a CPU, else int32
            [segments + 1] on the device, so that no chunk waits for a copy. None: this one is not watched.
        seen: takes a chunk.
    """

    def __init__(
        self, predicting: Callable[[], Tensor], bounds: Callable[[], Tensor | list[int] | None], seen: Seen
    ) -> None:
        self.predicting, self.bounds, self.seen = predicting, bounds, seen
        self._mode = watched_head(self._chunk)

    def __enter__(self) -> HeadWatch:
        self._mode.__enter__()
        return self

    def remove(self) -> None:
        """Watches no longer."""
        self._mode.__exit__(None, None, None)

    def _chunk(self, part: slice, hidden_Cd: Tensor, pull_CV: Tensor) -> None:
        bounds = self.bounds()
        if bounds is None:
            return
        places_C = self.predicting()[part]
        edges = torch.as_tensor(bounds).to(places_C)
        self.seen(pull_CV, hidden_Cd, torch.searchsorted(places_C, edges).to(torch.int32))
