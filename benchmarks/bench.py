"""Speed, as ratios within one run: seconds differ between machines, ratios hardly. Two rates stand beside them.

Each time is the least of several repeats. `make bench` prints the table.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kdutils import curriculum, projections, recorded
from kdutils.curriculum import Curriculum, Stage
from kdutils.distiller import Distiller
from kdutils.lab.ensemble import Ensemble
from kdutils.lab.lab import GrammarLab, TextLab, TransformerParityLab
from kdutils.lab.optimisers import SGD, Adam, Optimiser
from kdutils.lab.store import Store
from kdutils.lab.training import Run, train
from kdutils.pages import profiles
from kdutils.signals import Hidden, Output
from kdutils.tasks.grammar import Grammar
from kdutils.tasks.models import MLP, Transformer
from kdutils.tasks.parity import SparseParity


def least(work: Callable[[], object], repeats: int = 5, number: int = 1) -> float:
    """Least seconds of one call of `work`."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        for _ in range(number):
            work()
        times.append((time.perf_counter() - started) / number)
    return min(times)


def step(make: Callable[[], Any], seeds: int, task: Any, batch: int, plan: Curriculum, number: int = 100,
         optimiser: Optimiser = SGD(), repeats: int = 4) -> float:  # fmt: skip  # noqa: B008
    """Least seconds of one optimiser step inside `train`: the difference of a long and a short run."""

    def run(steps: int) -> Run:
        return train(Ensemble(make, range(seeds), [1e-3]), task, plan, steps=steps, batch=batch,
                     evaluate_every=steps, held_out=64, optimiser=optimiser, progress=False)  # fmt: skip

    run(number)
    long, short = (min(run(steps).seconds for _ in range(repeats)) for steps in (2 * number, number))
    return (long - short) / number


def gradient(make: Callable[[], Any], task: Any, batch: int, signal: Any) -> float:
    """Least seconds of a signal's target and of one student's gradient, without the start of the stage."""
    student, generator = Ensemble(make, [0]), torch.Generator().manual_seed(0)
    x, y = (part[None] for part in task.sample(max(batch, 1024), generator))
    bound, parameters = signal.bind(student, x, y), list(student.parameters.values())
    x, y = x[:, :batch], y[:, :batch]
    for parameter in parameters:
        parameter.requires_grad_(True)

    def work() -> None:
        target = bound.target(x, y)
        loss = bound.loss(student.run(x, bound.reads)[0], student.spread(target))
        torch.autograd.grad(loss.sum(), parameters, allow_unused=True)

    return least(work, 4)


class Timed(Store):
    """A store that knows how long it took to write the states of runs that go on, and how many there were."""

    seconds, states = 0.0, 0

    def save(self, key: str, *what: Any) -> None:
        started = time.perf_counter()
        super().save(key, *what)
        if key.endswith("-state"):
            self.seconds, self.states = self.seconds + time.perf_counter() - started, self.states + 1


def saving(make: Callable[[], Any], task: Any, steps: int) -> tuple[float, int]:
    """The share of a run's seconds that writing its state takes, as often as `train` ever does; how many states."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Timed(folder)
        run = train(Ensemble(make, range(8), [1e-3]), task, curriculum.from_labels(), steps=steps, batch=64,
                    evaluate_every=100, held_out=64, runs=runs, save_every=1e-3, progress=False)  # fmt: skip
        return runs.seconds / run.seconds, runs.states


def by_hand(network: torch.nn.Module, task: Any, batch: int, rule: Callable[..., Any]) -> Callable[[], None]:
    """The step somebody would write for one network."""
    optimiser, generator = rule(network.parameters(), lr=1e-3), torch.Generator().manual_seed(0)

    def work() -> None:
        x, y = task.sample(batch, generator)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(network(x), y).backward()
        optimiser.step()

    return work


Shape = tuple[int, int, int, int]  # of a batched product: members, rows, in, out


def products(shapes: list[Shape], forward: Sequence[Shape] = ()) -> Callable[[], None]:
    """Matrix products alone: of `shapes` forward and for both gradients, of `forward` no gradients."""

    def fill(members: int, n: int, a: int, b: int) -> list[torch.Tensor]:
        return [torch.randn(members, n, a), torch.randn(members, a, b), torch.randn(members, n, b)]

    full, half = ([fill(*shape) for shape in group] for group in (shapes, forward))

    def work() -> None:
        for x, w, g in full:
            _ = x @ w, g @ w.mT, x.mT @ g
        for x, w, _ in half:
            _ = x @ w

    return work


def share(work: Callable[[], None], seconds: Callable[[], float], repeats: int = 3) -> float:
    """How much of a step its matrix products alone take; each pair measured one after the other, the median of them."""
    return statistics.median(least(work, 1, 5) / seconds() for _ in range(repeats))


def inside(network: Transformer, members: int, batch: int, length: int) -> list[Shape]:
    """The products of a forward pass of `members` networks, each on `batch` sequences of its own."""
    classes, width = network.readout.weight.shape
    rows, heads = batch * length, network.blocks[0].heads
    block = [(members, rows, width, n * width) for n in (3, 1, 4)] + [(members, rows, 4 * width, width)]
    pairs = members * batch * heads
    attention = [(pairs, length, width // heads, length), (pairs, length, length, width // heads)]
    readout = [(members, batch if network.last else rows, width, classes)]
    return len(network.blocks) * (block + attention) + readout


def kernels(network: Transformer, members: int, batch: int, length: int) -> Callable[[], None]:
    """The products of the linear layers and torch's own attention, both with gradients, and nothing else of a step."""
    linear = products([shape for shape in inside(network, members, batch, length) if shape[0] == members])
    width, heads = network.readout.in_features, network.blocks[0].heads
    q, k, v, g = (torch.randn(members * batch, heads, length, width // heads) for _ in range(4))
    wanted = [x.requires_grad_() for x in (q, k, v)]

    def work() -> None:
        linear()
        for _ in network.blocks:
            mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=network.causal)
            torch.autograd.grad(mixed, wanted, g)

    return work


def playground() -> None:
    """Steps a second of a core of the playground's students: its own script, in Node.js."""
    if not (node := shutil.which("node")):
        print("steps a second in the playground: not measured, for Node.js is missing")
        return
    script = Path(__file__).with_name("playground.cjs")
    for line in subprocess.run([node, script], capture_output=True, text=True, check=True).stdout.splitlines():
        signal, rate = line.split()
        print(f"{'playground, steps a second of a core: ' + signal:>45} {float(rate):6,.0f}   (target at least 2,000)")


def recorded_against_live(rows: int = 8, length: int = 64, top_k: int = 32) -> dict[str, float]:
    """Seconds of a student's step with SmolLM2-135M's shape as live teacher over one with its record, in each stage.

    The teacher's weights are random: they do not change what it costs.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    def llama(width: int, layers: int, heads: int, shared: int, inner: int) -> torch.nn.Module:
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=49152, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=shared, intermediate_size=inner, tie_word_embeddings=True,
        ))  # fmt: skip

    teacher, student = llama(576, 30, 9, 3, 1536), llama(64, 2, 2, 2, 256)
    live = curriculum.extracted(teacher, [("model.layers.9", "model.layers.0")], steps=1)
    ids = torch.randint(0, 49152, (rows, length), generator=torch.Generator().manual_seed(0))
    batch, calibration, ratios = {"input_ids": ids[:4]}, {"input_ids": ids}, {}
    with tempfile.TemporaryDirectory() as folder:
        data = [{"input_ids": row} for row in ids]
        recorded.record(live, student, data, folder, calibration=calibration, top_k=top_k, batch=4)
        hosts = [Distiller(student, plan, total=2, calibration=calibration) for plan in (live, recorded.plan(folder))]
    optimiser = torch.optim.AdamW(student.parameters(), 1e-3)

    def work(host: Distiller, stage: int) -> None:
        optimiser.zero_grad()
        host(batch, None, stage, range(4)).backward()
        optimiser.step()

    for stage, name in enumerate(("hidden", "output")):
        seconds = [least(partial(work, host, stage), 3) for host in hosts]
        ratios[name] = seconds[0] / seconds[1]
    return ratios


def main() -> None:
    playground()
    for name, ratio in recorded_against_live().items():
        what = f"live SmolLM2-135M / its record, {name} stage"
        print(f"{what:<46}{ratio:6.1f}   (target at least 5)")

    labels, task = curriculum.from_labels(), SparseParity(50, 6)
    small = partial(MLP, 50, 100)
    one, eight = (step(small, seeds, task, 64, labels, 400) for seeds in (1, 8))
    hand = least(by_hand(small(), task, 64, torch.optim.SGD), number=200)
    print(f"8 members / 1 member, width 100, batch 64     {eight / one:6.2f}   (target at most 2.5)")
    print(f"8 members / 1 network in a plain torch loop   {eight / hand:6.2f}")

    wide = step(partial(MLP, 100, 50_000), 1, SparseParity(100, 6), 512, labels, 6)
    x, w, h = torch.randn(512, 100), torch.randn(50_000, 100), torch.randn(512, 50_000)
    v, g = torch.randn(2, 50_000), torch.randn(512, 2)
    alone = least(lambda: (x @ w.T, h @ v.T, g @ v, g.T @ h, h.T @ x))
    print(f"matmuls of a wide teacher's step / the step   {alone / wide:6.0%}   (target at least 60%)")

    teacher = MLP(50, 4096)
    plans = {"one-shot": curriculum.one_shot(teacher), "extraction": curriculum.extracted(teacher, steps=400)}
    seconds = {"one-shot": step(small, 8, task, 64, plans["one-shot"], 200)}
    hidden = Curriculum("hidden", (Stage(plans["extraction"].stages[0].signal),))
    seconds["extraction"] = step(small, 8, task, 64, hidden, 200)
    print(f"extraction's first stage / one-shot, seconds  {seconds['extraction'] / seconds['one-shot']:6.2f}")
    flops = {
        name: train(Ensemble(small, [0]), task, plan, steps=401, evaluate_every=1, held_out=64, until=0.0).flops[1]
        for name, plan in plans.items()
    }
    print(f"extraction's first stage / one-shot, FLOPs    {flops['extraction'] / flops['one-shot']:6.2f}")

    share_of, states = saving(small, task, 10_000)
    print(f"saving a run's state as often as it may be    {share_of:6.1%}   (target at most 2%; {states} states)")

    # the papers' sizes: a hidden stage reads the units that its views name, and computes no others
    room, big, narrow = SparseParity(100, 6), MLP(100, 50_000), partial(MLP, 100, 1000)
    output = gradient(narrow, room, 512, Output(big))
    views = {"dense": projections.gaussian, **{f"s = {s}": partial(projections.sparse, s=s) for s in (1, 4, 16)}}
    for name, kind in views.items():
        ratio = gradient(narrow, room, 512, Hidden(big, projection=kind)) / output
        aim = "   (target at most 0.50)" if name != "dense" else ""
        print(f"hidden step / one-shot's, 50,000 to 1,000, {name:7}{ratio:6.2f}{aim}")

    cfg3b, generator = Grammar.named("cfg3b"), torch.Generator().manual_seed(0)
    rate = 2000 / least(lambda: cfg3b.sample(2000, generator))
    print(f"sentences of cfg3b a second                   {rate:6,.0f}   (target at least 30,000 on two cores)")

    d, members, batch, bits = 20, 7, 32, SparseParity(20, 5, tokens=True)
    for width in (16, 32, 64, 128):  # the narrower, the more of a step is moving numbers about
        make = partial(Transformer, 2, width, width // 8, 2, d, classes=2, last=True)
        stacked, single = (partial(step, make, n, bits, batch, labels, 20, Adam(), 1) for n in (members, 1))
        ratio = statistics.median(stacked() / (7 * single()) for _ in range(2))
        plain = products(inside(make(), members, batch, d))
        ours = share(plain, stacked)
        bound = share(plain, partial(least, kernels(make(), members, batch, d), 1, 5))
        # what plain torch reaches without any stacking: one network that reads the samples of all seven
        hand = partial(least, by_hand(make(), bits, members * batch, partial(torch.optim.Adam, fused=True)), 1, 5)
        theirs = share(products(inside(make(), 1, members * batch, d)), hand)
        print(f"transformers of width {width:3}: 7 stacked / 7 in a loop {ratio:6.2f}")
        print(f"{'matmuls of their step / the step':>46}{ours:6.0%}")
        print(f"{'the same, one network in a plain torch loop':>46}{theirs:6.0%}")
        # no step on torch's attention can do better: norms, ReLUs, residuals, the loss and Adam come on top
        print(f"{'matmuls / the same, through torch attention':>46}{bound:6.0%}")

    for number, room in {7: TransformerParityLab, 8: GrammarLab, 9: TextLab}.items():
        s = profiles.load(("transformer_parity", "grammar", "english")[number - 7], "book", device="cpu")
        lab, seeds = room(s), len(s.seeds)
        teacher = lab.make_teacher().eval()
        length = lab.task.sample(1, torch.Generator())[0].shape[-1]
        own, theirs = inside(lab.make_student(), seeds, s.batch, length), inside(teacher, 1, seeds * s.batch, length)
        for plan, work in ((labels, products(own)), (curriculum.one_shot(teacher), products(own, theirs))):
            ours = partial(step, lab.make_student, seeds, lab.task, s.batch, plan, 15, lab.optimiser, 2)
            what = f"chapter {number}, {plan.name}: matmuls of a step / it"
            print(f"{what:>46}{share(work, ours, 5):6.0%}   (target at least 50%)")


if __name__ == "__main__":
    main()
