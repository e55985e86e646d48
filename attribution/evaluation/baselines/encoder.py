"""A sentence encoder over all passages: cosine of embeddings. Query = prompt + target."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headwater.attribution.evaluation.ranking import DEPTH, Passages, ScoringMethod
from headwater.attribution.tracing.queries import Query
from headwater.configs.errors import UserError

BATCH = 64


class Encoder(ScoringMethod):
    """The encoder of a directory as sentence-transformers writes it: a transformer, a pooling (the mean of the tokens,
    or the first one), and unit norm.

    Args:
        path: the directory.

    Raises:
        UserError: there is no such model, or it pools in another way.
    """

    name = "encoder"

    def __init__(self, path: str, depth: int = DEPTH) -> None:
        super().__init__(depth)
        self.path = Path(path)
        if not (self.path / "config.json").is_file():
            raise UserError(
                f"{path} holds no sentence encoder",
                expected="a directory with config.json, weights and a tokenizer",
                fix="set encoder= to one, or leave `encoder` out of `baselines`",
            )
        pooling = self.path / "1_Pooling" / "config.json"
        about: dict[str, Any] = json.loads(pooling.read_text()) if pooling.is_file() else {}
        self.first = bool(about.get("pooling_mode_cls_token", False))
        if about and not self.first and not about.get("pooling_mode_mean_tokens", False):
            raise UserError(
                f"{pooling} pools in a way that is not known here",
                got=", ".join(key for key, value in about.items() if value is True),
                expected="the mean of the tokens, or the first one",
                fix="take another encoder",
            )

    def scores(self, queries: Sequence[Query], passages: Passages) -> np.ndarray:
        """Every passage's cosine, float32 [queries, passages]; embeddings are held, texts are not."""
        import transformers

        from headwater.train.compat import declare_torchvision_operators

        declare_torchvision_operators()
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.path, local_files_only=True)
        model = transformers.AutoModel.from_pretrained(self.path, local_files_only=True).eval()
        asked_QE = np.concatenate(list(self._embedded(tokenizer, model, [f"{q.prompt} {q.target}" for q in queries])))
        scores_QN = np.empty((len(queries), len(passages)), dtype=np.float32)
        for start in range(0, len(passages), BATCH):
            stop = min(start + BATCH, len(passages))
            texts = [passages.text(number) for number in range(start, stop)]
            for embedded_BE in self._embedded(tokenizer, model, texts):
                scores_QN[:, start:stop] = asked_QE @ embedded_BE.T
        return scores_QN

    def _embedded(self, tokenizer: Any, model: Any, texts: Sequence[str]) -> Iterator[np.ndarray]:
        """Unit embeddings of texts, float32 [n, E], batch by batch."""
        import torch

        longest = min(int(tokenizer.model_max_length), int(getattr(model.config, "max_position_embeddings", 512)))
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            with torch.no_grad():
                hidden_BLE = model(**batch).last_hidden_state
            there_BL1 = batch["attention_mask"].unsqueeze(2)
            pooled_BE = hidden_BLE[:, 0] if self.first else (hidden_BLE * there_BL1).sum(1) / there_BL1.sum(1)
            yield torch.nn.functional.normalize(pooled_BE, dim=1).numpy()
