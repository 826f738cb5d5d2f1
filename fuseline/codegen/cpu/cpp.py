"""Names that the C++ templates give to element types."""

from __future__ import annotations

CPP_TYPES = {
    "f64": "double",
    "f32": "float",
    "bf16": "fl_bf16",
    "f16": "fl_f16",
    "i64": "int64_t",
    "i32": "int32_t",
    "i16": "int16_t",
    "i8": "int8_t",
    "u8": "uint8_t",
    "bool": "uint8_t",
}
"""The C++ type of each IR dtype; ``fl_load`` and ``fl_store`` convert the 16-bit floating ones."""
