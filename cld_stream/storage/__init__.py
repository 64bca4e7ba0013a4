"""What lies on disk: its format, its transactions, its readers. `SPEC.md` is the normative text."""

if __name__ != "cld_stream.storage":
    raise ImportError("import cld_stream.storage; the root link storage/ is for readers only")
