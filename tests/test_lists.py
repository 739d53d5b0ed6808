"""Lists of videos: read exactly as written, bad rows named by line, identity by content."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from salt.errors import UserError
from salt.lists import data_spec, examine_list, read_list, split_by_group
from tests.fuzz_kit import command

ODD_NAMES = ["clip one, take 2.mp4", "NA", "007", 'quote"d.mp4', "#hash%20.mp4", "Übung 動画.mp4", "1e5"]


def write_list(folder: Path, text: str, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def touch(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).write_bytes(b"x" * (number + 1))


def odd_list(newline: str = "\n", mark: str = "") -> str:
    quoted = ['"' + name.replace('"', '""') + '"' for name in ODD_NAMES]
    rows = [f"{name},label {number},NA" for number, name in enumerate(quoted)]
    return mark + newline.join(["path,action,group", *rows[:3], "", "   ", *rows[3:]]) + newline


@pytest.mark.parametrize(
    ("newline", "mark"), [("\n", ""), ("\r\n", ""), ("\n", "\ufeff"), ("\r\n", "\ufeff")]
)
def test_odd_names_are_text_whatever_the_line_ends(tmp_path: Path, newline: str, mark: str) -> None:
    touch(tmp_path, *ODD_NAMES)
    videos = read_list(write_list(tmp_path, odd_list(newline, mark)))
    assert videos.rows == tuple(ODD_NAMES)
    assert videos.files == tuple(tmp_path / name for name in ODD_NAMES)
    assert videos.columns == {"action": tuple(f"label {n}" for n in range(7)), "group": ("NA",) * 7}
    assert videos.labels == ("action",)
    assert videos.line_numbers == (2, 3, 4, 7, 8, 9, 10)
    assert videos.sizes_bytes == (1, 2, 3, 4, 5, 6, 7)


def test_a_quote_inside_an_unquoted_cell_is_a_letter(tmp_path: Path) -> None:
    touch(tmp_path, 'quote"d.mp4')
    assert read_list(write_list(tmp_path, 'path\nquote"d.mp4\n')).rows == ('quote"d.mp4',)


def test_every_bad_row_is_reported_with_its_line(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    (tmp_path / "adir.mp4").mkdir()
    (tmp_path / "dangling.mp4").symlink_to("nowhere.mp4")
    rows = [
        "path,label", "a.mp4,x", "a.mp4 ,x", "./a.mp4,x", "adir.mp4,x", "", "dangling.mp4,x", "gone.mp4,x",
        "b.mp4", "b.mp4,x,y", "b.mp4,", "b.mp4, x", ",x", "b\0.mp4,x", "c.mp4,x",
    ]  # fmt: skip
    path = write_list(tmp_path, "\n".join(rows))
    videos, problems = examine_list(path)
    assert videos.rows == ("a.mp4", "c.mp4")
    expected = {
        3: "without them it is 'a.mp4', which exists",
        4: "repeats line 2",
        5: "is a folder",
        7: "dangling link: it points to 'nowhere.mp4'",
        8: "no such file",
        9: "1 fields where the header has 2",
        10: "quote a cell that contains a comma",
        11: "label 'label' is empty",
        12: "label 'label' is ' x', with spaces around it",
        13: "path is empty",
        14: "NUL",
    }
    assert {item.line for item in problems} == set(expected)
    for item in problems:
        assert expected[item.line] in item.reason
    with pytest.raises(UserError) as caught:
        read_list(path)
    message = str(caught.value)
    assert "11 bad rows" in message
    assert all(f"line {line}:" in message for line in list(expected)[:10])
    assert "and 1 more" in message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty list"),
        (b"\n\n", "empty list"),
        (b"path,label\n", "no rows"),
        (b"a.mp4,3\n", "no column `path`"),
        (b"path label\na.mp4 3\n", "separated by commas"),
        (b"path, label\na.mp4,3\n", "write `path,label`"),
        (b"path,label,label\na.mp4,3,4\n", "'label' appears twice"),
        (b"path,,x\na.mp4,3,4\n", "column 2 has no name"),
        (b'path\n"a.mp4\nb.mp4\n', "list.csv:2: unexpected end of data"),
        (b'path\n"a"x.mp4\n', "list.csv:2:"),
        (b"path\na.mp4\n\xff\xfe.mp4\n", "list.csv:3: not UTF-8"),
        (b"\xff\xfep\0a\0t\0h\0", "not UTF-8"),
    ],
)
def test_a_list_that_cannot_be_read_says_why(tmp_path: Path, data: bytes, said: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    (tmp_path / "list.csv").write_bytes(data)
    with pytest.raises(UserError, match=r"list\.csv") as caught:
        read_list(tmp_path / "list.csv")
    assert said in str(caught.value)


@pytest.mark.parametrize("row", ["a\0b.mp4", "\0", "a.mp4\0", " a\0 ", '"a,\0.mp4"', "/a\0/../b.mp4"])
@pytest.mark.parametrize("verb", ["pack", "bench", "duplicates"])
def test_a_nul_character_in_a_path_is_named_with_its_line(tmp_path: Path, row: str, verb: str) -> None:
    touch(tmp_path, "a.mp4")
    path = write_list(tmp_path, f"path\na.mp4\n{row}\n")
    ended = command("salt-data", verb, str(path), "--store", str(tmp_path / "store"))
    assert ended.code == 2
    assert ended.err.startswith(f"error: {path}: 1 bad row; correct them, or write a list without them")
    assert "  line 3: " in ended.err
    assert "the path contains a NUL character" in ended.err
    assert "\0" not in ended.err
    assert not (tmp_path / "store").exists()


def test_a_missing_list_and_a_folder_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no list at"):
        read_list(tmp_path / "none.csv")
    with pytest.raises(UserError, match="cannot read"):
        read_list(tmp_path)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    touch(here, "a.mp4", "b.mp4")
    rows = "path,x,y\na.mp4,1,2\nb.mp4,3,4\n"
    spec = data_spec(read_list(write_list(here, rows)), "train")
    assert (spec.name, spec.clips, len(spec.fingerprint)) == ("train", 2, 20)

    def fingerprint(text: str, folder: Path = here) -> str:
        return data_spec(read_list(write_list(folder, text, "other.csv")), "train").fingerprint

    same = [
        rows.replace("\n", "\r\n"),
        "path,y,x\n./a.mp4,2,1\n\nb.mp4,4,3\n",
        f"path,x,y\n{here}/a.mp4,1,2\n{here}/b.mp4,3,4\n",
    ]
    assert {fingerprint(text) for text in same} == {spec.fingerprint}
    different = [
        "path,x,y\nb.mp4,3,4\na.mp4,1,2\n",
        "path,x,z\na.mp4,1,2\nb.mp4,3,4\n",
        "path,x,y\na.mp4,1,2\nb.mp4,3,5\n",
        "path,x\na.mp4,1\nb.mp4,3\n",
        "path,x,y\na.mp4,1,2\n",
    ]
    assert len({spec.fingerprint, *(fingerprint(text) for text in different)}) == 6
    shutil.copytree(here, tmp_path / "there")
    assert fingerprint(rows, tmp_path / "there") == spec.fingerprint
    os.truncate(here / "b.mp4", 1)
    assert fingerprint(rows) != spec.fingerprint


def test_a_split_keeps_groups_whole_and_does_not_depend_on_order(tmp_path: Path) -> None:
    names = [f"{number:03d}.mp4" for number in range(200)]
    touch(tmp_path, *names)
    rows = [f"{name},g{number // 5}" for number, name in enumerate(names)]
    videos = read_list(write_list(tmp_path, "\n".join(["path,group", *rows])))
    rest, held = split_by_group(videos, 0.2, seed=3)
    assert sorted(rest + held) == list(range(200))
    assert len(held) == 40
    assert {videos.groups[i] for i in rest}.isdisjoint({videos.groups[i] for i in held})
    turned = read_list(write_list(tmp_path, "\n".join(["path,group", *reversed(rows)]), "turned.csv"))
    again = split_by_group(turned, 0.2, seed=3)[1]
    assert {turned.rows[i] for i in again} == {videos.rows[i] for i in held}
    assert split_by_group(videos, 0.2, seed=4)[1] != held
    ungrouped = read_list(write_list(tmp_path, "\n".join(["path", *names]), "ungrouped.csv"))
    assert len(split_by_group(ungrouped, 0.1, seed=0)[1]) == 20
    one = read_list(write_list(tmp_path, "path,group\n000.mp4,g\n001.mp4,g\n", "one.csv"))
    with pytest.raises(UserError, match="one group"):
        split_by_group(one, 0.5, seed=0)
    with pytest.raises(UserError, match="between 0 and 1"):
        split_by_group(videos, 1.0, seed=0)
