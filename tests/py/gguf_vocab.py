"""Writes vocabulary-only GGUF files: metadata and no tensors. Source: the GGUF specification, version 3."""
import struct

U8, U32, I32, F32, BOOL, STRING, ARRAY = 0, 4, 5, 6, 7, 8, 9


def string(text):
    data = text if isinstance(text, bytes) else text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def scalar(kind, value):
    if kind == STRING:
        return string(value)
    return struct.pack({U8: "<B", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?"}[kind], value)


def entry(key, value):
    """A key and its value; the type follows from Python's, lists are of one type, bytes are a list of u8."""
    if isinstance(value, bytes):
        kinds, values = U8, value
    elif isinstance(value, list):
        first = value[0] if value else ""
        kinds = STRING if isinstance(first, (str, bytes)) else F32 if isinstance(first, float) else I32
        values = value
    else:
        kind = BOOL if isinstance(value, bool) else U32 if isinstance(value, int) else F32 if isinstance(value, float) else STRING
        return string(key) + struct.pack("<I", kind) + scalar(kind, value)
    return string(key) + struct.pack("<IIQ", ARRAY, kinds, len(values)) + b"".join(scalar(kinds, v) for v in values)


def write(path, **keys):
    """Keys are given without tokenizer.ggml.; dots as double underscores."""
    entries = [entry("general.architecture", "llama")]
    entries += [entry("tokenizer.ggml." + key.replace("__", "."), value) for key, value in keys.items()]
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, len(entries))
    path.write_bytes((header + b"".join(entries)).ljust(4096, b"\0"))
