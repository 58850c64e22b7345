"""The compiled kernels inside of a model's shared object, and how TVM comes to run them.

Where TVM cannot reach a GPU it keeps a CUDA module as source text, to be compiled where it is loaded. The model's
shared object therefore carries the binary that nvcc made of that text; when TVM asks for a compiler there, it is given
that binary, so that loading needs neither nvcc nor time.
"""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from pathlib import Path

import tvm_ffi
from tvm.support import nvcc

from ...ir import TersorError

_BINARY, _SIZE, _DIGEST = "tersor_cuda_binary", "tersor_cuda_binary_size", "tersor_cuda_source_digest"
_COMPILE = "tvm_callback_cuda_compile"
_binaries: dict[bytes, bytes] = {}  # by the digest of the source that they were made of


def binary_object(folder: Path, source: str, binary: bytes, compiler: str) -> Path:
    """An object file in ``folder`` that holds ``binary``, and the digest of the source that it was made of."""
    data, assembly, made = folder / "kernels.bin", folder / "kernels.s", folder / "kernels.o"
    data.write_bytes(_digest(source) + binary)
    size = hashlib.sha256().digest_size
    assembly.write_text(
        f'.section .rodata\n.balign 64\n.globl {_DIGEST}\n{_DIGEST}:\n.incbin "{data}", 0, {size}\n'
        f'.balign 64\n.globl {_BINARY}\n{_BINARY}:\n.incbin "{data}", {size}\n'
        f'.balign 8\n.globl {_SIZE}\n{_SIZE}:\n.quad {len(binary)}\n.section .note.GNU-stack,"",@progbits\n'
    )
    result = subprocess.run(
        [compiler, "-c", "-o", str(made), str(assembly)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        raise TersorError(f"{compiler} failed to assemble: {result.stderr.strip()}; check that it can build a program")
    return made


def read_binary(path: Path) -> tuple[bytes, bytes]:
    """The digest and the binary in a model's shared object."""
    library = ctypes.CDLL(str(path))
    digest = (ctypes.c_char * hashlib.sha256().digest_size).in_dll(library, _DIGEST).raw
    size = ctypes.c_uint64.in_dll(library, _SIZE).value
    return digest, (ctypes.c_char * size).in_dll(library, _BINARY).raw


def offer(path: Path) -> None:
    """Let TVM run the kernels of a model's shared object, which it loads next."""
    digest, binary = read_binary(path)
    _binaries[digest] = binary
    tvm_ffi.register_global_func(_COMPILE, _compile, override=True)


def _compile(source: str, *options: object) -> bytes:
    """TVM's compiler of CUDA source: what was compiled before, else what TVM itself does."""
    binary = _binaries.get(_digest(source))
    return bytes(nvcc.tvm_callback_cuda_compile(source)) if binary is None else binary


def _digest(source: str) -> bytes:
    return hashlib.sha256(source.encode()).digest()
