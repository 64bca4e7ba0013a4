"""The project as a whole: layout, layers, documents."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["storage", "pipelines"])
def test_a_root_link_shows_the_package_and_refuses_to_be_imported(name: str) -> None:
    assert (ROOT / name).is_symlink()
    assert (ROOT / name).resolve() == ROOT / "cld_stream" / name
    done = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"import cld_stream.{name}" in done.stderr


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['cld-stream', '--help']\n"
        "from cld_stream.cli import app\n"
        "try: app()\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'faiss', 'decord', 'zarr', 'av', 'sqlalchemy', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_in_the_readme_exists() -> None:
    import typer.main

    from cld_stream.cli import app

    known = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for verb in re.findall(r"^cld-stream (\w+)", page.read_text(), re.M):
            assert verb in known, f"{page.name} names `cld-stream {verb}`"


def test_the_documents_link_to_files_that_exist() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_program_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "cld_stream", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert re.fullmatch(r"cld-stream \d+\.\d+\.\d+\n", done.stdout)


def test_compose_runs_ingest_and_train_on_one_store() -> None:
    yaml = pytest.importorskip("yaml")
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    assert {name: service["command"] for name, service in services.items()} == {
        "ingest": ["ingest", "--watch", "/footage"],
        "train": ["train"],
    }
    assert services["ingest"]["build"] == "."
    assert services["train"]["depends_on"]["ingest"] == {"condition": "service_started"}
    assert {service["restart"] for service in services.values()} == {"unless-stopped"}
    assert not any("healthcheck" in service for service in services.values()), "the image has one"
    stores = [next(v for v in service["volumes"] if v.startswith("store:")) for service in services.values()]
    assert stores == ["store:/store"] * 2
    assert "store" in yaml.safe_load((ROOT / "compose.yaml").read_text())["volumes"]
    assert any(v.endswith(":/footage:ro") for v in services["ingest"]["volumes"])
