"""How what is done for each frame and command is compiled, and whether what is compiled is kept.

Numba keeps it beside the sources (__pycache__), in the user's folder of caches, or where NUMBA_CACHE_DIR says. Who can write to none of these, as a
service without a home, has it compiled by every process. Which of the two it is, is asked once, when this module is imported.
Not here: when it is compiled (ready).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic


def _probe() -> None:
    """A function of this folder, as all kernels are."""


def _can_be_kept() -> bool:
    """Numba refuses to make a function that it cannot keep."""
    try:
        njit(cache=True)(_probe)
    except RuntimeError:
        return False
    return True


CACHED = _can_be_kept()  # on disk
# Without reference counts: kernels allocate nothing, and counting each array that one passes to another would take most of their time.
kernel = njit(cache=CACHED, _nrt=False)  # type: ignore[call-overload]
inlined = njit(cache=CACHED, inline="always", _nrt=False)  # type: ignore[call-overload]


@intrinsic
def prefetch(typing: Any, array: Any, at: Any) -> Any:
    """Ask for the cache line that element number `at` of a contiguous array lies in, however many dimensions that has. Nothing waits for it."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        where = builder.bitcast(builder.gep(data, [args[1]]), byte)
        asks = builder.module.declare_intrinsic("llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, word, word, word]))
        builder.call(asks, [where, word(0), word(3), word(1)])  # to read, into all caches, of data
        return context.get_dummy_value()

    return types.void(array, types.int64), generate
