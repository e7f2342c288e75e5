"""Examples of the tasks that several benchmarks fine-tune on: token ids out of a folder of local files."""

from pathlib import Path

from deepnarrow import tasks
from deepnarrow.tasks import Pair, Task
from deepnarrow.text.batches import encode_pairs
from deepnarrow.text.tokenizer import Tokenizer

TRAIN = {"sst2": "sst2/train.jsonl", "squad": "squad/squad_train_sample.jsonl.gz"}
HELD_OUT = {"sst2": "sst2/validation.jsonl", "squad": "squad/squad_dev.jsonl"}

Ids = list[tuple[list[int], list[int]]]


def texts(task: Task, data: Path, limit: int | None = None, *, held_out: bool = False) -> list[Pair]:
    """The first `limit` pairs of a task's training file, or of its held-out one."""
    file = (HELD_OUT if held_out else TRAIN)[task.name]
    return tasks.load_pairs(task, "validation" if held_out else "train", data=data / file, limit=limit)


def encoded(task: Task, data: Path, tokenizer: Tokenizer, limit: int | None = None, *, held_out: bool = False) -> Ids:
    """The same as ids: inputs and the first accepted answer, cut to the task's lengths, EOS included."""
    found = [(pair.inputs, pair.accepted[0]) for pair in texts(task, data, limit, held_out=held_out)]
    return encode_pairs(found, tokenizer, task.input_tokens, task.target_tokens)
