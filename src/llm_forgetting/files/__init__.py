"""Files and records of this project: the codec, whole files, strict YAML and the manifest."""

from llm_forgetting.files.codec import (
    OMITTED,
    Json,
    decode,
    decode_lines,
    encode,
    encode_json,
    encode_lines,
    encode_with_arrays,
    from_plain,
    read,
    reshaped,
    schema_text,
    to_plain,
    without_arrays,
)
from llm_forgetting.files.disk import (
    is_text,
    read_regular,
    remove_temporary,
    user_path,
    whole_folder,
    write_bytes,
    write_text,
)
from llm_forgetting.files.strict_yaml import (
    load_yaml,
    read_yaml,
)

__all__ = [
    "OMITTED",
    "Json",
    "decode",
    "decode_lines",
    "encode",
    "encode_json",
    "encode_lines",
    "encode_with_arrays",
    "from_plain",
    "is_text",
    "load_yaml",
    "read",
    "read_regular",
    "read_yaml",
    "remove_temporary",
    "reshaped",
    "schema_text",
    "to_plain",
    "user_path",
    "whole_folder",
    "without_arrays",
    "write_bytes",
    "write_text",
]
