"""A GGUF file of an architecture that transformers has no reader for."""

from pathlib import Path

import gguf
import numpy as np

from fuseline import Config
from fuseline.cli.models import load


def program(tmp: Path) -> None:
    path = tmp / "model.gguf"
    writer = gguf.GGUFWriter(path, "abacus")
    writer.add_tensor("token_embd.weight", np.ones((3, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    load(str(path), Config())
