"""Files that appear whole or not at all."""

import os
import secrets
from pathlib import Path


def replace_file(path, data):
    """Write a file under another name in its folder first, one that begins with its stem and ends in ``.tmp``."""
    path = Path(path).resolve()  # what a link points to, as `open` would have it
    part = path.with_name(f"{path.stem[:50]}.{secrets.token_hex(8)}.tmp")  # a file's name has 255 bytes at most
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
