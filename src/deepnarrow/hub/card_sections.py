"""The sections of a model card, each a piece of Markdown made from records, `run.json` or the shape."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from deepnarrow.measure.ledger import Record, select
from deepnarrow.measure.numbers import MISSING, counted, percent, short, significant
from deepnarrow.measure.page import machine_text as describe_machine
from deepnarrow.measure.timing import PHASES
from deepnarrow.shapes import Shape, counts
from deepnarrow.train.config import PAIRS
from deepnarrow.train.run_folder import read_run

NOISE = ("density", "mean_span")  # of objectives that corrupt text; pairs do not
LENGTHS = (512, 114)  # T5's in pretraining, for counting FLOPs where nothing was timed


def origin(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a run says of its data and of what it started from."""
    found = about.get("origin")
    return found if isinstance(found, dict) else {}


def introduction(about: Mapping[str, Any], shape: Shape) -> str:
    task, start = origin(about).get("task"), origin(about).get("model")
    made = f"fine-tuned on `{task}` from `{public(str(start))}`" if task else "pretrained"
    return (
        f"A T5 encoder-decoder of the shape `{shape}`, {short(counts.parameters(shape).total)} parameters, {made} with "
        "DeepNarrow. Deep and narrow shapes follow Tay et al. 2022, *Scale Efficiently* "
        "([arXiv:2109.10686](https://arxiv.org/abs/2109.10686)).\n\n"
        'Every number below was measured and is a line of the ledger, or is counted from the shape. "Not measured" '
        "means that nobody has."
    )


def shape_table(shape: Shape) -> str:
    parts = counts.parameters(shape)
    rows = [
        ("d_model", f"{shape.d_model:,}"),
        ("d_ff", f"{shape.d_ff:,}"),
        ("heads x d_kv", f"{shape.num_heads} x {shape.d_kv}"),
        ("encoder layers", str(shape.encoder_layers)),
        ("decoder layers", str(shape.decoder_layers)),
        ("feed-forward", shape.feed_forward),
        ("vocabulary rows", f"{shape.vocab:,}"),
        ("output matrix", "tied to the embedding" if shape.tied else "its own"),
        *([("key/value heads", str(shape.kv_heads))] if shape.kv_heads else []),
        *([("keys and values", "one projection for both")] if shape.tie_kv else []),
        *([("encoder and decoder", "share their weights")] if shape.share_encoder_decoder else []),
        ("parameters", f"{parts.total:,}"),
        ("parameters without vocabulary", f"{parts.non_embedding:,}"),
    ]
    return table(("", ""), rows)


def training(about: Mapping[str, Any], own: Sequence[Record], run: Path) -> str:
    """Data and recipe of this run, and of the run it started from where that is at hand."""
    parts = [stage(about, own)]
    before = earlier_run(about, run)
    if before is not None:
        parts.append("### Before that\n\n" + stage(before, []))
    return "\n\n".join(parts)


def stage(about: Mapping[str, Any], own: Sequence[Record]) -> str:
    told = origin(about)
    data = [
        (key.replace("_", " "), plain(told[key])) for key in told if key != "fingerprints" and told[key] is not None
    ]
    prints = told.get("fingerprints")
    data += [(f"fingerprint: {key}", f"`{str(value)[:16]}`") for key, value in (prints or {}).items() if value]
    unused = NOISE if about["config"].get("objective") == PAIRS else ()
    config = [(key, plain(value)) for key, value in about["config"].items() if value is not None and key not in unused]
    measured = [
        (one.metric.replace("_", " "), f"{significant(one.value, 4)} {one.unit}")
        for one in select(own, kind="training")
        if one.value is not None
    ]
    parts = [
        f"Kind: {about.get('kind', MISSING)}. Started {about.get('started', MISSING)}.",
        "Data:\n\n" + table(("", ""), data or [("data", MISSING)]),
        "Recipe:\n\n" + table(("", ""), [(f"`{key}`", value) for key, value in config]),
    ]
    if measured:
        parts.append("Result:\n\n" + table(("", ""), measured))
    return "\n\n".join(parts)


def earlier_run(about: Mapping[str, Any], run: Path) -> Mapping[str, Any] | None:
    """`run.json` of the run whose checkpoint this one started from."""
    start = origin(about).get("model")
    if not isinstance(start, str):
        return None
    for place in (Path(start), run.parent / start):
        for folder in (place, *place.parents[:2]):
            if (folder / "run.json").is_file() and folder.resolve() != run.resolve():
                return read_run(folder)
    return None


def plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(plain(one) for one in value)
    if isinstance(value, str):
        return public(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def public(text: str) -> str:
    """A path of one's own machine without what lies above it: a card is read by others.

    >>> public("/home/ada/study/runs/a/checkpoints/step-00000100"), public("hub:owner/name"), public("notes/a.txt")
    ('.../a/checkpoints/step-00000100', 'hub:owner/name', 'notes/a.txt')
    """
    path = PurePath(text)
    return "/".join(["...", *path.parts[-3:]]) if path.is_absolute() and len(path.parts) > 4 else text


def performance(scores: Sequence[Record], tuned: Sequence[Record]) -> str:
    """What this run scores, and what runs that started from it score."""
    if not scores and not tuned:
        return (
            f"{sentence(MISSING)}: the ledger has no score of this run. "
            "`deepnarrow evaluate RUN --task T --ledger FILE` adds one."
        )
    parts = [score_table(scores)] if scores else []
    if tuned:
        parts.append("After fine-tuning from here, each task on its own:\n\n" + score_table(tuned))
    parts.append(
        "Intervals are bootstraps over the items: they cover the choice of test items, not the seed of training. "
        '"No learning" is what an answer without a model scores on the same items.'
    )
    return "\n\n".join(parts)


def score_table(scores: Sequence[Record]) -> str:
    rows = [
        (
            f"{one.task} v{one.task_version}" if one.task_version is not None else str(one.task),
            one.metric.replace("_", " "),
            f"**{one.value:.2f}**" if one.value is not None else str(one.extra.get("outcome", MISSING)),
            interval(one),
            MISSING if one.n is None else f"{one.n:,}",
            one.split or MISSING,
            baseline(one),
            "none" if one.seed is None else str(one.seed),
            how(one),
        )
        for one in scores
    ]
    names = ("task", "metric", "score", "95 % interval", "items", "split", "no learning", "seed", "asked by")
    return table(names, rows)


def interval(one: Record) -> str:
    return MISSING if one.low is None or one.high is None else f"{one.low:.2f} to {one.high:.2f}"


def baseline(one: Record) -> str:
    value = one.extra.get("baseline")
    if not isinstance(value, int | float):
        return MISSING
    return f"{value:.2f} ({one.extra.get('baseline_name', 'baseline')})"


def how(one: Record) -> str:
    limits = [f"{key} {value}" for key, value in one.conditions.items()]
    return ", ".join([str(one.extra.get("search", MISSING)), *limits])


def complexity(shape: Shape, timings: Sequence[Record]) -> str:
    at = timings[0].conditions if timings else {}
    length, target = int(at.get("input_length", LENGTHS[0])), int(at.get("target_length", LENGTHS[1]))
    parts = [counted_costs(shape, length, target)]
    if not timings:
        parts.append(f"Speed and memory: {MISSING}. `deepnarrow bench RUN --ledger FILE` measures them.")
        return "\n\n".join(parts)
    parts += [
        f"Measured on {machine_text(timings[0])}: {length:,} tokens in, {target:,} out, batch {at.get('batch')}, "
        f"{at.get('dtype')}, {at.get('device')}, {counted(int(at.get('threads', 1)), 'thread')}, {timings[0].date}."
        + (
            ""
            if timings[0].model != str(shape)
            else " The shape was timed with random weights; speed does not depend on them."
        ),
        table(
            ("", "ms (median)", "quartiles", "GFLOP/s", "of the GEMM ceiling", "of the read bandwidth"),
            list(timing_rows(timings)),
        ),
        table(("", ""), list(size_rows(timings))),
    ]
    return "\n\n".join(parts)


def counted_costs(shape: Shape, length: int, target: int) -> str:
    if not shape.decoder_layers:
        rows = [("reading the input", f"{short(counts.encode_flops(shape, input_length=length))}FLOP")]
    else:
        lengths = {"input_length": length, "target_length": target}
        flops = {
            "reading the input": counts.encode_flops(shape, input_length=length),
            "its keys and values for the decoder": counts.cross_keys_values_flops(shape, input_length=length),
            "writing the last token": counts.decode_step_flops(shape, position=target - 1, input_length=length),
            "one whole answer": counts.generate_flops(shape, **lengths),
            "one training step": counts.training_step_flops(shape, **lengths),
        }
        rows = [(name, f"{short(value)}FLOP") for name, value in flops.items()]
    rows += [
        (f"weights in {dtype}", f"{counts.weight_bytes(shape, dtype) / 1e6:,.1f} MB")
        for dtype in ("float32", "bfloat16")
    ]
    return (
        f"Counted for one example of {length:,} tokens in and {target:,} out (a multiply-add is two FLOPs, matrix "
        "products only; the encoder works once for each input token, the decoder once for each output token):\n\n"
        + table(("", ""), rows)
    )


def timing_rows(timings: Sequence[Record]) -> Iterator[tuple[str, ...]]:
    for metric, what in PHASES.items():
        for one in select(timings, metric=metric):
            extra = one.extra
            if one.value is None:
                yield (what, str(extra.get("outcome", MISSING)), "", "", "", "")
                continue
            ends = (
                MISSING if one.low is None or one.high is None else f"{significant(one.low)} to {significant(one.high)}"
            )
            gflops = extra.get("gflops")
            yield (
                what,
                significant(one.value),
                ends,
                MISSING if gflops is None else significant(gflops),
                percent(extra.get("share_of_gemm")),
                percent(extra.get("share_of_bandwidth")) if "share_of_bandwidth" in extra else "",
            )


def size_rows(timings: Sequence[Record]) -> Iterator[tuple[str, str]]:
    names = {
        "peak_memory": "peak memory while answering",
        "train_peak_memory": "peak memory while training",
        "train_tokens_per_second": "training speed",
    }
    for metric, what in names.items():
        one = next(iter(select(timings, metric=metric)), None)
        if one is None or one.value is None:
            yield what, str(one.extra.get("outcome", MISSING)) if one else MISSING
        else:
            yield what, f"{significant(one.value)} {one.unit}"


def usage(title: str) -> str:
    return f"""With DeepNarrow:

```sh
deepnarrow generate path/to/{title} "your text"
```

With transformers:

```python
from transformers import AutoTokenizer, T5ForConditionalGeneration

tokenizer = AutoTokenizer.from_pretrained("path/to/{title}")
model = T5ForConditionalGeneration.from_pretrained("path/to/{title}")
ids = tokenizer("your text", return_tensors="pt").input_ids
print(tokenizer.decode(model.generate(ids, max_new_tokens=64)[0], skip_special_tokens=True))
```

A run's checkpoints are such folders (`RUN/checkpoints/step-...`); `deepnarrow export RUN --out FOLDER` writes one
by itself."""


def limitations(about: Mapping[str, Any], scores: Sequence[Record]) -> str:
    lines = [
        "T5 overflows in float16: use float32 or bfloat16.",
        "Scores hold for the tasks, splits and text formats above, and for nothing else.",
        f"Bias, safety and factual accuracy: {MISSING}.",
        "Timings hold for the machine and the lengths above.",
    ]
    if about.get("kind") == "pretrain":
        lines.insert(0, "Pretrained only: it fills in missing spans. Fine-tune it before using it for a task.")
    weak = [one for one in scores if not_shown(one)]
    if weak:
        names = sorted({f"{one.task} {one.metric.replace('_', ' ')}" for one in weak})
        lines.insert(0, f"Not shown to be better than an answer without a model: {', '.join(names)}.")
    return "\n".join(f"- {line}" for line in lines)


def not_shown(one: Record) -> bool:
    base = one.extra.get("baseline")
    least = one.value if one.low is None else one.low
    return isinstance(base, int | float) and (least is None or least <= base)


def provenance(about: Mapping[str, Any], records: Sequence[Record]) -> str:
    rows = [
        ("trained on", machine_of(about.get("machine"))),
        ("trained with", versions_of(about.get("versions"))),
        ("trained at commit", str(about.get("commit") or "installed, no commit")),
        ("measured with", joined(versions_of(one.versions) for one in records)),
        ("measured at commit", joined(one.commit or "installed, no commit" for one in records)),
        ("measured on", joined(machine_text(one) for one in records)),
        ("ledger lines used", f"{len(records)}"),
    ]
    return table(("", ""), rows)


def joined(values: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(values)) or MISSING


def machine_text(one: Record) -> str:
    return machine_of(dict(one.machine))


def machine_of(machine: Any) -> str:
    if not isinstance(machine, dict) or not machine:
        return MISSING
    return describe_machine(machine)


def versions_of(versions: Any) -> str:
    if not isinstance(versions, Mapping) or not versions:
        return MISSING
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar inside a cell is escaped."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )
