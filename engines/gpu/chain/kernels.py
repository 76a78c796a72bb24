"""The kernels of a chain that runs as one CUDA graph: the GPU itself counts rows and chooses what runs next.

A chain on the host waits after every stage for the number of survivors. In a graph that number stays on the GPU: each
stage's work ends in ``leave_rows``, which sets the value of the next conditional node, the index of the body that
covers as many rows, or one past the last where none is left. ``graph`` puts the nodes together.

**State**, int32 in the memory of the GPU, for K stages over buffers of R rows::

    counts[k], rows[k][...]     how many rows enter stage k, and which row of the batch stands at each place
    places[row]                 where the answer to a row of the batch lies, for ``collect_rows``

and ``exits[row]``, the stage after which a row left, in page-locked memory of the host.

**Closing ranks** is that of ``split_rows`` (``kernels``), row for row, with the count read from memory. What a block
reads (``counts[k]``, ``rows[k]``, the confidences) is written by no block of the launch: block (0, 0, 0) writes the
state of stage k + 1. So the argument of that module holds here too: a single launch is enough, in any order of blocks.
"""

from __future__ import annotations

import ctypes

from engines.gpu.kernels import MAX_GATHERED, SOURCE

CHAIN_KERNELS = ("enter_chain", "leave_rows", "collect_rows")
CHAIN_SOURCE = (
    SOURCE
    + """
#ifdef __CUDACC__
extern "C" __device__ void cudaGraphSetConditional(u64 handle, unsigned value);
#endif

struct Leaving {
    const float* confidence;
    const int* count;
    const int* rows;
    int* next_count;
    int* next_rows;
    int* exits;
    int* places;
    int* holes;
    int* movers;
    const int* branch_of;
    u64 handle;
    float threshold;
    int exit_index, first_answer, last, reports;
};

struct Collected {
    const u8* from[MAX_GATHERED];
    u8* to[MAX_GATHERED];
    u64 row_bytes[MAX_GATHERED];
};

extern "C" __global__ void __launch_bounds__(BLOCK) enter_chain(
    const int* request, int* count, int* rows, const int* branch_of, u64 handle) {
    const int total = *request;
    for (int row = threadIdx.x; row < total; row += BLOCK) rows[row] = row;
    if (threadIdx.x == 0) {
        *count = total;
        cudaGraphSetConditional(handle, branch_of[total]);
    }
}

// NaN is no confidence: such a row stays, but for the last stage, where all rows leave.
extern "C" __global__ void __launch_bounds__(BLOCK) leave_rows(
    const __grid_constant__ Leaving stage, const __grid_constant__ Carried carried) {
    __shared__ u64 slots[BLOCK];
    __shared__ int target, source;
    const int thread = threadIdx.x, move = blockIdx.x, count = *stage.count;
    const bool reports = stage.reports && blockIdx.x == 0 && blockIdx.y == 0 && blockIdx.z == 0;

    u64 own = 0;
    for (int row = thread; row < count; row += BLOCK) own += stage.last || stage.confidence[row] >= stage.threshold;
    sum_up_to(own, slots);
    const int staying = count - (int)slots[BLOCK - 1];
    if (thread == 0) target = source = -1;
    __syncthreads();

    u64 before = 0;  // of the rows so far: leavers in the lower half, movers in the upper
    for (int first = 0; first < count; first += BLOCK) {
        const int row = first + thread;
        const bool leaver = row < count && (stage.last || stage.confidence[row] >= stage.threshold);
        const bool mover = row < count && !leaver && row >= staying;
        const u64 self = (leaver ? 1ull : 0ull) | (mover ? 1ull << 32 : 0ull);
        const u64 rank = before + sum_up_to(self, slots) - self;
        before += slots[BLOCK - 1];
        const int left_before = (int)(rank & 0xffffffffull), moved_before = (int)(rank >> 32);
        if (leaver && row < staying && left_before == move) target = row;
        if (mover && moved_before == move) source = row;
        if (reports && row < count) {
            if (leaver) {
                stage.exits[stage.rows[row]] = stage.exit_index;
                stage.places[stage.rows[row]] = stage.first_answer + row;
                if (row < staying) stage.holes[left_before] = row;
            } else if (mover) stage.movers[moved_before] = row;
            else stage.next_rows[row] = stage.rows[row];
        }
        __syncthreads();
    }
    if (reports && !stage.last) {
        const int moves = (int)(before >> 32);
        for (int i = thread; i < moves; i += BLOCK) stage.next_rows[stage.holes[i]] = stage.rows[stage.movers[i]];
        if (thread == 0) {
            *stage.next_count = staying;
            cudaGraphSetConditional(stage.handle, stage.branch_of[staying]);
        }
    }
    if (source < 0 || blockIdx.y >= MAX_CARRIED) return;
    u8* base = carried.base[blockIdx.y];
    const u64 bytes = carried.row_bytes[blockIdx.y];
    if (base) copy_row(base + (u64)target * bytes, base + (u64)source * bytes, bytes);
}

// Answers from where they lie to the order of the batch.
extern "C" __global__ void __launch_bounds__(BLOCK) collect_rows(
    const int* count, const int* places, const __grid_constant__ Collected answers) {
    if (blockIdx.x >= *count) return;
    const u64 bytes = answers.row_bytes[blockIdx.y];
    const u8* from = answers.from[blockIdx.y] + (u64)places[blockIdx.x] * bytes;
    copy_row(answers.to[blockIdx.y] + (u64)blockIdx.x * bytes, from, bytes);
}
"""
)


class Leaving(ctypes.Structure):
    """A stage of ``leave_rows``."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in (
            "confidence", "count", "rows", "next_count", "next_rows", "exits", "places", "holes", "movers", "branch_of",
            "handle",
        )),
        ("threshold", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("exit_index", "first_answer", "last", "reports")),
    )  # fmt: skip


class Collected(ctypes.Structure):
    """The tensors of one ``collect_rows``."""

    _fields_ = (
        ("source", ctypes.c_uint64 * MAX_GATHERED),
        ("target", ctypes.c_uint64 * MAX_GATHERED),
        ("row_bytes", ctypes.c_uint64 * MAX_GATHERED),
    )
