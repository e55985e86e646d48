"""What the server that forks the tests' jobs has imported: what each of them would spend seconds on."""

from headwater.train.compat import declare_torchvision_operators

declare_torchvision_operators()

import deepspeed  # noqa: E402, F401
import pyarrow.parquet  # noqa: E402, F401
import transformers  # noqa: E402, F401
from megatron.core.pipeline_parallel import schedules  # noqa: E402, F401
from torch.distributed.tensor import DTensor  # noqa: E402, F401

from headwater.attribution.index import build as build_index  # noqa: E402, F401
from headwater.train import run  # noqa: E402, F401
from headwater.train.corpus import build as build_corpus  # noqa: E402, F401
from headwater.train.mosaic import part_of  # noqa: E402

for module in ("format.mds.reader", "format.mds.writer", "util"):
    part_of(module)
