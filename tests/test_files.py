"""Files are whole or absent, and a ledger survives a power cut."""

from pathlib import Path

import pytest

from deepnarrow import files
from deepnarrow.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    files.write_json(path, {"step": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"step": object()})
    assert files.read_json(path) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"

    def write_half() -> None:
        with files.whole_folder(target) as folder:
            (folder / "a").write_text("half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        write_half()
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with files.whole_folder(target) as folder:
            (folder / "a").write_text(text)
        assert (target / "a").read_text() == text
        assert list(tmp_path.iterdir()) == [target]


def test_files_of_a_folder_can_be_read_as_any_other(tmp_path: Path) -> None:
    with files.whole_folder(tmp_path / "model") as folder:
        (folder / "weights").write_bytes(b"1")
        (folder / "weights").chmod(0o600)
    (tmp_path / "usual").write_bytes(b"1")
    assert (tmp_path / "model" / "weights").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    files.append_json(path, {"n": 1})
    with path.open("a") as file:
        file.write('{"n": 2, "val')
    assert files.read_json_lines(path) == [{"n": 1}]
    files.append_json(path, {"n": 3})
    assert files.read_json_lines(path) == [{"n": 1}, {"n": 3}]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"n": 1}\n{"n":\n{"n": 3}\n')
    with pytest.raises(UserError, match="line 2"):
        files.read_json_lines(path)


@pytest.mark.parametrize(
    ("content", "says"), [(None, "no such file"), (b"\xff", "not valid JSON"), (b"{", "not valid")]
)
def test_an_unreadable_file_is_one_sentence(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "run.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        files.read_json(path)
