"""Several processes: distributed data parallel by accelerate, the distiller attached to what it has prepared.

    torchrun --nproc_per_node 2 examples/ddp.py

on CPUs; on GPUs also `accelerate launch examples/ddp.py`, and `python examples/ddp.py` for one process. It prints both
losses of the first process, and the norm of the host's parameters in each, which is the same:

    step 0: host 0.5658, distillation 0.0000
    step 4: host 0.2951, distillation 0.0039
    step 8: host 0.2995, distillation 0.0032
    process 0: parameters 47.950035
    process 1: parameters 47.950035
"""

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

import inpaint_distill
from inpaint_distill.adapters import get
from inpaint_distill.training.masks import free_form
from inpaint_distill.training.scenes import dead_leaves


def train(accelerator: Accelerator) -> None:
    """Train a host on as many processes as there are."""
    torch.manual_seed(0)
    images = dead_leaves(72, 32, seed=0).float() / 127.5 - 1  # (72, 3, 32, 32) in [-1, 1]: put your own data here
    masks = free_form(72, 32, seed=0).float()  # (72, 1, 32, 32), 1 in the hole
    loader = DataLoader(TensorDataset(images, masks), batch_size=4, shuffle=True)
    host = get("unet").build(levels=3, width=8)
    optimizer = torch.optim.AdamW(host.parameters(), lr=2e-3)

    host, optimizer, loader = accelerator.prepare(host, optimizer, loader)
    distiller = inpaint_distill.attach(host, optimizer)  # the prepared ones

    for step, (image, mask) in enumerate(loader):
        restored = host(torch.cat([image * (1 - mask), mask], dim=1))
        host_loss = (restored - image).abs().mean()
        loss = host_loss + distiller.loss(image, mask)
        optimizer.zero_grad()
        accelerator.backward(loss)
        optimizer.step()
        if step % 4 == 0:
            accelerator.print(f"step {step}: host {host_loss:.4f}, distillation {distiller.log['loss']:.4f}")

    host = accelerator.unwrap_model(distiller.detach())
    norm = torch.nn.utils.parameters_to_vector(host.parameters()).detach().norm()
    for process, each in enumerate(accelerator.gather(norm.reshape(1))):
        accelerator.print(f"process {process}: parameters {each:.6f}")


if __name__ == "__main__":
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    train(accelerator)
    accelerator.free_memory()  # nothing of the training may hold the process group when it goes
    accelerator.end_training()
