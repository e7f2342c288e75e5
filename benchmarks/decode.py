"""Encoding and decoding on a CPU beside `transformers` and CTranslate2, end to end, on the same weights.

    python benchmarks/decode.py --out OUT                                   everything; about half an hour
    python benchmarks/decode.py --out OUT --shapes small --only batch1,beam4 --rounds 5

Weights are random, drawn as published T5s were initialised and the same for all. Sources have 64 or 256 tokens, answers
exactly 64 (no engine may end before). Each library has a process of its own, so that no thread pool or allocator is in
another's way, and only one works at a time. For each case every variant of a peer (float32 or bfloat16, 1 or 2 threads,
eager or, with --compiled, compiled) first shows how fast it is, and the best of each peer takes part in the rounds, in
which all take turns; medians of the rounds are reported. Encoding and the cross-attention's keys and values count.

The physical limit of a step is the time to read the weights it needs: bytes over the bandwidth that PyTorch's sum
reaches when it sweeps over a buffer of that size, looked at in every round. The limit of an encoder is arithmetic:
FLOPs over the speed of PyTorch's float32 matrix product. The last line is JSON.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from deepnarrow import machine
from deepnarrow.shapes import Shape, parse
from deepnarrow.shapes.counts import encode_flops

SHAPES = ("small", "small-el16-dl2", "base")
SOURCES = (64, 256)
TOKENS = 64
WIDTHS = {"float32": 4, "bfloat16": 2, "int8": 1}  # bytes of a weight; the scales of int8 are under 1 %
FIRST_ID = 3  # ids before it mean something
SWEEPS = 5  # over a buffer in one look at the bandwidth; the best counts
REST = 0.2  # seconds between two measurements, for threads that still spin


class Case(NamedTuple):
    shape: str
    what: str  # a key of WHAT
    source: int

    @property
    def batch(self) -> int:
        return WHAT[self.what][0]

    @property
    def beam(self) -> int:
        return WHAT[self.what][1]


WHAT = {"batch1": (1, 1), "batch16": (16, 1), "beam4": (1, 4), "embed": (16, 0)}  # inputs, beams; 0: encoder alone


class Variant(NamedTuple):
    library: str  # deepnarrow, transformers, ctranslate2
    precision: str
    threads: int
    compiled: bool = False

    def __str__(self) -> str:
        return f"{self.library} {self.precision} {self.threads}T{' compiled' if self.compiled else ''}"


class Target(NamedTuple):
    """At least `least` times as fast as the best of the peers' variants that it names."""

    ours: str  # precision
    peer: str  # "ctranslate2", "transformers bfloat16" or "" for the best of all
    least: dict[str, float]  # by shape; "" for all others


TARGETS = {
    "batch1": (
        Target("int8", "ctranslate2", {"base": 3.5, "": 5.0}),
        Target("bfloat16", "transformers bfloat16", {"": 5.0}),
    ),
    "batch16": (Target("int8", "ctranslate2", {"": 2.5}), Target("bfloat16", "transformers bfloat16", {"": 5.0})),
    "beam4": (Target("int8", "ctranslate2", {"": 3.0}), Target("bfloat16", "transformers bfloat16", {"": 5.0})),
    "embed": (Target("", "", {"": 1.4}),),
}


def main() -> None:
    asked = arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows: list[dict[str, Any]] = []
    limits = Limits()
    for shape in asked.shapes:
        folder = weights(asked.out, shape)
        with Workers(asked, folder, parse(shape).vocab, threads) as workers:
            for case in cases(asked, shape):
                found = measure(case, workers, limits, asked)
                rows += found
                print(*(line(row) for row in found), sep="\n", flush=True)
                summary = summed_up(rows, limits, asked, threads)  # kept as it goes: a run is long
                (asked.out / "decode.json").write_text(json.dumps(summary, indent=1))
    print(markdown(summary["verdicts"]))
    print(json.dumps(summary))


def summed_up(rows: list[dict[str, Any]], limits: "Limits", asked: argparse.Namespace, threads: int) -> dict[str, Any]:
    return {
        "rows": rows, "verdicts": verdicts(rows), "tokens": TOKENS, "threads": threads, "rounds": asked.rounds,
        "read_gbs": {size: round(median(found), 1) for size, found in limits.bandwidths.items()},
        "gemm_float32_gflops": round(median(limits.products), 1) if limits.products else None,
        "machine": machine.describe(), "versions": versions(), "commit": machine.commit(), "date": machine.today(),
    }  # fmt: skip


def cases(asked: argparse.Namespace, shape: str) -> Iterator[Case]:
    for what in WHAT:
        if what in asked.only:
            yield from (Case(shape, what, source) for source in asked.sources)


def weights(out: Path, shape: str) -> Path:
    """A model folder of random weights, with names for its ids, written once."""
    from deepnarrow.model.folder import save_model
    from deepnarrow.model.init import initialise
    from deepnarrow.model.t5 import T5

    sys.path.insert(0, str(Path(__file__).parent))
    import peers

    folder = out / shape
    if not folder.exists():
        model = T5(parse(shape))
        initialise(model, 0)
        save_model(model, None, folder)
        peers.name_ids(folder, model.shape.vocab)
    return folder


def measure(case: Case, workers: "Workers", limits: "Limits", asked: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each contender: the medians of rounds in which they took turns."""
    contenders, tried = [], {}
    for library in asked.libraries:
        variants = workers.variants(library, case, asked)
        for variant in variants:  # the first run warms up
            tried[variant] = min(workers.time(variant, case), workers.time(variant, case))
        contenders += kept(library, variants, tried)
    taken: dict[Variant, list[float]] = {variant: [] for variant in contenders}
    for _ in range(asked.rounds):
        limits.look(case, {variant.precision for variant in contenders})
        for variant in contenders:
            spent, times = sum(taken[variant]), taken[variant]
            if len(times) < 2 or spent < asked.seconds:  # slow ones need not take part in every round
                times.append(workers.time(variant, case))
    return [row(case, variant, times, tried, limits) for variant, times in taken.items()]


def kept(library: str, variants: Sequence[Variant], tried: dict[Variant, float]) -> list[Variant]:
    """Of each precision the quickest variant; of CTranslate2 one alone, the quickest of all."""
    if library == "ctranslate2":
        return [min(variants, key=tried.__getitem__)]
    best: dict[str, Variant] = {}
    for variant in sorted(variants, key=tried.__getitem__):
        best.setdefault(variant.precision, variant)
    return list(best.values())


def row(
    case: Case, variant: Variant, times: list[float], tried: dict[Variant, float], limits: "Limits"
) -> dict[str, Any]:
    seconds = median(times)
    others = {str(one): round(taken * 1e3, 2) for one, taken in tried.items() if one.library == variant.library}
    found = {
        **case._asdict(), **variant._asdict(), "ms": round(seconds * 1e3, 3), "rounds": len(times),
        "ms_low": round(min(times) * 1e3, 3), "ms_high": round(max(times) * 1e3, 3), "tried_ms": others,
    }  # fmt: skip
    if case.what == "embed":
        share = limits.encoding(case) / seconds
        return {**found, "per_second": case.batch / seconds, "share_of_limit": share}
    return {
        **found,
        "ms_per_step": seconds * 1e3 / TOKENS,
        "per_second": case.batch * TOKENS / seconds,
        "share_of_limit": limits.step(case, variant.precision) / (seconds / TOKENS),
    }


class Limits:
    """The machine's own speed, looked at in every round, since it drifts as everything else: medians of all looks."""

    def __init__(self) -> None:
        self.buffers: dict[int, Any] = {}
        self.bandwidths: dict[int, list[float]] = {}  # GB/s, by bytes of the working set
        self.products: list[float] = []  # GFLOP/s

    def look(self, case: Case, precisions: set[str]) -> None:
        import torch

        from deepnarrow.measure.ceilings import gemm_gflops

        if case.what == "embed":
            self.products.append(gemm_gflops("float32", seconds=0.3))
            return
        for size in {step_bytes(case, precision) for precision in precisions}:
            buffer = self.buffers.setdefault(size, torch.ones(size // 4))
            buffer.sum()
            best = min(elapsed(buffer.sum) for _ in range(SWEEPS))
            self.bandwidths.setdefault(size, []).append(size / best / 1e9)

    def step(self, case: Case, precision: str) -> float:
        """Seconds to read what a step needs. Encoding is not in it, though it is in what is compared with it."""
        size = step_bytes(case, precision)
        return size / (median(self.bandwidths[size]) * 1e9)

    def encoding(self, case: Case) -> float:
        """Seconds of the products of an encoder at the speed of PyTorch's in float32."""
        flops = encode_flops(parse(case.shape), input_length=case.source, batch=case.batch)
        return flops / (median(self.products) * 1e9)


def elapsed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def step_bytes(case: Case, precision: str) -> int:
    return step_weights(parse(case.shape)) * WIDTHS[precision]


def step_weights(shape: Shape) -> int:
    """Numbers that one decoder step reads of the weights: all blocks but the keys and values of the cross-attention,
    which an input needs once, and the output matrix.

    >>> step_weights(parse("small"))
    38479360
    """
    feed_forward = shape.d_model * shape.d_ff * (3 if shape.gated else 2)
    key_value = shape.d_model * shape.kv_inner * (1 if shape.tie_kv else 2)
    attention = 4 * shape.d_model * shape.inner + key_value  # query and output twice
    norms = 3 * shape.d_model
    blocks = shape.decoder_layers * (feed_forward + attention + norms)
    return blocks + shape.d_model + shape.vocab * shape.d_model


def sources(case: Case) -> list[list[int]]:
    """Random ids with the EOS at the end, the same for every library."""
    chosen, vocab = random.Random(f"{case.source} {case.batch}"), parse(case.shape).vocab
    return [[*(chosen.randrange(FIRST_ID, vocab) for _ in range(case.source - 1)), 1] for _ in range(case.batch)]


class Workers:
    """A process for each library, all on the same folder."""

    def __init__(self, asked: argparse.Namespace, folder: Path, vocab: int, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.threads, self.pipes, self.processes = threads, {}, []
        for library in asked.libraries:
            mine, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, library, folder, vocab, threads), daemon=True)
            process.start()
            self.pipes[library] = mine
            self.processes.append(process)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self.pipes.values():
            pipe.send(None)
        for process in self.processes:
            process.join(20)
            process.terminate()

    def variants(self, library: str, case: Case, asked: argparse.Namespace) -> list[Variant]:
        counts = sorted({1, self.threads})
        if library == "ctranslate2":
            return [Variant(library, precision, count) for precision in ("int8", "float32") for count in counts]
        if library == "transformers":
            ways = [False, True] if asked.compiled and case.beam < 2 else [False]
            return [Variant(library, precision, self.threads, way) for precision in asked.theirs for way in ways]
        return [Variant(library, precision, self.threads) for precision in asked.precisions]

    def time(self, variant: Variant, case: Case) -> float:
        time.sleep(REST)
        self.pipes[variant.library].send((variant, case))
        found = self.pipes[variant.library].recv()
        if isinstance(found, str):
            sys.exit(f"{variant}, {case}: {found}")
        return found


def work(pipe: Connection, library: str, folder: Path, vocab: int, threads: int) -> None:
    """Answer every (variant, case) with the seconds it took, until None comes. Models stay open."""
    sys.path.insert(0, str(Path(__file__).parent))
    ready: dict[tuple[Variant, bool], Callable[[Case], object]] = {}
    open_one = {"transformers": open_transformers, "ctranslate2": open_ctranslate2, "deepnarrow": open_ours}[library]
    while (asked := pipe.recv()) is not None:
        variant, case = asked
        try:
            key = variant, case.what == "embed"
            if key not in ready:
                ready[key] = open_one(folder, vocab, variant, case.what == "embed")
            began = time.perf_counter()
            ready[key](case)
            pipe.send(time.perf_counter() - began)
        except Exception as error:  # told to the parent, which says which case it was
            pipe.send(f"{type(error).__name__}: {error}")


def open_transformers(folder: Path, vocab: int, variant: Variant, encoder: bool) -> Callable[[Case], object]:
    import peers
    import torch

    torch.set_num_threads(variant.threads)
    model = peers.Transformers(folder, variant.precision, compiled=variant.compiled, encoder=encoder)
    return runner(model)


def open_ctranslate2(folder: Path, vocab: int, variant: Variant, encoder: bool) -> Callable[[Case], object]:
    import peers

    make = peers.convert_encoder if encoder else peers.convert
    quantization = None if variant.precision == "float32" else variant.precision
    path = make(
        folder, folder.with_name(f"{folder.name}.ct2{'e' if encoder else ''}.{variant.precision}"), quantization
    )
    names = ["<pad>", "</s>", "<unk>", *(f"w{id}" for id in range(FIRST_ID, vocab))]
    model = peers.CTranslate2(path, names, compute=variant.precision, threads=variant.threads, encoder=encoder)
    return runner(model)


def runner(model: Any) -> Callable[[Case], object]:
    def run(case: Case) -> object:
        if case.what == "embed":
            return model.embed(sources(case))
        found = model.generate(sources(case), most=TOKENS, least=TOKENS, beam=case.beam)
        return check(found)

    return run


def check(found: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    if any(len(ids) != TOKENS for ids in found):
        raise ValueError(f"answers of {sorted(map(len, found))} tokens, not {TOKENS}")
    return found


def open_ours(folder: Path, vocab: int, variant: Variant, encoder: bool) -> Callable[[Case], object]:
    from deepnarrow.runtime import format
    from deepnarrow.runtime.native import open_engine

    converted = folder.with_name(f"{folder.name}.native.{variant.precision}")
    if not converted.exists():
        from deepnarrow.hub.native import to_native
        from deepnarrow.model.folder import open_model

        to_native(open_model(folder), converted, precision=variant.precision)
    return runner(Ours(open_engine(converted / format.NAME, threads=variant.threads, resident=True)))


class Ours:
    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def generate(self, inputs: Sequence[Sequence[int]], *, most: int, least: int, beam: int) -> list[list[int]]:
        from deepnarrow.runtime.search import Beam, Greedy, generate

        search = Beam(beam) if beam > 1 else Greedy()
        found = generate(self.engine, inputs, search, max_tokens=most, min_tokens=least, scores=False)
        return [outputs[0].ids for outputs in found]

    def embed(self, inputs: Sequence[Sequence[int]]) -> Any:
        return self.engine.embed(inputs)


def verdicts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every target beside what was measured, where both sides took part."""
    found = []
    for case in dict.fromkeys(Case(one["shape"], one["what"], one["source"]) for one in rows):
        of_case = [one for one in rows if (one["shape"], one["what"], one["source"]) == case]
        for target in TARGETS[case.what]:
            ours = [one for one in of_case if one["library"] == "deepnarrow" and target.ours in ("", one["precision"])]
            theirs = [one for one in of_case if one["library"] != "deepnarrow" and named(one).startswith(target.peer)]
            if ours and theirs:
                left, right = (min(side, key=lambda one: one["ms"]) for side in (ours, theirs))
                least = target.least.get(case.shape, target.least[""])
                times = right["ms"] / left["ms"]
                found.append(
                    {
                        **case._asdict(), "ours": named(left), "peer": named(right), "ours_ms": left["ms"],
                        "peer_ms": right["ms"], "times": round(times, 2), "target": least, "met": times >= least,
                        "share_of_limit": round(left["share_of_limit"], 3),
                    }
                )  # fmt: skip
    return found


def named(one: dict[str, Any]) -> str:
    return f"{one['library']} {one['precision']}"


def line(one: dict[str, Any]) -> str:
    spread = f"{one['ms_low']:.1f} to {one['ms_high']:.1f}"
    head = f"{one['shape']} {one['what']} source {one['source']}: {named(one)} {one['threads']}T"
    return (
        f"{head}{' compiled' if one['compiled'] else ''} {one['ms']:.1f} ms ({spread}), "
        f"{one['per_second']:,.1f} {'sentences' if one['what'] == 'embed' else 'tokens'}/s, "
        f"{100 * one['share_of_limit']:.0f} % of the limit"
    )


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """
    >>> verdict = {"shape": "small", "what": "batch1", "source": 64, "ours": "deepnarrow int8", "ours_ms": 50.0}
    >>> verdict |= {"peer": "ctranslate2 int8", "peer_ms": 300.0, "times": 6.0, "target": 5.0, "met": True}
    >>> print(markdown([verdict | {"share_of_limit": 0.5}]).splitlines()[-1])
    | small | batch1 | 64 | deepnarrow int8 50.0 ms | ctranslate2 int8 300.0 ms | 6.00x | 5.0x | yes | 50 % |
    """
    lines = ["| shape | what | source | ours | peer | measured | target | met | of the limit |", "|" + " --- |" * 9]
    for one in table:
        lines.append(
            f"| {one['shape']} | {one['what']} | {one['source']} | {one['ours']} {one['ours_ms']:.1f} ms | "
            f"{one['peer']} {one['peer_ms']:.1f} ms | {one['times']:.2f}x | {one['target']}x | "
            f"{'yes' if one['met'] else 'no'} | {100 * one['share_of_limit']:.0f} % |"
        )
    return "\n".join(lines)


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return machine.versions() | {name: version(name) for name in ("transformers", "ctranslate2", "torch")}


def listed(text: str) -> list[str]:
    return text.split(",")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where models and results go")
    parser.add_argument("--shapes", type=listed, default=list(SHAPES))
    parser.add_argument("--only", type=listed, default=list(WHAT), help=f"some of {','.join(WHAT)}")
    parser.add_argument("--sources", type=lambda text: [int(one) for one in listed(text)], default=list(SOURCES))
    parser.add_argument("--libraries", type=listed, default=["deepnarrow", "transformers", "ctranslate2"])
    parser.add_argument("--precisions", type=listed, default=list(WIDTHS), help="of ours")
    parser.add_argument("--theirs", type=listed, default=["float32", "bfloat16"], help="precisions of transformers")
    parser.add_argument("--compiled", action="store_true", help="let transformers compile too; minutes")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0, help="after which a contender has had rounds enough")
    asked = parser.parse_args()
    asked.out = asked.out.resolve()
    return asked


if __name__ == "__main__":
    main()
