"""The CUDA kernels: rows leave, survivors close ranks, answers are gathered. Compiled at run time for the GPU in use.

**Closing ranks** (``split_rows``, one launch per cut). Of ``n`` rows ``L`` leave and ``S = n - L`` stay. As on the
host, the survivors behind the border ``S`` fill the places of the rows that left before it. Their numbers agree: the
``S`` places before the border hold all survivors but the movers, so there are as many *holes* (rows before ``S`` that
leave) as *movers* (survivors from ``S`` on), and move ``k`` copies the ``k``-th mover over the ``k``-th hole.

It is race-free, although rows move in place and the blocks run in any order: every source lies behind the border and
every target before it, so no block writes a row that another reads, and no two blocks write the same row. The
confidences are read only. Hence no block waits for another, and a single launch is enough: every block finds its own
move by a prefix sum over the confidences (compaction; n values, a few hundred bytes from the L2 cache) and then copies
its slice of that row. Blocks without a move end. The grid is ``(moves, tensors, slices of a row)``, with at most
``n // 2`` moves, since ``moves <= min(L, S)``.

Block (0, 0, 0) also writes the report, the number of rows that leave and the rows in ascending order, directly into
page-locked memory of the host.

**Gathering** (``gather_rows``) copies any rows of several tensors, in any order, to one place per tensor: row numbers
are passed by value in the launch itself, so there is no list in memory that the next launch could overwrite.

**Finite rows** (``find_nonfinite``): an IEEE number is NaN or infinite when all bits of its exponent are set.

The structures below mirror those of the source; a kernel's parameters may take 4 KB.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

from artifacts import EngineError, MissingExtraError

BLOCK = 256
MAX_CARRIED = 32
MAX_GATHERED = 16
MAX_GATHER_ROWS = 512
KERNELS = ("split_rows", "gather_rows", "find_nonfinite")
_SLICE_BYTES = 32 * 1024  # of a row, per block: eight passes of 16 bytes a thread
_MAX_SLICES = 256

_LIMITS = {
    "BLOCK": BLOCK, "MAX_CARRIED": MAX_CARRIED, "MAX_GATHERED": MAX_GATHERED, "MAX_GATHER_ROWS": MAX_GATHER_ROWS,
}  # fmt: skip
SOURCE = (
    "\n".join(f"#define {name} {value}" for name, value in _LIMITS.items())
    + """

typedef unsigned long long u64;
typedef unsigned char u8;

struct Carried {
    u8* base[MAX_CARRIED];
    u64 row_bytes[MAX_CARRIED];
};

struct Gather {
    const u8* from[MAX_GATHERED];
    u8* to[MAX_GATHERED];
    u64 row_bytes[MAX_GATHERED];
    int rows[MAX_GATHER_ROWS];
};

// The sum over this thread and all before it; slots[BLOCK - 1] is the total until the next barrier.
__device__ u64 sum_up_to(u64 value, u64* slots) {
    const int thread = threadIdx.x;
    slots[thread] = value;
    __syncthreads();
    for (int step = 1; step < BLOCK; step *= 2) {
        const u64 earlier = thread >= step ? slots[thread - step] : 0;
        __syncthreads();
        slots[thread] += earlier;
        __syncthreads();
    }
    return slots[thread];
}

template <typename T>
__device__ void copy_as(u8* to, const u8* from, u64 bytes) {
    const u64 step = (u64)gridDim.z * BLOCK;
    for (u64 i = (u64)blockIdx.z * BLOCK + threadIdx.x; i < bytes / sizeof(T); i += step) {
        ((T*)to)[i] = ((const T*)from)[i];
    }
}

// Copies this block's slice of a row with the widest type that its place and length allow.
__device__ void copy_row(u8* to, const u8* from, u64 bytes) {
    const u64 place = (u64)to | (u64)from | bytes;
    if (place % 16 == 0) copy_as<uint4>(to, from, bytes);
    else if (place % 4 == 0) copy_as<unsigned int>(to, from, bytes);
    else copy_as<u8>(to, from, bytes);
}

// report: [number of leavers, their rows ...], or null. NaN is no confidence: such a row stays.
extern "C" __global__ void __launch_bounds__(BLOCK) split_rows(
    const float* confidence, int count, float threshold, int* report, const __grid_constant__ Carried carried) {
    __shared__ u64 slots[BLOCK];
    __shared__ int target, source;
    const int thread = threadIdx.x, move = blockIdx.x;
    const bool reports = report && blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;

    u64 own = 0;
    for (int row = thread; row < count; row += BLOCK) own += confidence[row] >= threshold;
    sum_up_to(own, slots);
    const int leaving = (int)slots[BLOCK - 1], staying = count - leaving;
    if (thread == 0) {
        target = source = -1;
        if (reports) report[0] = leaving;
    }
    __syncthreads();

    u64 before = 0;  // of the rows so far: leavers in the lower half, movers in the upper
    for (int first = 0; first < count; first += BLOCK) {
        const int row = first + thread;
        const bool leaver = row < count && confidence[row] >= threshold;
        const bool mover = row < count && !leaver && row >= staying;
        const u64 self = (leaver ? 1ull : 0ull) | (mover ? 1ull << 32 : 0ull);
        const u64 rank = before + sum_up_to(self, slots) - self;
        before += slots[BLOCK - 1];
        if (leaver) {
            const int place = (int)(rank & 0xffffffffull);
            if (reports) report[1 + place] = row;
            if (place == move && row < staying) target = row;
        }
        if (mover && (int)(rank >> 32) == move) source = row;
        __syncthreads();
    }
    if (source < 0 || blockIdx.y >= MAX_CARRIED) return;
    u8* base = carried.base[blockIdx.y];
    const u64 bytes = carried.row_bytes[blockIdx.y];
    if (base) copy_row(base + (u64)target * bytes, base + (u64)source * bytes, bytes);
}

extern "C" __global__ void __launch_bounds__(BLOCK) gather_rows(const __grid_constant__ Gather gather) {
    const u64 bytes = gather.row_bytes[blockIdx.y];
    const u8* from = gather.from[blockIdx.y] + (u64)gather.rows[blockIdx.x] * bytes;
    copy_row(gather.to[blockIdx.y] + (u64)blockIdx.x * bytes, from, bytes);
}

template <typename T>
__device__ bool any_nonfinite(const u8* row, u64 values, T exponent) {
    bool found = false;
    for (u64 i = threadIdx.x; i < values; i += BLOCK) found |= (((const T*)row)[i] & exponent) == exponent;
    return found;
}

// found[row] = 1 where a row of floating numbers of 2, 4 or 8 bytes holds NaN or infinity, else 0.
extern "C" __global__ void __launch_bounds__(BLOCK) find_nonfinite(
    const u8* base, u64 row_values, int width, int* found) {
    __shared__ int any;
    const u8* row = base + (u64)blockIdx.x * row_values * width;
    if (threadIdx.x == 0) any = 0;
    __syncthreads();
    bool mine = false;
    if (width == 2) mine = any_nonfinite<unsigned short>(row, row_values, 0x7c00);
    if (width == 4) mine = any_nonfinite<unsigned int>(row, row_values, 0x7f800000u);
    if (width == 8) mine = any_nonfinite<u64>(row, row_values, 0x7ff0000000000000ull);
    if (mine) any = 1;
    __syncthreads();
    if (threadIdx.x == 0) found[blockIdx.x] = any;
}
"""
)


class Carried(ctypes.Structure):
    """The tensors of one ``split_rows``."""

    _fields_ = (("base", ctypes.c_uint64 * MAX_CARRIED), ("row_bytes", ctypes.c_uint64 * MAX_CARRIED))


class Gather(ctypes.Structure):
    """The tensors and rows of one ``gather_rows``."""

    _fields_ = (
        ("source", ctypes.c_uint64 * MAX_GATHERED),
        ("target", ctypes.c_uint64 * MAX_GATHERED),
        ("row_bytes", ctypes.c_uint64 * MAX_GATHERED),
        ("rows", ctypes.c_int * MAX_GATHER_ROWS),
    )


def split_grid(count: int, row_bytes: Sequence[int]) -> tuple[int, int, int]:
    """Returns the grid of ``split_rows`` for ``count`` rows of tensors with ``row_bytes`` each."""
    return (max(1, count // 2), max(1, len(row_bytes)), slice_count(row_bytes))


def slice_count(row_bytes: Sequence[int]) -> int:
    """Returns the number of slices in which the longest row is copied."""
    return min(_MAX_SLICES, max(1, -(-max(row_bytes, default=0) // _SLICE_BYTES)))


@functools.cache
def compile_kernels(architecture: str, source: str = SOURCE) -> bytes:
    """Compiles kernels to a cubin; needs NVRTC and neither a GPU nor a driver.

    Args:
        architecture: e.g. ``sm_90``.
        source: these kernels, or ``chain.kernels.CHAIN_SOURCE``.

    Raises:
        MissingExtraError: cuda-bindings is not installed.
        EngineError: NVRTC is not installed, or does not support the architecture.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as error:
        raise MissingExtraError("cuda-bindings", "cuda") from error
    options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
    try:
        _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"pame.cu", 0, [], [])
    except RuntimeError as error:
        raise EngineError(f"NVRTC cannot be loaded ({error}). Install it with: pip install 'pame[cuda]'") from error
    (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
    if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        _, size = nvrtc.nvrtcGetProgramLogSize(program)
        log = b" " * size
        nvrtc.nvrtcGetProgramLog(program, log)
        raise EngineError(
            f"NVRTC cannot compile the CUDA kernels for {architecture} ({status.name}): "
            f"{log.decode(errors='replace').strip(chr(0) + ' ')}. "
            "Install the NVRTC of a CUDA version that supports this GPU"
        )
    _, size = nvrtc.nvrtcGetCUBINSize(program)
    cubin = b" " * size
    nvrtc.nvrtcGetCUBIN(program, cubin)
    nvrtc.nvrtcDestroyProgram(program)
    return bytes(cubin)
