"""What `finetune --head` does otherwise than `finetune`: an encoder alone, one task, its own evaluation on the way."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.errors import UserError, nearest

if TYPE_CHECKING:
    from deepnarrow.model.folder import Opened
    from deepnarrow.tasks import Task
    from deepnarrow.train.config import Config
    from deepnarrow.train.finetune import Lesson
    from deepnarrow.train.loop import Evaluate, Result

VECTORS = ("retrieval_accuracy", "mrr")  # what an evaluation of vectors gives


def check(head: str, chosen: "list[Task]", best: str | None) -> None:
    """Before anything is trained."""
    from deepnarrow.model.heads import KINDS

    if head not in KINDS:
        raise UserError(f"unknown head {head!r}; {nearest(head, KINDS)}")
    if len(chosen) > 1:
        raise UserError("a head is trained on one task; a mixture needs a model that writes, without --head")
    known = ["held_out_loss", *(VECTORS if head == "embed" else [metric.name for metric in chosen[0].metrics])]
    if best is not None and best not in known:
        raise UserError(f"no evaluation of this run gives {best!r}; {nearest(best, known)}")


def run(head: str, config: "Config", opened: "Opened", lessons: "list[Lesson]", out: Path, **options: Any) -> "Result":
    from deepnarrow.train.heads import finetune_head

    return finetune_head(config, opened, lessons[0], out, kind=head, **options)


def judge(opened: "Opened", lessons: "list[Lesson]", config: "Config") -> "Evaluate":
    """What a training run calls to score the encoder and head as they are by then, the main metric first."""
    return partial(scores, opened, lessons[0], config)


def scores(opened: "Opened", lesson: "Lesson", config: "Config", model: Any) -> dict[str, float]:
    from deepnarrow.measure.heads import evaluate_head
    from deepnarrow.model.encoding import tokenizer_of
    from deepnarrow.model.heads import OpenedHead

    here = OpenedHead(model, tokenizer_of(opened), model.head, model.shape, opened.origin)
    pairs = lesson.held_out[: config.eval_examples]
    found = evaluate_head(here, lesson.task, pairs, seed=config.seed, samples=1, progress=False)
    return {name: score.value for name, score in found.scores.items()}
