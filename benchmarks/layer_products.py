"""Where does a pack of slots compute the same bits as one slot by itself? Products at real layer sizes, on the CPU.

    python benchmarks/layer_products.py [--threads 1 2] [--rows 8] [--write]

A ViT-B layer over 197 tokens and a BERT-base layer over 40, both 768 wide, random weights, fp32, LoRA of rank 4 on q,
k, v and o. Each product gets B rows and then S * B rows (S = 3, 4), forward and backward; what the s-th B of the many
have is compared with what they give by themselves. "equal" says the bits are; otherwise the largest difference of any
slot, relative to the largest value. Weights that the slots share are frozen: no gradients.
"single column": the one product here that differs, which mmsweep avoids by padding ranks and heads to two columns.

Last, what the padding costs: training steps of the quickstart's study with it and without it (rows filled up to 16,
tokens to multiples of four, ranks and heads to two columns), in turn, on one thread.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from pack_steps import PackSteps, seconds_of, slot_studies
from sizes import study_file
from torch import Tensor, nn
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from mmsweep.assembly.host import Warm
from mmsweep.models import few_rows as few_rows_file
from mmsweep.models import last_block, lora, packing
from mmsweep.models.families.family import FAMILIES
from mmsweep.models.last_block import SplitBlock, wanted_tokens
from mmsweep.models.lora import Noise, PackedLoRALinear, add_lora
from mmsweep.models.packing import Packed, PackedLinear, merge, trained
from mmsweep.study import Study
from mmsweep.training.world import World

ROOT = Path(__file__).resolve().parents[1]
D, HEADS, CLASSES, PACKS = 768, 12, 101, (3, 4)
TOKENS = {"ViT-B": 197, "BERT-base": 40}

Product = Callable[[list[Tensor], int], Tensor]
"""What is measured: (the inputs [S * B, ...], S) to the output [S * B, ...]."""


def frozen(inputs: int, outputs: int) -> Product:
    linear = nn.Linear(inputs, outputs).requires_grad_(False)
    return lambda x, S: linear(x[0])


def attention(x: list[Tensor], S: int) -> Tensor:
    q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in x)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def packed(make: Callable[[], nn.Module]) -> Product:
    """A module with slots, merged from as many as are asked for; the s-th is the same whatever their number."""
    ones = [make() for _ in range(max(PACKS))]
    for p in (t.parameter for one in ones for t in trained(one)):
        nn.init.normal_(p, std=0.05)
    whole = {S: merge(ones[:S]) for S in (*PACKS,)}

    def product(x: list[Tensor], S: int) -> Tensor:
        return (whole[S] if S > 1 else ones[product.slot])(x[0])  # type: ignore[attr-defined]

    product.slot = 0  # type: ignore[attr-defined]
    product.parameters = lambda S: [t.parameter for t in trained(whole[S] if S > 1 else ones[product.slot])]  # type: ignore[attr-defined]
    return product


def layer(name: str, last: bool = False) -> nn.Module:
    """One block of the network with adapters on q, k, v and o; the last one gives the tokens that are read alone."""
    if name == "ViT-B":
        block = ViTModel(ViTConfig(num_hidden_layers=1, attn_implementation="sdpa")).eval().layers[0]
    else:
        block = BertModel(BertConfig(num_hidden_layers=1, attn_implementation="sdpa")).eval().encoder.layer[0]
    block.requires_grad_(False)
    linears = [n for n, m in block.named_modules() if isinstance(m, nn.Linear) and "attention" in n]
    assert len(linears) == 4, linears
    add_lora(block, 4, 4.0, 0.0, Noise(), torch.Generator().manual_seed(0), linears)
    if last:
        family, N = FAMILIES["vit" if name == "ViT-B" else "bert"], TOKENS[name]
        wanted = wanted_tokens(N - 1, 1, 1, "last")
        assert wanted is not None
        return Last(SplitBlock(block, family.parts, wanted))
    return First(block)


class Column(Packed):
    """One output a slot, as it would be without padding."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, inputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x.reshape(len(self.weight), -1, x.shape[-1]), self.weight).view(*x.shape[:-1], 1)


class First(nn.Module):
    """A block of transformers gives a tensor or a tuple."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        return y if isinstance(y, Tensor) else y[0]


class Last(First):
    def forward(self, x: Tensor) -> Tensor:
        return self.block(x, None)


def products(name: str) -> Iterator[tuple[str, Product, list[tuple[int, ...]]]]:
    """(what, how, shapes of a row of each input)."""
    N = TOKENS[name]
    if name == "ViT-B":
        convolution = nn.Conv2d(3, D, 16, 16).requires_grad_(False)
        yield "patch embedding", lambda x, S: convolution(x[0]), [(3, 224, 224)]
    yield "q, k, v, o: 768 to 768", frozen(D, D), [(N, D)]
    yield "MLP up: 768 to 3072", frozen(D, 4 * D), [(N, D)]
    yield "MLP down: 3072 to 768", frozen(4 * D, D), [(N, 4 * D)]
    yield "attention (SDPA)", attention, [(N, D)] * 3
    yield "single column: 768 to 1, by slot", packed(lambda: Column(D)), [(N, D)]
    for rank in (1, 8):
        base = nn.Linear(D, D).requires_grad_(False)
        make = lambda rank=rank, base=base: PackedLoRALinear(base, rank, 1.0, 0.0, Noise())  # noqa: E731
        yield f"adapted linear, rank {rank}", packed(make), [(N, D)]
    yield f"head: 768 to {CLASSES}", packed(lambda: PackedLinear(D, CLASSES)), [(D,)]
    one = layer(name)
    twin = {id(t): t for t in one.parameters() if not t.requires_grad}
    yield "the whole layer with adapters", packed(lambda: copy.deepcopy(one, dict(twin))), [(N, D)]
    last = layer(name, last=True)
    twins = {id(t): t for t in last.parameters() if not t.requires_grad}
    yield "the last layer, where it is read", packed(lambda: copy.deepcopy(last, dict(twins))), [(N, D)]


def few_rows(threads: int, most: int = 24) -> list[int]:
    """Up to `most`, the numbers of rows whose product (768 to 768) differs in some bit among S times as many."""
    torch.set_num_threads(threads)
    product, differ = frozen(D, D), []
    for rows in range(1, most + 1):
        found = compare(product, [(D,)], rows)
        if any(found.values()):
            differ.append(rows)
    return differ


def compare(product: Any, shapes: list[tuple[int, ...]], rows: int) -> dict[str, float]:
    """Largest relative difference of any slot by what: 0.0 where all bits are equal."""
    g = torch.Generator().manual_seed(1)
    inputs = [torch.randn(max(PACKS) * rows, *shape, generator=g) for shape in shapes]
    target: Tensor | None = None
    found = {"forward": 0.0, "backward": 0.0}

    def run(share: slice, S: int) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        nonlocal target
        own = [x[share].clone().requires_grad_() for x in inputs]
        y = product(own, S)
        if target is None:
            target = torch.randn(max(PACKS) * rows, *y.shape[1:], generator=g)
        parameters = product.parameters(S) if hasattr(product, "parameters") else []
        gradients = torch.autograd.grad(y, [*own, *parameters], target[share])
        return y.detach(), list(gradients[: len(own)]), list(gradients[len(own) :])

    for S in PACKS:
        y, dx, dp = run(slice(0, S * rows), S)
        for s in range(S):
            share = slice(s * rows, (s + 1) * rows)
            if hasattr(product, "slot"):
                product.slot = s
            y_1, dx_1, dp_1 = run(share, 1)
            found["forward"] = max(found["forward"], difference(y[share], y_1))
            pairs = [*((a[share], b) for a, b in zip(dx, dx_1, strict=True))]
            pairs += [(a[s : s + 1], b) for a, b in zip(dp, dp_1, strict=True)]
            found["backward"] = max([found["backward"], *(difference(a, b) for a, b in pairs)])
    return found


def difference(a: Tensor, b: Tensor) -> float:
    return 0.0 if torch.equal(a, b) else float((a - b).abs().max() / b.abs().max())


def padding(on: bool) -> None:
    few_rows_file.LEAST, last_block.MULTIPLE = (16, 4) if on else (0, 1)
    packing.NARROWEST = lora.NARROWEST = 2 if on else 1


def costs(rounds: int = 7) -> list[dict[str, Any]]:
    """Of each pack: a step's seconds with padding over those without, the median of pairs taken in turn."""
    found = []
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        for batch in (2, 32):
            study = Study.load(study_file("quickstart", Path(place) / str(batch), [f"train.batch_size={batch}"]))
            for slots in (1, 3):
                packs: dict[bool, PackSteps] = {}
                for on in (True, False):
                    padding(on)
                    packs[on] = PackSteps(Warm("cpu", World()), slot_studies(study, slots))
                ratios = []
                for _ in range(rounds):
                    seconds = {}
                    for on, pack in packs.items():
                        padding(on)
                        (seconds[on],) = seconds_of(pack.step, torch.device("cpu"), 1.0, 1)
                    ratios.append(seconds[True] / seconds[False])
                found.append({"batch": batch, "slots": slots, "ratio": median(ratios), "all": sorted(ratios)})
    padding(True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, default=8, help="B, rows of a slot's batch")
    parser.add_argument("--write", action="store_true", help="write docs/results/layer_products.md and .json")
    options = parser.parse_args()
    started, results = time.monotonic(), []
    torch.manual_seed(0)
    for name, tokens in TOKENS.items():
        for what, product, shapes in products(name):
            entry: dict[str, Any] = {"layer": name, "tokens": tokens, "product": what}
            for threads in options.threads:
                torch.set_num_threads(threads)
                entry[f"{threads} threads"] = compare(product, shapes, options.rows)
            results.append(entry)
    few = {threads: few_rows(threads) for threads in options.threads}
    costly = costs()
    seconds = time.monotonic() - started
    columns = [f"{way}, {n} thread{'s' * (n > 1)}" for n in options.threads for way in ("forward", "backward")]
    lines = [
        "# Where packs compute the same bits",
        "",
        f"`python benchmarks/layer_products.py --rows {options.rows}` on {machine()} ({seconds:.0f} s).",
        f"B = {options.rows} rows by themselves against the same rows among {' and '.join(f'{S}B' for S in PACKS)};",
        'a number is the largest difference relative to the largest value, "equal" that all bits are.',
        "Packs have no product of one column (heads, adapters: two at least) or, with frozen weights, of few rows.",
        "",
        f"| layer | product | {' | '.join(columns)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for entry in results:
        cells = [entry[f"{n} threads"][way] for n in options.threads for way in ("forward", "backward")]
        shown = ["equal" if cell == 0.0 else f"{cell:.1e}" for cell in cells]
        lines.append(f"| {entry['layer']} | {entry['product']} | {' | '.join(shown)} |")
    lines += ["", "Rows of a product (768 to 768, up to 24) that differ among more, whatever the layer:"]
    lines += [f"{', '.join(map(str, rows)) or 'none'} on {n} thread{'s' * (n > 1)};" for n, rows in few.items()]
    lines += ["products of fewer than 16 are therefore filled up with rows of zeros (mmsweep/models/few_rows.py)."]
    lines += [
        "",
        "What the padding costs: seconds of a training step of the quickstart's study with it over those without,",
    ]
    lines += ["median (smallest, largest) of pairs taken in turn, one thread:", ""]
    lines += ["| rows of a batch | slots | with / without |", "|---|---|---|"]
    lines += [
        f"| {c['batch']} | {c['slots']} | {c['ratio']:.3f} ({c['all'][0]:.3f}, {c['all'][-1]:.3f}) |" for c in costly
    ]
    print("\n".join(lines))
    if options.write:
        ran = {"rows": options.rows, "packs": list(PACKS), "machine": machine(), "seconds": round(seconds)}
        to = ROOT / "docs" / "results"
        (to / "layer_products.json").write_text(
            json.dumps(ran | {"products": results, "few_rows": few, "costs": costly}, indent=1) + "\n"
        )
        (to / "layer_products.md").write_text("\n".join(lines) + "\n")


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = f"{len(names)} x {names[0]}" if names else cpu
    return f"{cpu}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"


if __name__ == "__main__":
    main()
