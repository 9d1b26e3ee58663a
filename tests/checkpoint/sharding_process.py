"""One process of a group that trains with FSDP2 for a step and saves: ``python sharding_process.py RANK SIZE FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor


def main(rank: int, size: int, folder: Path) -> None:
    """Save ``folder/checkpoint`` together, and from the first process ``folder/whole.pt`` with the gathered tensors."""
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), size), rank=rank, world_size=size)
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (size,))
    model = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 1))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    table = torch.arange(30.0).reshape(5, 6).to(torch.bfloat16)
    ema = {name: value * 0.5 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    content = {
        "model": model.state_dict(),
        "ema": ema,
        "optim": get_optimizer_state_dict(model, optimizer),
        "columns": distribute_tensor(table, mesh, [Shard(1)]),
        "replicated": distribute_tensor(table, mesh, [Replicate()]),
    }
    dcp.save(content, checkpoint_id=folder / "checkpoint")
    gathered = {f"{group}/{name}": getattr(t, "full_tensor", lambda t=t: t)() for group in ("model", "ema") for name, t in content[group].items()}
    if rank == 0:
        torch.save({**gathered, "columns": table, "replicated": table}, folder / "whole.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
