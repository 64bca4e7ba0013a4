"""One verb a file: the only place where media, learn, storage and search meet."""

if __name__ != "cld_stream.pipelines":
    raise ImportError("import cld_stream.pipelines; the root link pipelines/ is for readers only")
