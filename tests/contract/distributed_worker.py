"""One of two processes that train together: runs every case of ``test_distributed`` and writes what came of it.

    RANK=0 python distributed_worker.py FOLDER [CASE ...]
    accelerate launch ... distributed_worker.py FOLDER accelerated

A case trains a toy host on this process's half of every batch and, to compare, another one on whole batches: in the
same process group, but without DDP around it, so that nothing of it is averaged.
"""

import copy
import datetime
import json
import os
import sys
import time
import traceback
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

sys.path.insert(0, str(Path(__file__).parents[1]))

from hosts import EVERY_HOST, ZOO, ToyHost, batches, footprint, make_optimizer, reconstruct, same
from hosts.base import Plain

import inpaint_distill
from inpaint_distill.errors import InpaintDistillError
from inpaint_distill.host.wrappers import unwrap
from inpaint_distill.injection import injected
from inpaint_distill.networks.meta import meta_parameters
from inpaint_distill.teachers import FrozenTeacher

RANK, FOLDER = int(os.environ.get("RANK", "0")), Path(*sys.argv[1:2])
WORLD, EACH, STEPS = 2, 2, 4
SETTINGS = {"warmup": 0, "lookahead": {"every": 2}}
HOST = ZOO["concatenated"]


class WithSpare(Plain):
    """Has a layer that its forward leaves out."""

    def __init__(self):
        super().__init__()
        self.spare = nn.Conv2d(3, 3, 1)


SPARE = ToyHost("a layer that is not used", WithSpare)


def ddp(**options):
    """Return what wraps a host."""
    return lambda host: nn.parallel.DistributedDataParallel(host, **options)


def compiled(host):
    """Wrap a host in ``torch.compile``."""
    return torch.compile(host, backend="eager")


class Trainer:
    """A user's training run, together with the other process's or, with all images in this one, apart from it.

    Attributes:
        gradients: What each optimizer that has stepped was about to follow, by what it trains.
    """

    def __init__(self, wrap=None, toy=HOST, *, config=None, kind=torch.optim.SGD, early=False, seed=0, **arguments):
        self.toy = toy
        self.whole = wrap is None
        self.host = toy.build(seed)
        self.called = self.host if wrap is None or early else wrap(self.host)
        self.optimizer = make_optimizer(self.host, kind, lr=0.01)
        config = {**SETTINGS, **(config or {})}
        self.distiller = inpaint_distill.attach(self.called, self.optimizer, config=config, **arguments)
        if wrap is not None and early:
            self.called = wrap(self.host)
        self.gradients = {}

    def data(self, count, start=0):
        """Make batches: whole ones, or this process's half of them."""
        half = slice(None) if self.whole else slice(RANK * EACH, (RANK + 1) * EACH)
        whole = batches(count, start, count=WORLD * EACH, **self.toy.images)
        return [(image[half], mask[half]) for image, mask in whole]

    def train(self, steps=STEPS, start=0, *, accumulate=1):
        """Train, with ``no_sync`` where batches are accumulated."""
        handle = register_optimizer_step_pre_hook(self._note)
        batch = iter(self.data(steps * accumulate, start * accumulate))
        for _ in range(steps):
            for number in range(accumulate):
                quiet = not self.whole and number + 1 < accumulate
                with self.called.no_sync() if quiet else nullcontext():
                    image, mask = next(batch)
                    loss = reconstruct(self.toy, self.called, image, mask) + self.distiller.loss(image, mask)
                    (loss / accumulate).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        handle.remove()
        return self

    def _note(self, optimizer, args, kwargs):
        own = self.distiller
        user = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        known = {user: "host", own._companion.inner: "added networks", own._lookahead._optimizer: "meta-networks"}
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        found = self.gradients.setdefault(f"gradients, {known.get(optimizer, 'teacher')}", [])
        found += [each.grad.clone() for each in parameters if each.grad is not None]

    def parts(self):
        """Return all that training changes."""
        own = self.distiller
        factors = own._composer.balancer.factors.values() if own._composer.balancer else []
        return {
            "host": list(self.host.parameters()),
            "added networks": own._terms.trained(),
            "meta-networks": [each for _, each in meta_parameters(own._terms)],
            "teacher": list(own._teacher.state()[0].values()),
            "factors": [each.log2() for each in factors],  # they span decades
            "moments": [tensor for part in (own._companion, own._lookahead) for tensor in _moments(part)],
            **self.gradients,
        }


def _moments(part):
    """Return an optimizer's moments, and not the batches that a look-ahead has kept, in the order of their names."""
    return [tensor for name, tensor in sorted(part.state()[0].items()) if not name.startswith("batches/")]


def flat(tensors):
    """Join tensors to one vector."""
    return torch.cat([torch.zeros(0).double(), *(each.detach().double().flatten() for each in tensors)])


def all_processes(value):
    """Return what every process has."""
    found = [None] * WORLD
    torch.distributed.all_gather_object(found, value)
    return found


def compare(trainer, whole=None):
    """Compare a run with the other process's, bit for bit, and with that of whole batches."""
    parts = {name: flat(tensors) for name, tensors in trainer.parts().items()}
    found = {"differ": [], "apart": {}, "empty": [name for name, vector in parts.items() if not vector.any()]}
    for name, vector in parts.items():
        first, second = all_processes(vector)
        if not torch.equal(first, second):
            found["differ"].append(name)
    if whole is not None:
        for name, tensors in whole.items():
            expected = flat(tensors)
            fits = expected.shape == parts[name].shape
            gap = (parts[name] - expected).norm() / expected.norm().clamp_min(1e-30) if fits else torch.inf
            found["apart"][name] = float(gap)
    return found


WHOLE = {}  # by what was trained, however it was wrapped; in the first process


def jointly(wrap, toy=HOST, *, accumulate=1, **arguments):
    """Train a host on halves of every batch and another on whole batches, and compare."""
    trainer = Trainer(wrap, toy, **arguments).train(accumulate=accumulate)
    key = repr((toy.trait, accumulate, {**arguments, "image": None, "mask": None, "early": None}))
    if RANK == 0 and key not in WHOLE:
        WHOLE[key] = Trainer(None, toy, **arguments).train(accumulate=accumulate).parts()
    return compare(trainer, WHOLE.get(key))


def refused(function):
    """Return the error that a call ends with, as it is shown."""
    try:
        function()
    except InpaintDistillError as error:
        return f"{type(error).__name__}\n{error}"
    return "nothing was refused"


class Holder(nn.Module):
    """A module that DDP wraps, with the host inside it, as Lightning has it."""

    def __init__(self, host):
        super().__init__()
        self.generator = host

    def forward(self, *arguments):
        return self.generator(*arguments)


# -- trained like one process ------------------------------------------------------------------------------------------


IMAGE, MASK = batches(1)[0]
OFF = {"lookahead": {"engine": "off"}}
ALONE = {"balance": "none", "cross": {"weight": 0.0}, "self": {"weight": 0.0}}  # attention, of untrained rows
UNROLL = {"lookahead": {"engine": "unroll", "every": 2}}  # a finite difference magnifies the rounding of some hosts
TOGETHER = {
    "find_unused_parameters=False": {"wrap": ddp()},
    "find_unused_parameters=True": {"wrap": ddp(find_unused_parameters=True)},
    "static_graph=True": {"wrap": ddp(static_graph=True)},
    "an unused parameter, find_unused_parameters=True": {"wrap": ddp(find_unused_parameters=True), "toy": SPARE},
    "an unused parameter, static_graph=True": {"wrap": ddp(static_graph=True), "toy": SPARE},
    "gradient_as_bucket_view=True": {"wrap": ddp(gradient_as_bucket_view=True)},
    "accumulation with no_sync": {"wrap": ddp(), "accumulate": 2},
    "compiled DDP": {"wrap": lambda host: compiled(ddp()(host))},
    "DDP of a compiled host": {"wrap": lambda host: ddp()(compiled(host))},
    "wrapped after attach": {"wrap": ddp(), "early": True, "image": IMAGE, "mask": MASK},
    "wrapped inside another module": {"wrap": lambda host: ddp()(Holder(host)), "early": True},
    "two stages": {"wrap": ddp(), "toy": ZOO["two_stage"]},
    "recurrent": {"wrap": ddp(), "toy": ZOO["recurrent"], "config": UNROLL},
    "partial convolutions": {"wrap": ddp(), "toy": ZOO["partial_conv"], "config": UNROLL},
    "gated convolutions": {"wrap": ddp(), "toy": EVERY_HOST["gated-conv"], "config": UNROLL},
    "no balance": {"wrap": ddp(), "config": UNROLL | {"balance": "none"}},
    "layer normalisation": {"wrap": ddp(), "config": {"cross": {"normalize": "layer"}}},
    "everywhere": {"wrap": ddp(), "config": {"cross": {"region": "all", "weight": 0.05}}},
    "unroll of two steps": {"wrap": ddp(), "config": {"lookahead": {"engine": "unroll", "every": 2, "steps": 2}}},
    "no look-ahead": {"wrap": ddp(), "config": OFF},
    "online teacher": {"wrap": ddp(), "teacher": "online"},
    "attention": {
        "wrap": ddp(),
        "toy": ZOO["fused_attention"],
        "config": ALONE | UNROLL | {"attention": {"weight": 1e6}},
    },
    "completion": {"wrap": ddp(), "early": True, "image": IMAGE, "mask": MASK, "completion": True},
    "fusion": {"wrap": ddp(), "early": True, "image": IMAGE, "mask": MASK, "config": {"fusion": True}},
}


# -- the same in all processes -----------------------------------------------------------------------------------------


def adam():
    return compare(Trainer(ddp(), kind=torch.optim.AdamW).train())


def batch_norm():
    return compare(Trainer(ddp(), ZOO["batch_norm"]).train())


def batch_norm_online():
    return compare(Trainer(ddp(), ZOO["batch_norm"], teacher="online").train())


def frozen_teacher_of_other_images():
    images = torch.cat([image for image, _ in batches(2, start=50 + 10 * RANK)])
    return compare(Trainer(ddp(), teacher=FrozenTeacher(images, steps=3), config=OFF).train())


def other_seeds():
    trainer = Trainer(ddp(), config={"seed": RANK}, seed=RANK, early=True, image=IMAGE, mask=MASK)
    return compare(trainer.train())


def small_holes():
    """In one process only one image of a batch has a hole; in the other one, and after the first batch none."""
    runs = [Trainer(ddp()), Trainer()]
    for run in runs:
        data = run.data(STEPS)
        for number, (_, mask) in enumerate(data):
            mask[[1, 3] if run.whole else [1]] = 0
            if number and (run.whole or RANK == 1):
                mask[EACH if run.whole else 0] = 0
        run.data = lambda count, start, data=data: data
    return compare(runs[0].train(), runs[1].train().parts())


SAME = [adam, batch_norm, batch_norm_online, frozen_teacher_of_other_images, other_seeds]


# -- one thing each ----------------------------------------------------------------------------------------------------


def processes_that_train_apart():
    """Each process trains a host of its own, without DDP, on images of its own."""
    trainer = Trainer()
    trainer.whole = False
    apart = flat(trainer.train().parts()["added networks"])
    first, second = all_processes(apart)
    return {"met": trainer.distiller._processes.group is not None, "equal": torch.equal(first, second)}


WRAPPED = {  # by what the names of all parts begin with
    "module.": ddp(),
    "_orig_mod.": compiled,
    "_orig_mod.module.": lambda host: compiled(ddp()(host)),
    "module._orig_mod.": lambda host: ddp()(compiled(host)),
}


def names_with_wrappers():
    """Stages are named as ``named_modules()`` of what is called lists them."""
    found = {}
    for beginning, wrap in WRAPPED.items():
        called = wrap(HOST.build())
        names = [name for name, part in called.named_modules() if part in (unwrap(called).enc0, unwrap(called).enc2)]
        distiller = inpaint_distill.attach(called, stages=names, image=IMAGE, mask=MASK)
        planned = inpaint_distill.plan(called, IMAGE, MASK, stages=names)
        found[beginning] = [names, *([stage.label for stage in plan.stages] for plan in (distiller.plan, planned))]
    return found


def resumed(kind):
    """Train 3 steps, save, train 3; and again from what was saved, by ``"one"`` process or by ``"each"``."""
    first = Trainer(ddp(), kind=torch.optim.AdamW).train(3)
    path = FOLDER / f"resume-{kind}-{RANK if kind == 'each' else 0}.safetensors"
    if kind == "each" or RANK == 0:
        first.distiller.save(path)
    torch.distributed.barrier()
    host, optimizer = (copy.deepcopy(each.state_dict()) for each in (first.host, first.optimizer))
    second = Trainer(ddp(), kind=torch.optim.AdamW)
    second.host.load_state_dict(host)
    second.optimizer.load_state_dict(optimizer)
    second.distiller.load(path)
    first.gradients = {}
    first.train(3, 3)
    second.train(3, 3)
    return {**compare(second), "continues": same(first.parts(), second.parts())}


def resumed_from_one():
    return resumed("one")


def resumed_from_each():
    return resumed("each")


def blocks_that_are_there_already():
    """A host that was trained with blocks is wrapped, and attached to again."""
    first = Trainer(ddp(), early=True, image=IMAGE, mask=MASK, completion=True).train(1)
    host = first.distiller.detach()
    called = ddp()(host)
    again = Trainer(ddp())
    again.host, again.called, again.optimizer = host, called, make_optimizer(host, torch.optim.SGD, lr=0.01)
    again.distiller = inpaint_distill.attach(called, again.optimizer, completion=True, config=SETTINGS)
    blocks = list(injected(host).parameters())
    before = flat(blocks)
    again.train(2, 1)
    return {**compare(again), "blocks move": not torch.equal(before, flat(blocks))}


def blocks_that_come_too_late():
    """DDP has listed the parameters, be it before attach() or after it."""
    wrapped = ddp()(HOST.build())
    before = footprint(wrapped)
    texts = [refused(lambda: inpaint_distill.attach(wrapped, make_optimizer(wrapped), completion=True))]
    host = HOST.build()
    distiller = inpaint_distill.attach(host, make_optimizer(host), completion=True, config=SETTINGS)
    called = ddp()(host)
    texts.append(refused(lambda: HOST.call(called, IMAGE, MASK)))
    clean = footprint(wrapped) == before and injected(host) is None and not host._forward_pre_hooks
    return {"texts": texts, "clean": clean and distiller.plan is None}


def sharded():
    """FSDP2 around a host, before attach() and after it, planned or not; around a part of it; and the first FSDP."""
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    host = fully_shard(HOST.build())
    before = footprint(host)
    texts = [refused(lambda: inpaint_distill.attach(host, make_optimizer(host)))]
    clean = footprint(host) == before
    for images in ({}, {"image": IMAGE, "mask": MASK}):
        late = HOST.build()
        distiller = inpaint_distill.attach(late, config=SETTINGS, **images)
        fully_shard(late)
        texts.append(refused(lambda late=late: HOST.call(late, IMAGE, MASK)))
        clean = clean and len(late._forward_hooks) == len(host._forward_hooks) and not distiller.attached
    part = HOST.build()
    fully_shard(part.enc1)
    texts.append(refused(lambda: inpaint_distill.attach(part)))
    first = FullyShardedDataParallel(HOST.build(), device_id=torch.device("cpu"))
    texts.append(refused(lambda: inpaint_distill.attach(first)))
    return {"texts": texts, "clean": clean}


def accelerated():
    """Attach to what accelerate has prepared."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    trainer = Trainer(accelerator.prepare)
    trainer.distiller.detach()
    trainer.optimizer = accelerator.prepare(trainer.optimizer)
    trainer.distiller = inpaint_distill.attach(trainer.called, trainer.optimizer, config=SETTINGS)
    return {**compare(trainer.train(), Trainer().train().parts()), "called": type(trainer.called).__name__}


CASES = {f"together: {name}": lambda options=options: jointly(**options) for name, options in TOGETHER.items()}
CASES |= {f"same: {function.__name__}": function for function in SAME}
CASES |= {
    function.__name__: function
    for function in (
        processes_that_train_apart,
        names_with_wrappers,
        resumed_from_one,
        resumed_from_each,
        blocks_that_are_there_already,
        blocks_that_come_too_late,
        sharded,
        small_holes,
    )
}


def main():
    """Run the cases, in the same order in both processes."""
    torch.set_num_threads(1)
    if "LOCAL_RANK" not in os.environ:  # of a launcher, which has them meet
        wait = datetime.timedelta(seconds=120)
        meet = f"file://{FOLDER}/meet"
        torch.distributed.init_process_group("gloo", init_method=meet, rank=RANK, world_size=WORLD, timeout=wait)
    results = {}
    for name in sys.argv[2:] or CASES:
        began = time.perf_counter()
        try:
            results[name] = accelerated() if name == "accelerated" else CASES[name]()
        except Exception:
            results[name] = {"failed": traceback.format_exc()}
        print(name, round(time.perf_counter() - began, 1), file=sys.stderr)
        # After an error in one process alone the other waits in vain, and is ended with it.
        if any(all_processes("failed" in results[name])):
            break
    (FOLDER / f"{RANK}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
    # DDP keeps gloo's threads alive, even after the group is destroyed and with no distiller near it; one that drops a
    # tensor while the interpreter is taken down aborts the process (pytorch/pytorch issue 190489).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
