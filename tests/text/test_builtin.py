"""The built-in text is English prose, enough of it, and none of it twice. Read from the real standard library."""

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from deepnarrow.errors import UserError
from deepnarrow.text import builtin
from deepnarrow.text.sources import documents, rows


@pytest.fixture(scope="module")
def found() -> list[tuple[str, str]]:
    return list(builtin.documents())


def test_there_is_enough_and_it_comes_soon() -> None:
    began = time.process_time()
    found = builtin.read(builtin.library()).documents
    assert time.process_time() - began < 30.0, "about 1.5 s on one core of 2024, alone"
    assert 1_000_000 < sum(len(text.encode()) for text, _ in found) < 4_000_000
    assert len(found) > 4000


def test_it_is_english(found: list[tuple[str, str]]) -> None:
    text = "\n".join(text for text, _ in found)
    letters = sum(character.isalpha() or character == " " for character in text)
    assert letters > 0.93 * len(text)
    words = Counter(re.findall(r"[a-z']+", text.lower()))
    assert words.most_common(1)[0][0] == "the"
    common = sum(words[word] for word in builtin.COMMON)
    assert common > 0.4 * sum(words.values())
    assert not any(line.lstrip().startswith(">>>") for line in text.split("\n"))
    assert "Copyright" not in text[:100_000]


def test_nothing_comes_twice(found: list[tuple[str, str]]) -> None:
    paragraphs = [paragraph.lower() for text, _ in found for paragraph in text.split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert len({source for _, source in found}) > 0.98 * len(found)  # a property and its setter share a name


def test_sources_name_modules_and_leave_out_tests(found: list[tuple[str, str]]) -> None:
    sources = [source for _, source in found]
    assert "textwrap:dedent" in sources
    assert "json.decoder:JSONDecoder" in sources
    assert any(source.startswith("pydoc_data.topics:") for source in sources)
    parts = {part for source in sources for part in source.split(":")[0].split(".")}
    assert not parts & builtin.LEFT_OUT - {"pydoc_data"}


def test_the_order_is_the_same_in_another_process(found: list[tuple[str, str]]) -> None:
    script = (
        "import hashlib; from deepnarrow.text import builtin\n"
        "print(hashlib.sha256(repr(builtin.read(builtin.library()).documents).encode()).hexdigest())"
    )
    import hashlib

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == hashlib.sha256(repr(found).encode()).hexdigest()


def test_as_a_source(found: list[tuple[str, str]]) -> None:
    first = next(iter(documents("builtin:python")))
    assert first == (found[0][0], f"builtin:python:{found[0][1]}")
    assert next(iter(rows("builtin:python"))).keys() == {"module", "package", "name", "kind", "summary", "body"}


def test_records_are_summaries_with_bodies() -> None:
    records = list(builtin.records())
    assert len(records) > 800
    dedent = next(record for record in records if (record["module"], record["name"]) == ("textwrap", "dedent"))
    assert dedent["summary"] == "Remove any common leading whitespace from every line in `text`.".replace("`", "")
    assert dedent["kind"] == "function"
    assert dedent["body"].startswith("This can be used to make triple-quoted strings line up")
    assert {record["kind"] for record in records} == {"module", "class", "method", "function"}
    for record in records:
        assert record["package"] == record["module"].split(".")[0]
        assert record["summary"] not in record["body"]
        assert 4 <= len(record["summary"].split()) <= 30
        assert len(record["body"].split()) >= 12
        assert "\n" not in record["summary"]
    assert len({record["summary"].lower() for record in records}) == len(records)
    assert len({record["body"].lower() for record in records}) == len(records)
    packages = Counter(record["package"] for record in records)
    assert sum(count >= 15 for count in packages.values()) >= 10, "enough of each for telling packages apart"


def test_records_cannot_be_spoiled_by_a_caller() -> None:
    next(iter(builtin.records()))["summary"] = "changed"
    assert next(iter(builtin.records()))["summary"] != "changed"


DOCSTRING = """Split the text into lines, and return the lines as a list that can be changed.

Two arguments are taken, and the second one is used when there is no first one::

    split(text, None)
    # this is code that nobody should read as a sentence of the text

Values
------
>>> split("a")
the output of a doctest is not the prose that we are looking for here

* the first item of a list that is set with an asterisk in front of it
* ``the second item``, which refers to :func:`os.path.join` and to *nothing* else

:param text: the text that is to be split into lines by this function
.. versionadded:: 3.2
x = [1, 2, 3]; y = f(x, key=lambda v: v ** 2) or None
"""


def test_cleaning() -> None:
    assert builtin.paragraphs(DOCSTRING) == [
        "Split the text into lines, and return the lines as a list that can be changed.",
        "Two arguments are taken, and the second one is used when there is no first one:",
        "the first item of a list that is set with an asterisk in front of it",
        "the second item, which refers to os.path.join and to nothing else",
    ]


def test_comments() -> None:
    source = (
        "x = 1\n# One line, and then\n# another one, and\n# a third one of the same comment.\ny = 2\n# short\nz = 3\n"
    )
    (spoken,) = builtin.comments(source, "module")
    assert spoken.name == "2"
    assert builtin.paragraphs(spoken.text) == ["One line, and then another one, and a third one of the same comment."]


def test_without_sources_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no standard library with sources"):
        builtin.read(tmp_path)


def test_what_was_read_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Read once for all processes; read again where the file is damaged, made of other sources, or not writable."""
    true, times = builtin.prose(), []
    monkeypatch.setattr(builtin, "read", lambda root: times.append(root) or true)
    monkeypatch.setenv("DEEPNARROW_CACHE", str(tmp_path))
    afresh = builtin.prose.__wrapped__
    assert afresh() == afresh() == true
    assert len(times) == 1
    (file,) = tmp_path.rglob("*.json")
    whole = file.read_text("utf-8")
    changed = json.dumps({**json.loads(whole), "made_from": "other sources"})
    for wrong in ("", whole[:-1], "[]", "{}", '{"made_from": 1}', changed):
        file.write_text(wrong, "utf-8")
        times.clear()
        assert afresh() == afresh() == true
        assert len(times) == 1
        assert file.read_text("utf-8") == whole
    monkeypatch.setenv("DEEPNARROW_CACHE", str(file))  # a file where a folder should be
    times.clear()
    assert afresh() == afresh() == true
    assert len(times) == 2


def test_a_changed_library_is_another(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "one.py").write_text('"""Said."""\n')
    states = [builtin.state_of(tmp_path)]
    (tmp_path / "package" / "one.txt").write_text("not a source")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text('"""Not read."""\n')
    assert builtin.state_of(tmp_path) == states[0]
    (tmp_path / "package" / "two.py").write_text('"""Said."""\n')
    states.append(builtin.state_of(tmp_path))
    (tmp_path / "package" / "one.py").write_text('"""Said otherwise."""\n')
    states.append(builtin.state_of(tmp_path))
    os.utime(tmp_path / "package" / "two.py", ns=(1, 1))
    states.append(builtin.state_of(tmp_path))
    (tmp_path / "package" / "two.py").rename(tmp_path / "two.py")
    states.append(builtin.state_of(tmp_path))
    assert len(set(states)) == 5


def test_the_order_is_that_of_the_parts(tmp_path: Path) -> None:
    names = ["a/b.py", "a-b.py", "a.py", "b/test/x.py", "config-3/x.py", "b/config-3/x.py", "_sysconfigdata_x.py"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in builtin.modules(tmp_path)]
    assert found == ["a/b.py", "a-b.py", "a.py", "b/config-3/x.py"]
