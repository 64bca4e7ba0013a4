import pkgutil
import subprocess
import sys

import cld_stream.learn

FOREIGN = ("av", "decord", "faiss", "pydantic", "safetensors", "simplejpeg", "sqlalchemy", "timm", "zarr")


def test_learn_loads_torch_and_no_file_format_database_or_decoder() -> None:
    modules = [f"cld_stream.learn.{m.name}" for m in pkgutil.iter_modules(cld_stream.learn.__path__)]
    code = f"import sys, {', '.join(modules)}; print(*(m for m in {FOREIGN} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
