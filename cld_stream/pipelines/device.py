"""Which device computes."""

from cld_stream.errors import UsageError


def choose_device(name: str) -> str:
    """`auto` is the first CUDA device, else the CPU.

    Raises:
        UsageError: the named device is not there.
    """
    if name == "cpu":
        return name
    import torch

    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    kind, _, index = name.partition(":")
    if kind != "cuda" or (index and not index.isdigit()):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if not available or int(index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count() if available else 0
        raise UsageError(f"--device {name}: torch sees {found} CUDA devices here. Use --device cpu, or see `doctor`.")
    return name
