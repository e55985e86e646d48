"""Pretraining: stream, facts, Megatron's model under DeepSpeed, the loop, checkpoints."""

import warnings

# Megatron says at import what it would use if it were installed; here its own plain PyTorch is what is wanted.
warnings.filterwarnings("ignore", message=".*(Apex|full scope is deprecated).*", category=UserWarning)
