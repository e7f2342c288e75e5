"""`deepnarrow generate`: answer texts with a model."""

from typing import Annotated

import typer

from deepnarrow.cli import generating

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A run, a converted or Hugging Face folder, a hub name.")
    ],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="The text to answer.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN", help="A soft prompt over MODEL; several: an answer with each, in one batch."),
    ] = None,
    file: Annotated[str | None, typer.Option(metavar="FILE", help="Texts, one a line; - is standard input.")] = None,
    beam: Annotated[int | None, typer.Option(help="Search with a beam of this width; default: greedily.")] = None,
    length_penalty: Annotated[
        float | None, typer.Option(help="Of a beam: answers rank by log-probability / length ** this.  [default: 1]")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample; below 1 nearer to the likeliest.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from so many likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the likeliest tokens that together have this probability.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    max_tokens: Annotated[int, typer.Option(help="The most tokens of an answer.")] = 64,
    num_return: Annotated[int, typer.Option(help="Answers for each text, each on a line.")] = 1,
    batch: Annotated[int, typer.Option(help="Texts at once; answers do not depend on it.")] = 16,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, or int8 (native).  [default: float32, or as converted]")
    ] = None,
    runtime: Annotated[str, typer.Option(help="auto (native on a CPU, where it was built), native or torch.")] = "auto",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub name.")] = None,
    choices: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Answer with the likeliest of these, by exact probabilities.")
    ] = None,
    choices_file: Annotated[str | None, typer.Option(metavar="FILE", help="The same, one a line.")] = None,
    regex: Annotated[
        str | None, typer.Option(metavar="R", help="Answer with what a regular expression matches.")
    ] = None,
    json_schema: Annotated[str | None, typer.Option(metavar="FILE", help="Answer with JSON of this schema.")] = None,
    draft: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A smaller model of the vocabulary drafts: the same answer sooner."),
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", help="Drafts are copied from the text, as summaries repeat it.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one object a line for each text.")] = False,
) -> None:
    """Answer texts with a model, one answer a line, in the order of the texts.

    On a CPU the native runtime answers, from a converted model (deepnarrow export --to native); any other MODEL is
    converted when it is first used, and kept.

    \b
    Example:
      deepnarrow generate runs/nq "nq question: who wrote hamlet?"
      deepnarrow generate google/t5-efficient-tiny "The <extra_id_0> walks in <extra_id_1> park" --beam 4
      deepnarrow generate runs/summaries --file articles.txt --max-tokens 128 --json > answers.jsonl
      deepnarrow generate runs/tiny-dl2 "a fine film" --prompt runs/sentiment --prompt runs/topic
      deepnarrow generate runs/nq "nq question: who wrote hamlet?" --temperature 0.8 --top-p 0.9 --num-return 5
      deepnarrow generate runs/sst2 "sst2 sentence: a fine film" --choices positive,negative --json
      deepnarrow generate runs/summaries --file articles.txt --copy --draft runs/summaries-dl2
    """
    generating.run(
        model=model,
        text=text,
        prompt=prompt,
        file=file,
        beam=beam,
        length_penalty=length_penalty,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        max_tokens=max_tokens,
        num_return=num_return,
        batch=batch,
        device=device,
        dtype=dtype,
        runtime=runtime,
        revision=revision,
        choices=choices,
        choices_file=choices_file,
        regex=regex,
        json_schema=json_schema,
        draft=draft,
        copy=copy,
        as_json=as_json,
    )
