"""Arguments of `generate` read without typer mean what typer says they mean."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepnarrow.cli import app, generating, quick
from deepnarrow.errors import UserError

DEFAULTS: dict[str, Any] = dict(generating.run.__kwdefaults__)
VALUES = {
    quick.plain: st.sampled_from(["cpu", "-", "a b", "x=y", "--json", "-1", "\u00e9"]),
    quick.whole: st.sampled_from(["0", "7", "-3", "+4", "007", "1_000", "2.0", "x", " 1", "", "\u0663"]),
    quick.decimal: st.sampled_from(["0", "0.8", "-.5", "1.", "1e-3", "1E5", "nan", "inf", "0x1", "1_0.5", "x", " 1.0"]),
}
pieces = [st.tuples(st.just(option), VALUES[read]) for option, (_, read) in quick.OPTIONS.items()]
pieces += [st.tuples(st.just(option), VALUES[quick.plain]) for option in quick.LISTS]
pieces += [st.tuples(st.just(option)) for option in quick.FLAGS]
pieces += [st.tuples(st.sampled_from(["model", "a text", "", "-", "--", "-x", "--help", "--beam", "--max"]))]
words = st.lists(st.one_of(pieces), max_size=6).map(lambda parts: [word for part in parts for word in part])
joined = words.map(lambda found: [found[0] + "=" + found[1], *found[2:]] if len(found) > 1 else found)


@given(rest=words | joined, placed=st.sampled_from([[], ["runs/one"], ["runs/one", "who?"]]))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_both_read_the_same(monkeypatch: pytest.MonkeyPatch, rest: list[str], placed: list[str]) -> None:
    arguments = ["generate", *placed, *rest]
    found = quick.generate_arguments(arguments)
    if found is None:
        return  # typer's turn
    called: list[dict[str, Any]] = []
    monkeypatch.setattr(generating, "run", lambda **given: called.append(given))
    app.run(arguments)
    [by_typer] = called
    assert {name: (type(value), value) for name, value in by_typer.items()} == {
        name: (type(value), value) for name, value in (DEFAULTS | found).items()
    }


@pytest.mark.parametrize(
    "rest",
    [
        ["m", "t", "--max-tokens", "9", "--json"],
        ["m", "--file", "-", "--batch", "2"],
        ["m", "t", "--prompt", "a", "--prompt=b", "--runtime", "native", "--dtype", "int8", "--device", "cpu"],
        ["--beam=4", "m", "--length-penalty", "0.6", "t", "--num-return", "2", "--revision", "main"],
        ["m", "t", "--temperature", "0.8", "--top-k", "5", "--top-p", ".9", "--seed", "3"],
    ],
)
def test_plain_arguments_are_read_at_once(rest: list[str]) -> None:
    assert quick.generate_arguments(["generate", *rest]) is not None


@pytest.mark.parametrize(
    "rest",
    [
        [],
        ["m", "t", "u"],
        ["m", "--help"],
        ["m", "t", "--bean", "4"],
        ["m", "t", "--beam", "four"],
        ["m", "t", "--beam", "4", "--beam", "5"],
        ["m", "t", "--beam"],
        ["m", "t", "--file="],
        ["m", "--", "t"],
    ],
)
def test_whatever_needs_a_word_is_left_to_typer(rest: list[str]) -> None:
    assert quick.generate_arguments(["generate", *rest]) is None


def test_no_option_is_missing() -> None:
    import typer

    from deepnarrow.cli.generate import app as verb

    command: Any = typer.main.get_command(verb)
    known = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    assert known == {*quick.OPTIONS, *quick.LISTS, *quick.FLAGS}
    names = {name for name, _ in quick.OPTIONS.values()} | {*quick.LISTS.values(), *quick.FLAGS.values()}
    assert names | {*quick.ARGUMENTS} == {parameter.name for parameter in command.params}
    assert {parameter.name: parameter.default for parameter in command.params if parameter.name in DEFAULTS} == DEFAULTS


def test_other_verbs_are_not_touched() -> None:
    assert quick.generate_arguments(["shapes", "tiny"]) is None
    assert quick.generate_arguments([]) is None
    with pytest.raises(UserError, match="no such verb"):
        app.run(["generat", "m", "t"])
