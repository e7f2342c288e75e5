"""A study's file is read strictly: what is not understood is refused, with the nearest right name."""

from pathlib import Path

import pytest

from deepnarrow.errors import UserError
from deepnarrow.measure.study_spec import Study, read_study

SPEC = """
name = "two shapes"
shapes = ["tiny-nl1-dm32", "tiny-dm32-nl1-ff64"]
seeds = [0, 1]
[corpus]
sources = ["text.jsonl", "builtin:python"]
vocab = 1024
[pretrain]
steps = 3
batch = 4
input_length = 64
[[tasks]]
name = "stdlib_topic"
split = "test"
steps = 2
batch = 4
"""


def read(folder: Path, text: str) -> Study:
    path = folder / "study.toml"
    path.write_text(text)
    return read_study(path)


def test_a_study_is_read_with_its_paths_beside_the_file(tmp_path: Path) -> None:
    study = read(tmp_path, SPEC)
    assert study.shapes == ("tiny-dm32-nl1", "tiny-dm32-ff64-nl1")
    assert study.corpus.sources == (str(tmp_path / "text.jsonl"), "builtin:python")
    assert study.tasks[0].training == {"steps": 2, "batch": 4}
    assert study.tasks[0].split == "test"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("seeds =", "seed ="), "unknown key 'seed'.*did you mean seeds"),
        (("vocab = 1024", "vocabulary = 1024"), "unknown key 'vocabulary' in .corpus.*vocab"),
        (("vocab = 1024", ""), "either `tokenizer` or `vocab`"),
        (('sources = ["text.jsonl", "builtin:python"]', ""), "needs `sources`, or `folder`"),
        (('"tiny-nl1-dm32"', '"tiny-xx1"'), "cannot read 'xx1'"),
        (('"tiny-dm32-nl1-ff64"', '"tiny-dm32-nl1"'), "names shape tiny-dm32-nl1 twice"),
        (('name = "stdlib_topic"', 'label = "x"'), "needs a name"),
        (('name = "two shapes"', ""), "needs 'name'"),
        (("seeds = [0, 1]", "seeds = []"), "at least one of each"),
        (("steps = 3", "steps = = 3"), "not valid TOML"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    assert change[0] in SPEC
    with pytest.raises(UserError, match=says):
        read(tmp_path, SPEC.replace(*change, 1))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such study file"):
        read_study(tmp_path / "none.toml")
