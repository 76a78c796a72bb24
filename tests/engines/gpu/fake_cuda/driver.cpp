// A fake CUDA driver: the few functions that PAME calls, over the memory of the host.
//
// It exists to run engines/gpu, cuda-bindings' calls included, without a GPU. It is strict on purpose:
//   - work on a stream does not happen before some call waits for it, so a forgotten wait reads old bytes;
//   - the threads of a block run as fibers in random order between two barriers, blocks in random order;
//   - memory has guards that are checked when it is freed, and graph capture refuses what a real driver refuses.
// The kernels are PAME's own source, compiled for the host (kernels.inc is written by the test). It proves nothing about
// speed, about memory models of a real GPU, or about any other library.
#include <dlfcn.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

struct Dim { unsigned x, y, z; };
struct uint4 { unsigned x, y, z, w; };
static Dim threadIdx, blockIdx, blockDim, gridDim;
static void wait_for_block();

#define __global__
#define __device__ static
#define __shared__ static
#define __launch_bounds__(threads)
#define __grid_constant__
#define __syncthreads() wait_for_block()
static void cudaGraphSetConditional(unsigned long long handle, unsigned value);
#include "kernels.inc"

#define API extern "C" __attribute__((visibility("default"))) int
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500,
       NOT_READY = 600, CAPTURE_UNSUPPORTED = 900 };

static std::recursive_mutex lock_of_all;
#define LOCKED std::lock_guard<std::recursive_mutex> guard(lock_of_all)
static std::mt19937 dice(20261122);
static const size_t TOTAL = size_t(1) << 30, GUARD = 64;
static const int GPUS = 2;

// ---------------------------------------------------------------- blocks of fibers
// A fiber is entered once by swapcontext, which costs a system call, and from then on by longjmp.
static const size_t STACK = 64 * 1024;
struct Fiber { ucontext_t context; jmp_buf place; bool started, done; int barriers; std::vector<char> stack; };
static std::vector<Fiber> fibers;
static ucontext_t outside;
static jmp_buf scheduler;
static Fiber* current_fiber;
static const std::function<void()>* current_body;

static void wait_for_block() {
    Fiber* self = current_fiber;
    self->barriers++;
    if (!_setjmp(self->place)) _longjmp(scheduler, 1);
}

static void start_fiber() {
    (*current_body)();
    current_fiber->done = true;
    _longjmp(scheduler, 1);
}

static __attribute__((noinline)) void resume(Fiber* fiber) {
    current_fiber = fiber;
    if (_setjmp(scheduler)) return;
    if (fiber->started) _longjmp(fiber->place, 1);
    fiber->started = true;
    swapcontext(&outside, &fiber->context);
}

static void run_block(Dim block_index, unsigned threads, const std::function<void()>& body) {
    blockIdx = block_index;
    current_body = &body;
    if (fibers.size() < threads) fibers.resize(threads);
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; i++) {
        order[i] = i;
        Fiber& fiber = fibers[i];
        fiber.started = fiber.done = false;
        fiber.barriers = 0;
        if (fiber.stack.empty()) { fiber.stack.resize(STACK); getcontext(&fiber.context); }
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, start_fiber, 0);
    }
    for (bool left = true; left;) {
        left = false;
        std::shuffle(order.begin(), order.end(), dice);
        int reached = -1;
        for (unsigned i : order) {
            if (fibers[i].done) continue;
            threadIdx = {i, 0, 0};
            resume(&fibers[i]);
            if (fibers[i].done) continue;
            left = true;
            if (reached < 0) reached = fibers[i].barriers;
            if (fibers[i].barriers != reached) { fprintf(stderr, "fake CUDA: threads part at a barrier\n"); abort(); }
        }
    }
}

static void run_grid(Dim grid, Dim block, const std::function<void()>& body) {
    std::vector<Dim> blocks;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) blocks.push_back({x, y, z});
    std::shuffle(blocks.begin(), blocks.end(), dice);
    gridDim = grid;
    blockDim = block;
    for (const Dim& index : blocks) run_block(index, block.x, body);
}

// ---------------------------------------------------------------- streams, events, graphs
typedef std::function<void()> Op;
struct Graph { std::vector<Op> ops, initial; };
struct Stream { std::deque<Op> ops; uint64_t put = 0, done = 0; Graph* capture = nullptr; int mode = 0; std::thread::id by; };
struct Event { Stream* stream = nullptr; uint64_t seq = 0; double time = 0; bool timing = true; };
static Stream legacy;

static Stream* stream_of(void* handle) { return handle == nullptr || handle == (void*)1 ? &legacy : (Stream*)handle; }

static void put(Stream* stream, Op op) {
    if (stream->capture) { stream->capture->ops.push_back(op); return; }
    stream->ops.push_back(op);
    stream->put++;
}

static void drain(Stream* stream, uint64_t seq) {
    while (stream->done < seq) {
        Op op = stream->ops.front();
        stream->ops.pop_front();
        op();
        stream->done++;
    }
}

static std::vector<Stream*> streams = {&legacy};
static void drain_all() { for (Stream* stream : streams) drain(stream, stream->put); }

API cuStreamCreate(void** made, unsigned) { LOCKED; streams.push_back(new Stream); *made = streams.back(); return OK; }
API cuStreamDestroy_v2(void* handle) {
    LOCKED;
    Stream* stream = stream_of(handle);
    drain(stream, stream->put);
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    delete stream;
    return OK;
}
API cuStreamSynchronize(void* handle) {
    LOCKED;
    Stream* stream = stream_of(handle);
    if (stream->capture) return CAPTURE_UNSUPPORTED;
    drain(stream, stream->put);
    return OK;
}
API cuStreamWaitEvent(void* handle, void* which, unsigned) {
    LOCKED;
    Event event = *(Event*)which;
    if (event.stream) put(stream_of(handle), [event] { drain(event.stream, event.seq); });
    return OK;
}
API cuEventCreate(void** made, unsigned flags) { LOCKED; Event* e = new Event; e->timing = !(flags & 2); *made = e; return OK; }
API cuEventDestroy_v2(void* event) { LOCKED; delete (Event*)event; return OK; }
API cuEventRecord(void* which, void* handle) {
    LOCKED;
    Event* event = (Event*)which;
    Stream* stream = stream_of(handle);
    if (stream->capture) return CAPTURE_UNSUPPORTED;
    put(stream, [event] {
        event->time = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
    });
    event->stream = stream;
    event->seq = stream->put;
    return OK;
}
API cuEventSynchronize(void* which) {
    LOCKED;
    Event* event = (Event*)which;
    if (event->stream) drain(event->stream, event->seq);
    return OK;
}
API cuEventQuery(void* which) {
    LOCKED;
    Event* event = (Event*)which;
    return !event->stream || event->stream->done >= event->seq ? OK : NOT_READY;
}
API cuEventElapsedTime_v2(float* ms, void* a, void* b) {
    LOCKED;
    Event *start = (Event*)a, *end = (Event*)b;
    if (!start->timing || !end->timing || !start->stream || !end->stream) return INVALID_HANDLE;
    if (start->stream->done < start->seq || end->stream->done < end->seq) return NOT_READY;
    *ms = float(end->time - start->time);
    return OK;
}
API cuEventElapsedTime(float* ms, void* a, void* b) { return cuEventElapsedTime_v2(ms, a, b); }
// Whether a capture forbids this thread what a capture may forbid: one of this thread in any mode but RELAXED (2), or one
// of any thread in GLOBAL mode (0).
static bool capture_forbids() {
    for (Stream* stream : streams)
        if (stream->capture && (stream->mode == 0 || (stream->mode == 1 && stream->by == std::this_thread::get_id()))) return true;
    return false;
}
API cuStreamBeginCapture_v2(void* handle, int mode) {
    LOCKED;
    Stream* stream = stream_of(handle);
    if (stream == &legacy || stream->capture) return CAPTURE_UNSUPPORTED;
    stream->capture = new Graph;
    stream->mode = mode;
    stream->by = std::this_thread::get_id();
    return OK;
}
API cuStreamEndCapture(void* handle, void** graph) {
    LOCKED;
    Stream* stream = stream_of(handle);
    if (!stream->capture) return INVALID_VALUE;
    *graph = stream->capture;
    stream->capture = nullptr;
    return OK;
}
// Graphs that are built node by node. A node runs after those before it, whatever its dependencies say, so these are
// checked: each must be the newest node. A conditional node has its handle's value at that moment decide.
static std::map<unsigned long long, unsigned> conditions;
static std::vector<std::unique_ptr<Graph>> bodies;  // as long as the process: graphs are copied with pointers to them
static void cudaGraphSetConditional(unsigned long long handle, unsigned value) { conditions.at(handle) = value; }

API cuGraphCreate(void** made, unsigned) { LOCKED; *made = new Graph; return OK; }
API cuGraphConditionalHandleCreate(unsigned long long* made, void* graph, void*, unsigned initial, unsigned flags) {
    LOCKED;
    if (flags != 1) return INVALID_VALUE;
    static unsigned long long next = 0x1000;
    unsigned long long handle = *made = next++;
    conditions[handle] = initial;
    ((Graph*)graph)->initial.push_back([handle, initial] { conditions[handle] = initial; });
    return OK;
}
API cuGraphGetNodes(void* graph, void** nodes, size_t* count) {
    LOCKED;
    size_t there = ((Graph*)graph)->ops.size();
    if (nodes) for (size_t i = 0; i < std::min(*count, there); i++) nodes[i] = (void*)(i + 1);
    *count = nodes ? std::min(*count, there) : there;
    return OK;
}
struct Conditional { int type, reserved[3]; unsigned long long handle; int kind; unsigned size; void** bodies; void* context; };
API cuGraphAddNode_v2(void** made, void* which, const void* const* after, const void*, size_t count, void* parameters) {
    LOCKED;
    Graph* graph = (Graph*)which;
    Conditional* node = (Conditional*)parameters;
    if (node->type != 13 || node->kind != 2 || count != 1 || after[0] != (void*)graph->ops.size()) return INVALID_VALUE;
    void** made_bodies = (void**)calloc(node->size, sizeof(void*));
    std::vector<Graph*> all;
    for (unsigned i = 0; i < node->size; i++) {
        bodies.push_back(std::make_unique<Graph>());
        all.push_back(bodies.back().get());
        made_bodies[i] = all.back();
    }
    node->bodies = made_bodies;
    unsigned long long handle = node->handle;
    graph->ops.push_back([all, handle] {
        unsigned value = conditions.at(handle);
        if (value < all.size()) for (const Op& op : all[value]->ops) op();
    });
    *made = (void*)graph->ops.size();
    return OK;
}
API cuGraphAddChildGraphNode(void** made, void* which, const void* const* after, size_t count, void* child) {
    LOCKED;
    Graph* graph = (Graph*)which;
    if (count != (graph->ops.empty() ? 0 : 1) || (count && after[0] != (void*)graph->ops.size())) return INVALID_VALUE;
    std::vector<Op> ops = ((Graph*)child)->ops;
    graph->ops.push_back([ops] { for (const Op& op : ops) op(); });
    *made = (void*)graph->ops.size();
    return OK;
}
API cuGraphNodeGetType(void*, int* type) { *type = 0; return OK; }  // a kernel, whatever it is
API cuGraphClone(void** made, void* graph) { LOCKED; *made = new Graph(*(Graph*)graph); return OK; }
API cuGraphGetEdges_v2(void* graph, void** from, void** to, void*, size_t* count) {
    LOCKED;
    size_t nodes = ((Graph*)graph)->ops.size(), there = nodes ? nodes - 1 : 0;
    for (size_t i = 0; from && i < std::min(*count, there); i++) { from[i] = (void*)(i + 1); to[i] = (void*)(i + 2); }
    *count = there;
    return OK;
}
API cuStreamBeginCaptureToGraph(void* handle, void* graph, const void* const* after, const void*, size_t count, int mode) {
    LOCKED;
    Stream* stream = stream_of(handle);
    if (stream == &legacy || stream->capture || !graph) return CAPTURE_UNSUPPORTED;
    if (count != (((Graph*)graph)->ops.empty() ? 0 : 1) || (count && after[0] != (void*)((Graph*)graph)->ops.size())) return INVALID_VALUE;
    stream->capture = (Graph*)graph;
    stream->mode = mode;
    stream->by = std::this_thread::get_id();
    return OK;
}
API cuGraphInstantiateWithFlags(void** made, void* graph, unsigned long long) { LOCKED; *made = new Graph(*(Graph*)graph); return OK; }
API cuGraphInstantiateWithParams(void** made, void* graph, void*) { return cuGraphInstantiateWithFlags(made, graph, 0); }
API cuGraphLaunch(void* graph, void* handle) {
    LOCKED;
    for (const Op& op : ((Graph*)graph)->initial) put(stream_of(handle), op);
    for (const Op& op : ((Graph*)graph)->ops) put(stream_of(handle), op);
    return OK;
}
API cuGraphUpload(void*, void*) { return OK; }
API cuGraphDestroy(void* graph) { LOCKED; delete (Graph*)graph; return OK; }
API cuGraphExecDestroy(void* graph) { LOCKED; drain_all(); delete (Graph*)graph; return OK; }

// ---------------------------------------------------------------- memory
struct Memory { size_t size; int kind; int device; void* context; };  // kind 1: host, 2: device; no context: from a pool
static std::map<char*, Memory> memories;
static size_t used;
static int primary[GPUS];
static thread_local std::vector<void*> contexts;

static int device_of(void* context) {
    for (int i = 0; i < GPUS; i++) if (context == &primary[i]) return i;
    return 0;
}

static char* make(size_t size, int kind, int device, void* context) {
    if (used + size > TOTAL) return nullptr;
    char* all = (char*)aligned_alloc(256, (size + 2 * 256 + 255) / 256 * 256);
    memset(all, 0xA5, size + 2 * 256);
    char* memory = all + 256;
    memset(memory, 0xEE, size);
    memories[memory] = {size, kind, device, context};
    used += size;
    return memory;
}

static int drop(char* memory) {
    auto found = memories.find(memory);
    if (found == memories.end()) return INVALID_VALUE;
    for (size_t i = 0; i < GUARD; i++)
        if (memory[-1 - (long)i] != (char)0xA5 || memory[found->second.size + i] != (char)0xA5) {
            fprintf(stderr, "fake CUDA: somebody wrote beside a block of %zu bytes\n", found->second.size);
            abort();
        }
    used -= found->second.size;
    memories.erase(found);
    free(memory - 256);
    return OK;
}

API cuMemAlloc_v2(uint64_t* made, size_t size) {
    LOCKED;
    if (contexts.empty() || !contexts.back()) return INVALID_CONTEXT;
    if (capture_forbids()) return CAPTURE_UNSUPPORTED;
    char* memory = make(size, 2, device_of(contexts.back()), contexts.back());
    *made = (uint64_t)memory;
    return memory ? OK : OUT_OF_MEMORY;
}
API cuMemFree_v2(uint64_t memory) { LOCKED; drain_all(); return drop((char*)memory); }
API cuMemHostAlloc(void** made, size_t size, unsigned) {
    LOCKED;
    if (contexts.empty() || !contexts.back()) return INVALID_CONTEXT;
    *made = make(size, 1, 0, contexts.back());
    return *made ? OK : OUT_OF_MEMORY;
}
API cuMemFreeHost(void* memory) { LOCKED; drain_all(); return drop((char*)memory); }
API cuMemPoolCreate(void** made, const void*) { *made = malloc(1); return OK; }
API cuMemPoolDestroy(void* pool) { free(pool); return OK; }
API cuMemPoolSetAttribute(void*, int, void*) { return OK; }
API cuMemAllocFromPoolAsync(uint64_t* made, size_t size, void*, void*) {
    LOCKED;
    char* memory = make(size, 2, contexts.empty() ? 0 : device_of(contexts.back()), nullptr);
    *made = (uint64_t)memory;
    return memory ? OK : OUT_OF_MEMORY;
}
API cuMemFreeAsync(uint64_t memory, void* handle) { LOCKED; put(stream_of(handle), [memory] { drop((char*)memory); }); return OK; }
API cuMemGetInfo_v2(size_t* free_bytes, size_t* total) { LOCKED; drain_all(); *free_bytes = TOTAL - used; *total = TOTAL; return OK; }
API cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t size, void* handle) {
    LOCKED;
    put(stream_of(handle), [=] { memcpy((void*)to, from, size); });
    return OK;
}
API cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t size, void* handle) {
    return cuMemcpyHtoDAsync_v2(to, (const void*)from, size, handle);
}
API cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t size, void* handle) {
    return cuMemcpyHtoDAsync_v2((uint64_t)to, (const void*)from, size, handle);
}
API cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, void* handle) {
    LOCKED;
    put(stream_of(handle), [=] { memset((void*)to, value, size); });
    return OK;
}
static int attribute_of(void* out, int attribute, uint64_t pointer) {
    LOCKED;
    auto found = memories.upper_bound((char*)pointer);
    if (found == memories.begin()) return INVALID_VALUE;
    --found;
    if ((char*)pointer >= found->first + found->second.size) return INVALID_VALUE;
    if (attribute == 1) *(void**)out = found->second.context;
    else if (attribute == 2) *(unsigned*)out = found->second.kind;
    else if (attribute == 9) *(int*)out = found->second.device;
    else return INVALID_VALUE;
    return attribute == 1 && !found->second.context ? INVALID_VALUE : OK;
}
API cuPointerGetAttribute(void* out, int attribute, uint64_t pointer) { return attribute_of(out, attribute, pointer); }
API cuPointerGetAttributes(unsigned count, int* attributes, void** out, uint64_t pointer) {
    for (unsigned i = 0; i < count; i++) {
        if (attributes[i] == 8) *(unsigned*)out[i] = 0;  // managed memory: never
        else attribute_of(out[i], attributes[i], pointer);
    }
    return OK;
}

// ---------------------------------------------------------------- devices, contexts, modules
API cuInit(unsigned) { return OK; }
API cuDriverGetVersion(int* version) { *version = 13000; return OK; }
API cuDeviceGetCount(int* count) { *count = GPUS; return OK; }
API cuDeviceGet(int* device, int index) { *device = index; return index < GPUS ? OK : INVALID_VALUE; }
API cuDeviceGetName(char* name, int size, int) { snprintf(name, size, "Pretended GPU"); return OK; }
API cuDeviceGetAttribute(int* value, int attribute, int) {
    *value = attribute == 75 ? 9 : 0;  // compute capability 9.0
    return OK;
}
API cuDevicePrimaryCtxRetain(void** context, int device) { LOCKED; primary[device]++; *context = &primary[device]; return OK; }
API cuDevicePrimaryCtxRelease_v2(int device) { LOCKED; return --primary[device] < 0 ? INVALID_CONTEXT : OK; }
API cuCtxGetCurrent(void** context) { *context = contexts.empty() ? nullptr : contexts.back(); return OK; }
API cuCtxSetCurrent(void* context) {
    if (contexts.empty()) contexts.push_back(context);
    contexts.back() = context;
    return OK;
}
API cuCtxPushCurrent_v2(void* context) { contexts.push_back(context); return OK; }
API cuCtxPopCurrent_v2(void** context) {
    if (contexts.empty()) return INVALID_CONTEXT;
    *context = contexts.back();
    contexts.pop_back();
    return OK;
}
API cuCtxCreate_v4(void** context, void*, unsigned, int) { *context = malloc(1); contexts.push_back(*context); return OK; }
API cuCtxDestroy_v2(void* context) {
    contexts.erase(std::remove(contexts.begin(), contexts.end(), context), contexts.end());
    free(context);
    return OK;
}
API cuCtxSynchronize() {
    LOCKED;
    for (Stream* stream : streams) if (stream->capture) return CAPTURE_UNSUPPORTED;
    drain_all();
    return OK;
}
API cuModuleLoadData(void** module, const void* image) { *module = malloc(1); return memcmp(image, "\x7f" "ELF", 4) ? INVALID_VALUE : OK; }
API cuModuleUnload(void* module) { free(module); return OK; }
static const char* names[] = {"split_rows", "gather_rows", "find_nonfinite", "enter_chain", "leave_rows", "collect_rows"};
API cuModuleGetFunction(void** function, void*, const char* name) {
    for (const char*& known : names) if (!strcmp(known, name)) { *function = &known; return OK; }
    return NOT_FOUND;
}
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned,
                   void* handle, void** p, void**) {
    LOCKED;
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx != BLOCK || by != 1 || bz != 1) return INVALID_VALUE;
    std::function<void()> body;
    if (function == &names[0]) {
        const float* confidence = *(const float**)p[0];
        int count = *(int*)p[1];
        float threshold = *(float*)p[2];
        int* report = *(int**)p[3];
        Carried carried = *(Carried*)p[4];
        body = [=] { split_rows(confidence, count, threshold, report, carried); };
    } else if (function == &names[1]) {
        Gather gather = *(Gather*)p[0];
        body = [=] { gather_rows(gather); };
    } else if (function == &names[3]) {
        const int *request = *(const int**)p[0], *branch_of = *(const int**)p[3];
        int *count = *(int**)p[1], *rows = *(int**)p[2];
        u64 handle_of = *(u64*)p[4];
        body = [=] { enter_chain(request, count, rows, branch_of, handle_of); };
    } else if (function == &names[4]) {
        Leaving stage = *(Leaving*)p[0];
        Carried carried = *(Carried*)p[1];
        body = [=] { leave_rows(stage, carried); };
    } else if (function == &names[5]) {
        const int *count = *(const int**)p[0], *places = *(const int**)p[1];
        Collected answers = *(Collected*)p[2];
        body = [=] { collect_rows(count, places, answers); };
    } else {
        const u8* base = *(const u8**)p[0];
        u64 values = *(u64*)p[1];
        int width = *(int*)p[2];
        int* found = *(int**)p[3];
        body = [=] { find_nonfinite(base, values, width, found); };
    }
    put(stream_of(handle), [=] { run_grid({gx, gy, gz}, {bx, by, bz}, body); });
    return OK;
}
API cuGetErrorString(int error, const char** text) {
    *text = error == OUT_OF_MEMORY ? "out of memory" : error == NOT_READY ? "not ready" : "pretended error";
    return OK;
}
API cuGetErrorName(int, const char** text) { *text = "FAKE"; return OK; }

API cuGetExportTable(const void** table, const void*) { *table = nullptr; return NOT_FOUND; }  // NVRTC asks
static int missing() { return NOT_FOUND; }
API cuGetProcAddress_v2(const char* symbol, void** function, int, uint64_t, int* status) {
    static void* self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    *function = nullptr;
    for (const char* suffix : {"_v4", "_v2", ""})
        if (!*function) *function = dlsym(self, (std::string(symbol) + suffix).c_str());
    if (!*function) *function = (void*)missing;
    if (status) *status = 0;
    return OK;
}
API cuGetProcAddress(const char* symbol, void** function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, function, version, flags, nullptr);
}
