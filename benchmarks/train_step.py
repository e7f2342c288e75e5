"""A training step of ours beside `transformers`: eager, sdpa, torch.compile; float32, bfloat16 autocast; AdamW fused.

    python benchmarks/train_step.py --shapes tiny --dtypes float32 --dropouts 0 --rounds 3
    python benchmarks/train_step.py --engines ours,eager --small-pages

Each engine runs in a process of its own, so that its peak memory is its own; the processes take their steps in turn,
so that a machine that slows down slows all. Prints tokens/s, GFLOP/s by our own count, share of the
matrix product's peak measured in the same run, the process's peak resident memory; the last line is JSON.
Random tokens, batch 8 x 512/114, no padding. Needs `transformers`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median

BATCH, INPUTS, TARGETS = 8, 512, 114
ENGINES = ("ours", "eager", "sdpa", "compile")


def serve(engine: str, name: str, dtype: str, dropout: float) -> None:
    """One engine: a step, and a line with its seconds and the peak memory, for each line read."""
    import numpy as np
    import torch

    from deepnarrow.measure.memory import resident
    from deepnarrow.shapes import parse

    torch.manual_seed(0)
    shape, random = parse(name), np.random.default_rng(0)
    inputs, targets = random.integers(3, 32000, (BATCH, INPUTS)), random.integers(3, 32000, (BATCH, TARGETS))
    kind = getattr(torch, dtype)
    if engine == "ours":
        from deepnarrow.model.init import initialise
        from deepnarrow.model.t5 import T5
        from deepnarrow.text.batches import Batch
        from deepnarrow.train import loss

        model: torch.nn.Module = T5(shape, dropout=dropout)
        initialise(model, 0)
        batch = Batch(inputs, targets)

        def backward() -> None:
            loss.accumulate(model, batch, divisor=targets.size, device=torch.device("cpu"), dtype=kind)
    else:
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(
            vocab_size=shape.vocab, d_model=shape.d_model, d_kv=shape.d_kv, d_ff=shape.d_ff,
            num_layers=shape.encoder_layers, num_decoder_layers=shape.decoder_layers, num_heads=shape.num_heads,
            dropout_rate=dropout, decoder_start_token_id=0,
        )  # fmt: skip
        config._attn_implementation = "sdpa" if engine == "sdpa" else "eager"
        model = T5ForConditionalGeneration(config)
        called = torch.compile(model) if engine == "compile" else model
        ids, labels = torch.from_numpy(inputs), torch.from_numpy(targets)

        def backward() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=kind is torch.bfloat16):
                found = called(input_ids=ids, labels=labels, use_cache=False).loss
            found.backward()

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        print("DONE", time.perf_counter() - began, resident("VmHWM") or 0, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="tiny,small,small-el16-dl2")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--dropouts", default="0,0.1")
    parser.add_argument("--engines", default=",".join(ENGINES))
    parser.add_argument("--rounds", type=int, default=5, help="steps of each engine, behind one that warms it up")
    parser.add_argument("--small-pages", action="store_true", help="without THP_MEM_ALLOC_ENABLE, for all engines")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        engine, name, dtype, dropout = asked.serve
        return serve(engine, name, dtype, float(dropout))
    os.environ["THP_MEM_ALLOC_ENABLE"] = "0" if asked.small_pages else "1"

    import torch

    from deepnarrow import machine
    from deepnarrow.measure.ceilings import gemm_gflops
    from deepnarrow.shapes import parse
    from deepnarrow.shapes.counts import training_step_flops

    results = []
    for name in asked.shapes.split(","):
        for dtype in asked.dtypes.split(","):
            for dropout in asked.dropouts.split(","):
                measured, peak = turns(asked.engines.split(","), name, dtype, dropout, asked.rounds, gemm_gflops)
                flops = training_step_flops(parse(name), batch=BATCH, input_length=INPUTS, target_length=TARGETS)
                print(f"\n{name}, {dtype}, dropout {dropout}: peak of a matrix product {peak:.0f} GFLOP/s")
                print(f"{'':<10}{'s/step':>8}{'tokens/s':>10}{'GFLOP/s':>9}{'of peak':>9}{'MiB':>8}")
                for engine, (seconds, memory) in measured.items():
                    middle = median(seconds)
                    row = {
                        "shape": name,
                        "dtype": dtype,
                        "dropout": float(dropout),
                        "engine": engine,
                        "seconds": [round(s, 4) for s in seconds],
                        "peak_bytes": memory,
                        "gemm_gflops": round(peak, 1),
                        "tokens_per_second": round(BATCH * (INPUTS + TARGETS) / middle),
                        "gflops": round(flops / middle / 1e9, 1),
                    }
                    results.append(row)
                    print(
                        f"{engine:<10}{middle:>8.3f}{row['tokens_per_second']:>10,}{row['gflops']:>9}"
                        f"{flops / middle / 1e9 / peak:>9.0%}{memory / 2**20:>8.0f}",
                        flush=True,
                    )
                ours = measured.get("ours")
                for engine, (seconds, memory) in measured.items():
                    if ours and engine != "ours":
                        pace = median(a / b for a, b in zip(seconds, ours[0], strict=True))
                        print(f"  against {engine}: {pace:.2f} times as fast, {ours[1] / memory:.2f} of the memory")
    print(
        json.dumps(
            {
                "results": results,
                "large_pages": not asked.small_pages,
                "threads": torch.get_num_threads(),
                "machine": machine.describe(),
                "versions": machine.versions(),
                "commit": machine.commit(),
            }
        )
    )
    return None


def turns(engines: list[str], name: str, dtype: str, dropout: str, rounds: int, gemm) -> tuple[dict, float]:
    """Seconds of each round and peak bytes of every engine; and the peak of a product, measured in between."""
    work = {
        engine: subprocess.Popen(
            [sys.executable, __file__, "--serve", engine, name, dtype, dropout],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        for engine in engines
    }  # fmt: skip
    measured: dict[str, tuple[list[float], int]] = {engine: ([], 0) for engine in engines}
    peaks = []
    for number in range(rounds + 1):
        peaks.append(gemm(dtype, seconds=0.4))
        for engine, process in work.items():
            process.stdin.write("\n")
            process.stdin.flush()
            for line in process.stdout:
                if line.startswith("DONE"):
                    _, seconds, memory = line.split()
                    measured[engine] = (measured[engine][0] + [float(seconds)] * (number > 0), int(memory))
                    break
            else:
                raise SystemExit(
                    f"{engine} ended early; run `python {__file__} --serve {engine} {name} {dtype} {dropout}`"
                )
    for process in work.values():
        process.stdin.close()
        process.wait(timeout=60)
    return measured, max(peaks)


if __name__ == "__main__":
    main()
