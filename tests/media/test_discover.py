"""Discovery: what a user names, and what it comes to."""

import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cld_stream.errors import UsageError
from cld_stream.media.discover import Item, discover, is_store, natural_key
from cld_stream.media.ignore import IgnoreRules
from cld_stream.media.numbered import MIN_MEMBERS
from cld_stream.media.probe import kind_of, probe
from cld_stream.media.scan import Scan


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def pictures(folder: Path, names: list[str], size: tuple[int, int] = (8, 6), exif: Image.Exif | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", size).save(folder / name, exif=exif or Image.Exif())


def names(found: list[Item], root: Path) -> list[str]:
    return [str(item.path.relative_to(root)) for item in found]


def test_folders_are_walked_in_natural_order_and_hidden_entries_left_out(tmp_path: Path) -> None:
    touch(*(tmp_path / n for n in ("b/clip10.mp4", "b/clip9.mp4", "a.mp4", ".hidden.mp4", ".git/x.mp4", "c/d/e.mp4")))
    assert names(discover([str(tmp_path)]).items, tmp_path) == ["a.mp4", "b/clip9.mp4", "b/clip10.mp4", "c/d/e.mp4"]


def test_link_loops_end_and_a_real_folder_comes_before_a_link_to_it(tmp_path: Path) -> None:
    touch(tmp_path / "z" / "a.mp4")
    (tmp_path / "z" / "loop").symlink_to(tmp_path)
    (tmp_path / "a-link").symlink_to(tmp_path / "z")
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    found = discover([str(tmp_path)])
    assert names(found.items, tmp_path) == ["z/a.mp4"]
    assert [(p.name, r) for p, r in found.skipped] == [("nowhere", "a link that leads nowhere")]


def test_special_files_are_skipped_with_a_reason(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert discover([str(tmp_path)]).skipped == [
        (tmp_path / "pipe.mp4", "a pipe, socket or device: not a file that can be read again")
    ]


def test_cldignore_nests_as_gitignore_does(tmp_path: Path) -> None:
    touch(*(tmp_path / n for n in ("a.mp4", "b.tmp", "raw/x.mp4", "raw/keep.mp4", "deep/raw/y.mp4", "deep/c.tmp")))
    (tmp_path / ".cldignore").write_text("*.tmp\n/raw/*\n!/raw/keep.mp4\n")
    (tmp_path / "deep" / ".cldignore").write_text("!c.tmp\n")
    assert names(discover([str(tmp_path)]).items, tmp_path) == ["a.mp4", "deep/c.tmp", "deep/raw/y.mp4", "raw/keep.mp4"]


def test_an_ignored_folder_is_not_entered_but_a_named_file_is_taken(tmp_path: Path) -> None:
    touch(tmp_path / "raw" / "x.mp4")
    (tmp_path / ".cldignore").write_text("raw/\n")
    assert discover([str(tmp_path)]).items == []
    assert len(discover([str(tmp_path / "raw" / "x.mp4")]).items) == 1
    assert IgnoreRules().entered(tmp_path).ignores(tmp_path / "raw", is_dir=True)


PATTERNS = [
    "a*.mp4", "*.tm?", "/raw", "raw/", "deep/**/x", "**/b", "deep/**", "!deep/c.tmp", "[ab].mp4", "[!a]*.mp4", "?",
    "\\#odd", "# no rule", "#odd", "\\!odd", "*", "!*/", "!*.mp4", "**", "d*p", "deep/*/x", "trailing   ", "[",
    "a\\", "esc\\ ", "[a-c].tmp", "[b-a].mp4", "[]x].tmp", "[x\\]].tmp", "/", "",
    "**/deep/c.tmp", "/deep/c.tmp", "c.tmp/", "*b*", "*a*.m*4",
]  # fmt: skip
PATHS = [
    "a.mp4", "ab.mp4", "b.mp4", "c.tmp", "#odd", "!odd", "trailing", "esc ", "].tmp", "x.tmp", "b/b", "raw/x.mp4",
    "deep/c.tmp", "deep/x", "deep/er/x", "deep/er/raw/x", "deep/deep/c.tmp", "deep/raw/y.mp4",
]  # fmt: skip


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the judge")
def test_cldignore_means_what_git_makes_of_it(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in PATHS))
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    everything = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if ".git" not in p.parts)
    for lines in [*([p] for p in PATTERNS), ["*", "!*/", "!*.mp4"], ["deep/*", "!deep/er"], ["/*", "!/raw", "/raw/*"]]:
        for name in (".cldignore", ".gitignore"):
            (tmp_path / name).write_text("\n".join(lines) + "\n")
        rules = IgnoreRules().entered(tmp_path)

        def ignored(name: str, rules: IgnoreRules = rules) -> bool:
            chain = [tmp_path / name, *(tmp_path / name).parents]
            return any(rules.ignores(p, is_dir=p.is_dir()) for p in chain[: chain.index(tmp_path)])

        asked = subprocess.run(
            ["git", "-C", tmp_path, "check-ignore", "--no-index", "-z", "--stdin"],
            input="\0".join(everything), capture_output=True, text=True,
        )  # fmt: skip
        assert [n for n in everything if ignored(n)] == [n for n in everything if n in asked.stdout.split("\0")], lines


@pytest.mark.skipif(shutil.which("git") is None, reason="git is the judge")
def test_a_set_that_does_not_end_names_nothing_as_in_git(tmp_path: Path) -> None:
    names = ["[]", "]", "!", "a", "x[]", "x", "- [] todo", "]a", "!]", "]]", "a]"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    for line in ["[]", "[!]", "[^]", "x[]", "- [] todo", "[]]", "[!]]", "[]a]", "[!a", "[]]]", "[a]]", "\\[]"]:
        (tmp_path / ".cldignore").write_text(f"{line}\n")
        (tmp_path / ".gitignore").write_text(f"{line}\n")
        rules = IgnoreRules().entered(tmp_path)
        asked = subprocess.run(
            ["git", "-C", tmp_path, "check-ignore", "--no-index", "-z", "--stdin"],
            input="\0".join(names), capture_output=True, text=True,
        )  # fmt: skip
        ignored = [n for n in names if rules.ignores(tmp_path / n, is_dir=False)]
        assert ignored == [n for n in names if n in asked.stdout.split("\0")], line


@pytest.mark.parametrize("line", ["*a" * 7 + "*b", "*a" * 30_000 + "*b", " " * 65_000 + "x"])
def test_no_cldignore_takes_long(tmp_path: Path, line: str) -> None:
    name = "a" * 200
    touch(tmp_path / name)
    (tmp_path / ".cldignore").write_text(line)
    look = f"from cld_stream.media.discover import discover; print(len(discover([{str(tmp_path)!r}]).items))"
    told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=20)
    assert told.stdout == "1\n"


def test_any_number_of_folders_does_not_take_long(tmp_path: Path) -> None:
    (tmp_path / ".cldignore").write_text("**/a/" * 12 + "b\n")
    rules = IgnoreRules().entered(tmp_path)
    began = time.process_time()
    assert not rules.ignores(tmp_path / "/".join("a" * 200), is_dir=False)
    assert time.process_time() - began < 1


def test_a_folder_whose_cldignore_is_too_large_is_left_out_and_told(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4", tmp_path / "odd" / "b.mp4")
    with (tmp_path / "odd" / ".cldignore").open("wb") as file:
        file.truncate(2**40)
    found = discover([str(tmp_path)])
    assert names(found.items, tmp_path) == ["a.mp4"]
    assert found.skipped == [(tmp_path / "odd", "cannot be read: its .cldignore is larger than 64 kB")]
    scan = Scan(str(tmp_path), {})
    assert [seen.folder for seen in scan] == [str(tmp_path)]
    assert scan.unread == {str(tmp_path / "odd"): "its .cldignore is larger than 64 kB"}


def test_a_folder_whose_cldignore_cannot_be_read_is_left_out_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(file: Path, *how: Any, **more: Any) -> Any:
        if file == tmp_path / "shut" / ".cldignore":  # whoever runs the tests may read everything
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return really(file, *how, **more)

    really = Path.open

    touch(tmp_path / "shut" / "private.jpg", tmp_path / "b.jpg")
    (tmp_path / "shut" / ".cldignore").write_text("private*\n")
    monkeypatch.setattr(Path, "open", opened)
    found = discover([str(tmp_path)])
    why = "its .cldignore cannot be read (Permission denied)"
    assert [item.path.name for item in found.items] == ["b.jpg"]
    assert found.skipped == [(tmp_path / "shut", f"cannot be read: {why}")]
    scan = Scan(str(tmp_path), {})
    assert [list(seen.changed) for seen in scan] == [["b.jpg"]]
    assert scan.unread == {str(tmp_path / "shut"): why}


def test_a_cldignore_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    os.mkfifo(tmp_path / ".cldignore")
    look = f"from cld_stream.media.discover import discover; print(len(discover([{str(tmp_path)!r}]).items))"
    told = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=20)
    assert told.stdout == "1\n"


def test_of_a_store_json_among_the_footage_only_the_head_is_read(tmp_path: Path) -> None:
    touch(tmp_path / "odd" / "a.mp4")
    (tmp_path / "odd" / "store.json").write_text("{}")
    with (tmp_path / "odd" / "store.json").open("r+b") as file:
        file.truncate(2**40)  # larger than memory
    assert not is_store(tmp_path / "odd")
    assert "odd/a.mp4" in names(discover([str(tmp_path)]).items, tmp_path)


def test_the_same_file_named_twice_is_one_item(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    assert len(discover([str(tmp_path), str(tmp_path / "a.mp4"), str(tmp_path)]).items) == 1


def test_an_input_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        discover([str(tmp_path / "absent")])


def test_names_with_newlines_and_bytes_that_are_no_text_survive(tmp_path: Path) -> None:
    odd = [os.fsdecode(b"new\nline.mp4"), os.fsdecode(b"\xff\xfe.mp4"), "дача.mp4"]
    touch(*(tmp_path / n for n in odd))
    found = discover([str(tmp_path)]).items
    assert sorted(names(found, tmp_path)) == sorted(odd)
    (tmp_path / "list.txt").write_bytes(b"\0".join(os.fsencode(n) for n in odd))
    assert names(discover([f"@{tmp_path}/list.txt"]).items, tmp_path) == odd


def test_a_list_is_relative_to_itself_and_has_comments(tmp_path: Path) -> None:
    touch(tmp_path / "in" / "a.mp4", tmp_path / "in" / "sub" / "b.mp4")
    (tmp_path / "in" / "list.txt").write_text("# mine\n\nsub\na.mp4\ngone.mp4\n")
    found = discover([f"@{tmp_path}/in/list.txt"])
    assert names(found.items, tmp_path / "in") == ["sub/b.mp4", "a.mp4"]
    assert [p.name for p, _ in found.skipped] == ["gone.mp4"]


def test_a_leaf_folder_of_numbered_pictures_is_one_sequence(tmp_path: Path) -> None:
    pictures(tmp_path / "run1", [f"{i:02d}.png" for i in range(30, 42)])
    pictures(tmp_path / "run2", [f"frame_{i}.png" for i in range(0, 24, 2)])
    found = discover([str(tmp_path)], sequence_fps=10.0).items
    assert [(i.kind, i.path.name, len(i.members)) for i in found] == [
        ("sequence", "run1", 12),
        ("sequence", "run2", 12),
    ]
    assert [m.time_s for m in found[1].members][:3] == [0.0, 0.1, 0.2]
    assert found[1].members[5].path.name == "frame_10.png"


@pytest.mark.parametrize(
    "dump",
    [
        [f"IMG_{i:04d}.jpg" for i in range(1, 20)],
        [f"DSCN{i:04d}.jpg" for i in range(1, 20)],
        [f"holiday {i}.jpg" for i in (1, 2, 5, 9, 14, 20, 27, 35, 44)],
        [f"frame{i}.jpg" for i in range(MIN_MEMBERS - 1)],
        [f"frame{i}.jpg" for i in range(20)] + ["cover.jpg"],
    ],
)
def test_a_photo_dump_is_not_a_frame_folder(tmp_path: Path, dump: list[str]) -> None:
    pictures(tmp_path, dump)
    assert {i.kind for i in discover([str(tmp_path)]).items} == {"file"}


def test_numbered_photos_of_a_camera_or_of_several_sizes_stay_photos(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0132] = "2024:05:06 12:00:00"
    pictures(tmp_path / "camera", [f"{i}.jpg" for i in range(12)], exif=exif)
    pictures(tmp_path / "mixed", [f"pic{i}.jpg" for i in range(6)])
    pictures(tmp_path / "mixed", [f"pic{i}.jpg" for i in range(6, 12)], size=(9, 9))
    assert {i.kind for i in discover([str(tmp_path)]).items} == {"file"}


TABLE = """split\tframe\tsequence\tpath\tlabel
train\t1\tb\tp/b1.png\tcup
eval\t0\tc\tp/c0.png\tcar
train\t0\tb\tp/b0.png\tcup
train\t0\ta\tp/a0.png\tdog
"""


def test_a_table_gives_sequences_in_order_of_first_appearance(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text(TABLE)
    found = discover([f"@{tmp_path}/list.tsv"], sequence_fps=5.0).items
    assert [(i.path.name, i.label, i.split) for i in found] == [
        ("list.tsv#b", "cup", "train"), ("list.tsv#c", "car", "eval"), ("list.tsv#a", "dog", "train"),
    ]  # fmt: skip
    assert [(m.path, m.time_s) for m in found[0].members] == [
        (tmp_path / "p/b0.png", 0.0), (tmp_path / "p/b1.png", 0.2),
    ]  # fmt: skip


def test_a_table_is_filtered_by_columns(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text(TABLE)
    assert [i.path.name for i in discover([f"@{tmp_path}/list.tsv?split=train&label=dog"]).items] == ["list.tsv#a"]
    with pytest.raises(UsageError, match="no row has split=test and label=cow; "):
        discover([f"@{tmp_path}/list.tsv?split=test&label=cow"])


def test_times_may_be_seconds_or_dates(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("path\tsequence\ttime\na\ts\t2.5\nb\ts\t1\n")
    assert [m.time_s for m in discover([f"@{tmp_path}/t.tsv"]).items[0].members] == [1.0, 2.5]
    (tmp_path / "d.tsv").write_text("path\tsequence\ttime\na\ts\t2024-01-01T00:00:09Z\nb\ts\t2024-01-01T00:00:02Z\n")
    members = discover([f"@{tmp_path}/d.tsv"]).items[0].members
    assert [m.time_s for m in members] == [0.0, 7.0]
    assert members[0].wall_utc == 1704067202.0


@pytest.mark.parametrize(
    ("text", "message"),
    [("path\tframe\na\t1\n", "no column sequence"), ("path\tsequence\na\tb\n", "time, frame or order"),
     ("path\tsequence\tframe\na\tb\tx\n", "line 2: frame is 'x'"), ("path\tsequence\tframe\n", "no rows")],
)  # fmt: skip
def test_a_bad_table_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.tsv").write_text(text)
    with pytest.raises(UsageError, match=message):
        discover([f"@{tmp_path}/bad.tsv"])


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("path\tsequence\torder\ra.jpg\ts\t1\r", 1),
        ("path\tsequence\torder\na.jpg\ts\t1\nb\r.jpg\ts\t2\n", 3),
        ("path\tsequence\torder\n" + "a" * 200_000 + "\ts\t1\n", 2),
    ],
    ids=["lines end in a carriage return", "one in a name", "very long field"],
)
def test_a_table_that_cannot_be_split_into_lines_and_columns_is_a_line(tmp_path: Path, text: str, line: int) -> None:
    (tmp_path / "bad.tsv").write_bytes(text.encode())
    with pytest.raises(UsageError, match=rf"bad\.tsv: line {line} cannot be read"):
        discover([f"@{tmp_path}/bad.tsv"])


@pytest.mark.parametrize("row", ["a\0.jpg\ts\t1", "a.jpg\ts\0\t1"])
def test_a_table_with_a_zero_byte_is_a_line(tmp_path: Path, row: str) -> None:
    (tmp_path / "bad.tsv").write_text(f"path\tsequence\torder\n{row}\n")
    with pytest.raises(UsageError, match=r"bad\.tsv: line 2 holds a zero byte"):
        discover([f"@{tmp_path}/bad.tsv"])


@pytest.mark.data
def test_the_labelled_tables_of_the_data_folder_work_as_they_are(data_dir: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(data_dir / "eth80.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    table = next(tmp_path.rglob("labels.tsv"))
    found = discover([f"@{table}?split=train"]).items
    assert (len(found), sum(len(i.members) for i in found)) == (64, 64 * 41)
    assert all(m.path.exists() for m in found[0].members)


@given(st.lists(st.text(alphabet="a9/10._", min_size=1, max_size=6), max_size=8))
def test_natural_order_is_a_total_order_of_names(texts: list[str]) -> None:
    assert len({*map(natural_key, texts)}) == len({*texts})
    assert natural_key("clip9") < natural_key("clip10") < natural_key("clip10a")


def test_content_decides_before_the_name(tmp_path: Path) -> None:
    pictures(tmp_path, ["a.png"])
    (tmp_path / "a.png").rename(tmp_path / "a.mp4")
    assert probe(tmp_path / "a.mp4").kind == "photo"
    assert kind_of(b"\x1a\x45\xdf\xa3....", ".jpg") == "video"
    assert kind_of(b"\0\0\0\x18ftypheic", ".mov") == "photo"
    assert kind_of(b"hello", ".jpg") == "photo"
    assert kind_of(b"hello", ".txt") == "other"
    assert kind_of(b"RIFF....WAVE", ".wav") == "other"
