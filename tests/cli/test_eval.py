"""`cld-stream eval` as a person and as a program see it."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.pipelines.published import published


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = published(tmp_path_factory.mktemp("eval") / "s")
    made.store.close()
    return made.store.path


def test_a_line_a_number_and_what_is_missing(cli: Cli, store: Path) -> None:
    ended = cli("eval", "--store", store)
    lines = ended.out.splitlines()
    assert ended.code == 0
    assert "step 7, space instance: 36 frames of 3 sequences, without labels" in lines[0]
    assert [line.split()[0] for line in lines[3:]] == ["alignment", "uniformity", "effective-rank", "coherence", "time"]
    assert "no labels. Give --labels FOLDER" in ended.err


def test_json_goes_to_stdout_alone(cli: Cli, store: Path) -> None:
    told = json.loads(cli("eval", "--store", store, "--json", "--probes", "time, coherence").out)
    assert list(told["numbers"]) == ["coherence", "time"]
    assert told["numbers"]["time"]["n"] == 33
    assert told["snapshot"]


LABELS = {
    "no label column": ("path\tkind\na.png\tx\n", "no column label"),
    "a label is missing": ("path\tlabel\na.png\tx\nb.png\t\n", "line 3 has no label"),
    "no pictures": ("path\tlabel\na.png\tx\nb.png\ty\n", "none of its 2 pictures can be read"),
    "nothing in it": ("path\tlabel\n", "no rows in it"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_cannot_be_used_end_with_code_2_and_one_line(
    cli: Cli, store: Path, tmp_path: Path, name: str
) -> None:
    text, words = LABELS[name]
    (tmp_path / "labels.tsv").write_text(text)
    ended = cli("eval", "--store", store, "--labels", tmp_path)
    assert (ended.code, ended.out, len(ended.err.strip().splitlines())) == (2, "", 1)
    assert words in ended.err
    assert "labels.tsv" in ended.err or str(tmp_path) in ended.err
