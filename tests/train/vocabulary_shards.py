"""What two ranks do in test_losses: the loss over halves of a vocabulary, against the whole."""

from __future__ import annotations


def compare_shards() -> None:
    import torch
    import torch.distributed as dist

    from headwater.train.losses import LOSSES, head_loss

    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(5)
    hidden = torch.randn(37, 9, generator=generator) * 3
    weight = torch.randn(26, 9, generator=generator)
    labels = torch.randint(26, (37,), generator=generator)
    weights = torch.rand(37, generator=generator)
    rows = len(weight) // size
    for kind in LOSSES:
        results = []
        for group in (None, dist.group.WORLD):
            own = weight if group is None else weight[rank * rows : (rank + 1) * rows]
            h, w = hidden.clone().requires_grad_(), own.clone().requires_grad_()
            first = 0 if group is None else rank * rows
            total, *rest = head_loss(h, w, labels, weights, kind=kind, group=group, first_row=first)
            total.backward()
            results.append([total.detach(), *rest, h.grad, w.grad])
        whole, sharded = results
        whole[-1] = whole[-1][rank * rows : (rank + 1) * rows]
        for a, b in zip(whole, sharded, strict=True):
            torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)
