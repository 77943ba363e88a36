// The part of CUDA's driver that this program uses, with main memory for the GPU's and device.h for its threads. Streams
// are in order and every call is done when it returns, so an ordering that a program forgets goes unseen here. Memory is
// filled with NaNs when it is handed out and taken back.
#include <ucontext.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

struct Index { unsigned x, y, z; };
Index threadIdx, blockIdx, blockDim, gridDim;
struct EmulatedKernel { const char *name; void (*call)(void **); };
extern const EmulatedKernel *const emulated_kernels[];

namespace {
enum State { READY, AT_BLOCK, AT_WARP, DONE };
struct Fiber { ucontext_t context; std::vector<char> stack; State state; };
struct Function { void (*call)(void **); bool barriers; std::string name; };
struct Module { std::map<std::string, Function> functions; };

std::mutex lock;
ucontext_t scheduler;
std::vector<Fiber *> fibers;
unsigned running;
bool in_fibers;
char lanes[32][32 * 16];
Function *current;
void **arguments;

void place(unsigned i) {
  running = i;
  threadIdx = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
}
void body() {
  current->call(arguments);
  fibers[running]->state = DONE;
  swapcontext(&fibers[running]->context, &scheduler);
}
void wait(State state) {
  if (!in_fibers) { fprintf(stderr, "emulated GPU: `%s` meets a barrier unannounced\n", current->name.c_str()); abort(); }
  fibers[running]->state = state;
  swapcontext(&fibers[running]->context, &scheduler);
}

void run_block(unsigned threads) {
  if (!current->barriers) {
    for (unsigned i = 0; i < threads; i++) { place(i); current->call(arguments); }
    return;
  }
  in_fibers = true;
  while (fibers.size() < threads) { fibers.push_back(new Fiber); fibers.back()->stack.resize(64 << 10); }
  for (unsigned i = 0; i < threads; i++) {
    Fiber &f = *fibers[i];
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack.data();
    f.context.uc_stack.ss_size = f.stack.size();
    f.context.uc_link = &scheduler;
    makecontext(&f.context, body, 0);
    f.state = READY;
  }
  for (;;) {
    unsigned live = 0, at_block = 0;
    for (unsigned i = 0; i < threads; i++) {
      if (fibers[i]->state == READY) { place(i); swapcontext(&scheduler, &fibers[i]->context); }
    }
    bool moved = false;
    for (unsigned first = 0; first < threads; first += 32) {
      unsigned alive = 0, waiting = 0;
      for (unsigned i = first; i < first + 32 && i < threads; i++) {
        alive += fibers[i]->state != DONE;
        waiting += fibers[i]->state == AT_WARP;
        at_block += fibers[i]->state == AT_BLOCK;
      }
      live += alive;
      if (alive && waiting == alive) {
        for (unsigned i = first; i < first + 32 && i < threads; i++) if (fibers[i]->state == AT_WARP) fibers[i]->state = READY;
        moved = true;
      }
    }
    if (!live) break;
    if (moved) continue;
    if (at_block != live) { fprintf(stderr, "emulated GPU: `%s`: threads wait for each other\n", current->name.c_str()); abort(); }
    for (unsigned i = 0; i < threads; i++) if (fibers[i]->state == AT_BLOCK) fibers[i]->state = READY;
  }
  in_fibers = false;
}

void *reserve(size_t bytes) {
  void *p = aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
  memset(p, 0xff, bytes);
  return p;
}
}  // namespace

void emulated_block_barrier() { wait(AT_BLOCK); }
void emulated_warp_barrier() { wait(AT_WARP); }
char *emulated_lanes() { return lanes[running / 32]; }
unsigned emulated_lane() { return running % 32; }

typedef int CUresult;
typedef unsigned long long CUdeviceptr;
#define API extern "C" CUresult

API cuInit(unsigned) { return 0; }
API cuDriverGetVersion(int *v) { *v = 13000; return 0; }
API cuDeviceGetCount(int *n) { *n = 1; return 0; }
API cuDeviceGet(int *d, int i) { *d = i; return i ? 101 : 0; }
API cuDeviceGetName(char *name, int len, int) { snprintf(name, len, "emulated GPU"); return 0; }
API cuDeviceGetAttribute(int *value, int attribute, int) { *value = attribute == 75 ? 8 : attribute == 76 ? 0 : 1; return 0; }
API cuDeviceTotalMem_v2(size_t *n, int) { *n = 8ull << 30; return 0; }
API cuMemGetInfo_v2(size_t *f, size_t *n) { *f = *n = 8ull << 30; return 0; }
API cuDeviceGetDefaultMemPool(void **p, int) { *p = (void *)1; return 0; }
API cuDeviceGetMemPool(void **p, int) { *p = (void *)1; return 0; }
API cuMemPoolSetAttribute(void *, int, void *) { return 0; }
API cuDevicePrimaryCtxRetain(void **c, int) { *c = (void *)1; return 0; }
API cuDevicePrimaryCtxRelease_v2(int) { return 0; }
static thread_local void *context;
API cuCtxGetCurrent(void **c) { *c = context; return 0; }
API cuCtxSetCurrent(void *c) { context = c; return 0; }
API cuCtxSynchronize() { return 0; }
API cuStreamCreate(void **s, unsigned) { *s = (void *)2; return 0; }
API cuStreamCreateWithPriority(void **s, unsigned, int) { *s = (void *)2; return 0; }
API cuStreamDestroy_v2(void *) { return 0; }
API cuStreamSynchronize(void *) { return 0; }
API cuStreamWaitEvent(void *, void *, unsigned) { return 0; }
API cuStreamIsCapturing(void *, int *s) { *s = 0; return 0; }
API cuEventCreate(void **e, unsigned) { *e = (void *)3; return 0; }
API cuEventDestroy_v2(void *) { return 0; }
API cuEventRecord(void *, void *) { return 0; }
API cuEventQuery(void *) { return 0; }
API cuEventSynchronize(void *) { return 0; }
static std::map<void *, size_t> sizes;
API cuMemAlloc_v2(CUdeviceptr *p, size_t n) {
  std::lock_guard<std::mutex> g(lock);
  void *at = reserve(n);
  sizes[at] = n;
  *p = (CUdeviceptr)at;
  return 0;
}
API cuMemAllocAsync(CUdeviceptr *p, size_t n, void *) { return cuMemAlloc_v2(p, n); }
API cuMemFree_v2(CUdeviceptr p) {
  std::lock_guard<std::mutex> g(lock);
  if (!p) return 0;
  auto it = sizes.find((void *)p);
  if (it == sizes.end()) { fprintf(stderr, "emulated GPU: memory is freed twice\n"); abort(); }
  memset((void *)p, 0xff, it->second);
  sizes.erase(it);
  free((void *)p);
  return 0;
}
API cuMemFreeAsync(CUdeviceptr p, void *) { return cuMemFree_v2(p); }
API cuMemHostAlloc(void **p, size_t n, unsigned) { *p = malloc(n); return 0; }
API cuMemFreeHost(void *p) { free(p); return 0; }
API cuMemsetD8_v2(CUdeviceptr p, unsigned char x, size_t n) { memset((void *)p, x, n); return 0; }
API cuMemsetD8Async(CUdeviceptr p, unsigned char x, size_t n, void *) { memset((void *)p, x, n); return 0; }
API cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void *s, size_t n, void *) { memmove((void *)d, s, n); return 0; }
API cuMemcpyDtoHAsync_v2(void *d, CUdeviceptr s, size_t n, void *) { memmove(d, (void *)s, n); return 0; }
API cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr s, size_t n, void *) { memmove((void *)d, (void *)s, n); return 0; }
API cuMemcpyHtoD_v2(CUdeviceptr d, const void *s, size_t n) { memmove((void *)d, s, n); return 0; }
API cuMemcpyDtoH_v2(void *d, CUdeviceptr s, size_t n) { memmove(d, (void *)s, n); return 0; }
API cuMemcpyDtoD_v2(CUdeviceptr d, CUdeviceptr s, size_t n) { memmove((void *)d, (void *)s, n); return 0; }

// PTX names its kernels, and says which wait for other threads.
API cuModuleLoadData(void **out, const void *image) {
  static std::map<std::string, void (*)(void **)> known;
  std::lock_guard<std::mutex> g(lock);
  if (known.empty())
    for (auto list = emulated_kernels; *list; list++)
      for (auto k = *list; k->name; k++) known[k->name] = k->call;
  std::string ptx((const char *)image);
  Module *m = new Module;
  const std::string entry = ".entry ";
  for (size_t at = ptx.find(entry); at != std::string::npos;) {
    size_t start = at + entry.size(), end = ptx.find_first_of("( \n", start), next = ptx.find(entry, end);
    std::string name = ptx.substr(start, end - start), text = ptx.substr(end, next - end);
    bool barriers = text.find("bar.") != std::string::npos || text.find("barrier.") != std::string::npos ||
                    text.find("shfl.") != std::string::npos;
    auto it = known.find(name);
    m->functions[name] = {it == known.end() ? nullptr : it->second, barriers, name};
    at = next;
  }
  *out = m;
  return 0;
}
API cuModuleUnload(void *) { return 0; }
API cuModuleGetFunction(void **f, void *module, const char *name) {
  auto &functions = ((Module *)module)->functions;
  auto it = functions.find(name);
  if (it == functions.end()) return 500;
  *f = &it->second;
  return 0;
}
API cuFuncSetAttribute(void *, int, int) { return 0; }
API cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned,
                   void *, void **parameters, void **) {
  std::lock_guard<std::mutex> g(lock);
  if (!gx || !gy || !gz || !bx || !by || !bz || gy > 65535 || gz > 65535 || bx * by * bz > 1024) return 1;
  current = (Function *)f;
  if (!current->call) { fprintf(stderr, "emulated GPU: no kernel `%s`\n", current->name.c_str()); return 98; }
  static const bool trace = getenv("EMULATED_GPU_TRACE");
  if (trace) fprintf(stderr, "%s <<<(%u %u %u), (%u %u %u)>>>\n", current->name.c_str(), gx, gy, gz, bx, by, bz);
  arguments = parameters;
  gridDim = {gx, gy, gz};
  blockDim = {bx, by, bz};
  for (blockIdx.z = 0; blockIdx.z < gz; blockIdx.z++)
    for (blockIdx.y = 0; blockIdx.y < gy; blockIdx.y++)
      for (blockIdx.x = 0; blockIdx.x < gx; blockIdx.x++) run_block(bx * by * bz);
  return 0;
}
API cuGetErrorName(int, const char **s) { *s = "EMULATED"; return 0; }
API cuGetErrorString(int, const char **s) { *s = "the emulated GPU says no"; return 0; }

// Memory that a launch sizes, by the names kernels give it; the largest block takes less.
float query[16384];
int dst_row[16384];
