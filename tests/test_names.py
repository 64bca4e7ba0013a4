"""File names made to hurt whoever prints them, through every command that does."""

import logging
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cld_stream.cli import main
from cld_stream.cli.output import console, fail, set_up_logging
from cld_stream.config import StoreSettings
from cld_stream.storage.store import Store
from tests.test_end_to_end import TINY

NAMES = [
    "new\nline.jpg",
    "return\rover.jpg",
    "tab\tulator.jpg",
    "red \x1b[31m ink.jpg",
    "title \x1b]0;owned\x07.jpg",
    "link \x1b]8;;http:evil\x1b\\ .jpg",
    "eight bits \x9b31m.jpg",
    "delete\x7f\x08\x08.jpg",
    "turned \u202e gpj.exe.jpg",
    os.fsdecode(b"not utf-8 \xff\xfe\xed\xa0\x80.jpg"),
    "[red]markup[on blue].jpg",
    "<img src=x onerror=alert(1)>.jpg",
    '"quoted" & <b>bold.jpg',
    "-rf --help.jpg",
    "€" * 83 + "xx.jpg",  # 255 bytes
]
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class Printed:
    """Runs commands in this process, and keeps the bytes that they print."""

    def __init__(self, capture: pytest.CaptureFixture[bytes], patch: pytest.MonkeyPatch) -> None:
        self._capture, self._patch = capture, patch

    def __call__(self, *argv: object) -> tuple[int, str]:
        """(exit code, everything printed); fails if any of it could do something to a terminal."""
        self._patch.setattr(sys, "argv", ["cld-stream", *map(str, argv)])
        self._patch.setattr(console, "_file", None)
        self._capture.readouterr()
        code = 0
        try:
            main()
        except SystemExit as e:
            code = int(e.code or 0)
        text = b"".join(self._capture.readouterr()).decode()
        assert RAW.findall(text) == [], (argv, text)
        assert "Traceback" not in text
        return code, text


@pytest.fixture
def printed(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Printed]:
    yield Printed(capfdbinary, monkeypatch)
    console.file = sys.stderr


@pytest.fixture(scope="module")
def footage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each name twice: of a picture, and of something broken."""
    folder = tmp_path_factory.mktemp("footage")
    for n, name in enumerate(NAMES):
        pixels = np.random.default_rng(n).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "picture.tmp", "JPEG")
        (folder / "picture.tmp").rename(folder / name)
        broken = folder / "broken"
        broken.mkdir(exist_ok=True)
        (broken / name).write_bytes(b"\xff\xd8\xff" + bytes([n]) * 50)
    assert max(len(os.fsencode(name)) for name in NAMES) == 255
    return folder


@pytest.fixture(scope="module")
def store(footage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s\x1b]0;title\x07"
    tiny = [word for item in TINY for word in ("--set", item)]
    for command in (["ingest", footage, "--size", "48"], ["train", "--steps", "2", *tiny]):
        done = subprocess.run(
            [sys.executable, "-m", "cld_stream", *command, "--store", path], capture_output=True, check=True
        )
        assert RAW.findall((done.stdout + done.stderr).decode()) == []
    return path


@pytest.mark.parametrize("flags", [["-vv"], ["--json"], ["--json-logs"], ["--dry-run"], ["--dry-run", "--json"]])
def test_ingest_tells_of_them_harmlessly(printed: Printed, footage: Path, tmp_path: Path, flags: list[str]) -> None:
    before = [f for f in flags if f == "--json-logs"]
    code, text = printed(
        *before, "ingest", footage, "--store", tmp_path / "new", *[f for f in flags if f not in before]
    )
    assert code == 0
    assert text.count("BROKEN") >= (0 if "--dry-run" in flags else len(NAMES))


def test_strict_names_the_broken_ones_harmlessly(printed: Printed, footage: Path, store: Path) -> None:
    code, text = printed("ingest", footage, "--store", store, "--strict")
    assert code == 4
    assert f"{len(NAMES)} files are broken" in text


@pytest.mark.parametrize("verb", [["status"], ["snapshots"], ["migrate", "--dry-run"], ["snapshot"]])
def test_what_is_said_of_the_store_is_harmless(printed: Printed, store: Path, verb: list[str]) -> None:
    for flags in ([], ["--json"]):
        code, _ = printed(*verb, "--store", store, *flags)
        assert code == 0


def test_the_doctor_is_harmless_too(store: Path) -> None:
    """In a process of its own: decord, which it loads, does not get on with torch at work."""
    done = subprocess.run([sys.executable, "-m", "cld_stream", "doctor", "--store", store], capture_output=True)
    assert done.returncode == 0
    assert RAW.findall((done.stdout + done.stderr).decode()) == []


def test_a_query_names_every_source_harmlessly(printed: Printed, store: Path, tmp_path: Path) -> None:
    made = tmp_path / "page \x1b[31m.html", tmp_path / "sheet\n.png"
    code, text = printed("query", "--frame", 0, "-k", 50, "--store", store, "--html", made[0], "--sheet", made[1])
    assert code == 0
    for shown in (
        "new\\nline.jpg",
        "red \\x1b[31m ink.jpg",
        "eight bits \\x9b31m.jpg",
        "\\udcff",
        "[red]markup[on blue]",
    ):
        assert shown in text.replace("\n", "")
    page = made[0].read_bytes().decode()
    assert "<img src=x" not in page
    assert "<b>bold" not in page
    assert RAW.findall(page) == []
    assert made[1].stat().st_size > 1000
    assert printed("query", "--frame", 0, "-k", 50, "--store", store, "--json")[0] == 0


@pytest.mark.parametrize("name", NAMES)
def test_errors_repeat_a_name_harmlessly(printed: Printed, store: Path, tmp_path: Path, name: str) -> None:
    missing, untrained = Path("/nowhere", name), tmp_path / "store"
    Store.create(untrained, StoreSettings()).close()
    commands: list[list[object]] = [
        ["ingest", missing, "--store", store],
        ["ingest", f"@{missing}", "--store", store],
        ["ingest", f"rtsp://user:pw@127.0.0.1:1/{name}", "--dry-run"],
        ["query", missing, "--store", store],
        ["query", "--source", name + "x", "--at", "0", "--store", store],
        ["query", "--vector", missing, "--store", store],
        ["query", "--frame", "0", "--snapshot", name, "--store", store],
        ["query", "--frame", "0", "--under", missing, "--after", name, "--store", store],
        ["forget", f"{name}x", "--store", store],
        ["status", "--store", missing],
        ["config", "--set", f"ingest.{name}=1"],
        ["config", "--config", missing],
        ["train", "--init", missing, "--store", untrained],
    ]
    if "\u202e" not in name:  # the parser repeats a word without a place; letters that turn the line stay as typed
        commands += [["eval", missing, "--store", store], [f"verb{name}"]]
    for command in commands:
        code, text = printed(*command)
        assert code in (0, 1, 2), text


def test_each_is_found_by_its_name_and_forgotten(printed: Printed, footage: Path, store: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy, symlinks=True)
    for name in NAMES:
        for word in (footage / name, footage / "broken" / name):
            code, text = printed("forget", word, "--store", copy)
            assert code == 0, text
    with Store.open(copy) as left:
        assert left.catalog.sources() == []
        assert left.catalog.frame_count() == 0


def test_a_table_cannot_hide_where_a_picture_lies(printed: Printed, footage: Path, tmp_path: Path) -> None:
    shutil.copy(footage / NAMES[0], tmp_path / "outside.jpg")
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "some.txt").write_text(
        "../outside.jpg\n../lists/../outside.jpg\n../../../../../../../../etc/no\x1bthing\n"
    )
    assert printed("ingest", f"@{lists / 'some.txt'}", "--store", tmp_path / "store", "-v")[0] == 0
    with Store.open(tmp_path / "store") as store:
        assert {row.path for row in store.catalog.sources() if row.outcome == "ADDED"} == {
            str(tmp_path / "outside.jpg")
        }


def test_an_error_outside_of_ours_is_shown_harmlessly(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    console.file = sys.stderr
    fail("a \x1b[31m b \udcff c \x7f")
    assert capfdbinary.readouterr().err == b"a \\x1b[31m b \\udcff c \\x7f\n"


def test_a_locale_without_the_characters_is_no_crash(footage: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "cld_stream",
        "ingest",
        str(footage),
        "--dry-run",
        "--store",
        str(tmp_path / "none"),
    ]
    env = os.environ | {"PYTHONIOENCODING": "latin-1"}
    for more in ([], ["--json"]):
        done = subprocess.run([*command, *more], capture_output=True, env=env)
        assert (done.returncode, done.stderr) == (0, b"")


def test_log_lines_cannot_talk_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger("cld_stream")
    before = log.handlers[:], log.level
    try:
        set_up_logging(0, debug=False)
        log.warning("lost %s", "a\x1b[31m\nb")
    finally:
        log.handlers[:], _ = before
        log.setLevel(before[1])
    assert capsys.readouterr().err.endswith("lost a\\x1b[31m\\nb\n")
