/* A stand-in for the NVIDIA driver on machines without a GPU, for tests alone: "device" memory is host memory, work is done at once,
   events keep the time of a steady clock. It lets the worker's real calls run and be counted; it says nothing of a real GPU.
   FAKE_CUDA_DEVICES (1), FAKE_CUDA_INIT (0), FAKE_CUDA_MEMORY (1 GiB) set what it pretends to be. A graph holds what the fakes of TensorRT put
   into it while a stream is captured: a function and its argument. FAKE_CUDA_GRAPH_STEP names a call for graphs that fails. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef void (*Work)(void *);
typedef struct { Work work; void *argument; int is_executable; } Graph;
typedef struct { int destroyed; int is_capturing, is_broken; Graph *captured; } Stream;
typedef struct { struct timespec at; int recorded; } Event;
static int ready, context, live_blocks, live_events, live_streams, live_graphs, launches, synchronisations;
static size_t used;

static long setting(const char *name, long otherwise) { const char *text = getenv(name); return text ? atol(text) : otherwise; }
#define NEED_READY if (!ready) return 3;
#define NEED_CONTEXT if (!ready || context != 2) return 201;

int cuInit(unsigned flags) { (void)flags; int status = (int)setting("FAKE_CUDA_INIT", 0); ready = !status; return status; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { NEED_READY *count = (int)setting("FAKE_CUDA_DEVICES", 1); return 0; }
int cuDeviceGet(int *device, int ordinal) { NEED_READY *device = ordinal; return 0; }
int cuDeviceGetName(char *name, int length, int device) { NEED_READY (void)device; strncpy(name, "No GPU (stand-in for tests)", (size_t)length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  NEED_READY (void)device; *value = attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 16 ? 132 : attribute == 13 ? 1980000 : attribute == 36 ? 2619000 : -1; return *value < 0; }
int cuDeviceTotalMem_v2(size_t *size, int device) { NEED_READY (void)device; *size = (size_t)setting("FAKE_CUDA_MEMORY", 1L << 30); return 0; }
int cuDevicePrimaryCtxRetain(void **made, int device) { NEED_READY (void)device; context = 1; *made = &context; return 0; }
int cuCtxSetCurrent(void *which) { if (which != &context || !context) return 201; context = 2; return 0; }
static int fails(const char *step) { const char *named = getenv("FAKE_CUDA_GRAPH_STEP"); return named && !strcmp(named, step); }
/* what a real driver does not allow in a capture makes the capture invalid */
#define NOT_IN_CAPTURE if (stream && stream->is_capturing) { stream->is_broken = 1; return 900; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
  NEED_CONTEXT if (used + size > (size_t)setting("FAKE_CUDA_MEMORY", 1L << 30)) return 2;
  size_t *block = aligned_alloc(256, (size + 511) / 256 * 256); if (!block) return 2;
  block[0] = size; used += size; live_blocks++; memset((char *)block + 256, 0x5A, size); *address = (uint64_t)((char *)block + 256); return 0; }
int cuMemFree_v2(uint64_t address) { NEED_CONTEXT size_t *block = (size_t *)(address - 256); used -= block[0]; live_blocks--; free(block); return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, Stream *stream) { NEED_CONTEXT if (!stream) return 400; NOT_IN_CAPTURE memcpy((void *)to, from, size); return 0; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, Stream *stream) { NEED_CONTEXT if (!stream) return 400; NOT_IN_CAPTURE memcpy(to, (void *)from, size); return 0; }
int cuMemsetD8Async(uint64_t to, unsigned char value, size_t size, Stream *stream) { NEED_CONTEXT if (!stream) return 400; NOT_IN_CAPTURE memset((void *)to, value, size); return 0; }
int cuStreamCreate(Stream **made, unsigned flags) { NEED_CONTEXT if (flags != 1) return 1; *made = calloc(1, sizeof(Stream)); live_streams++; return 0; }
int cuStreamSynchronize(Stream *stream) { NEED_CONTEXT if (!stream || stream->destroyed) return 400; NOT_IN_CAPTURE synchronisations++; return 0; }
int cuStreamDestroy_v2(Stream *stream) { NEED_CONTEXT if (!stream) return 400; stream->destroyed = 1; live_streams--; return 0; }
int cuEventCreate(Event **made, unsigned flags) { NEED_CONTEXT (void)flags; *made = calloc(1, sizeof(Event)); live_events++; return 0; }
int cuEventRecord(Event *event, Stream *stream) { NEED_CONTEXT if (!event || !stream) return 400; clock_gettime(CLOCK_MONOTONIC, &event->at); event->recorded = 1; return 0; }
int cuEventElapsedTime(float *ms, Event *a, Event *b) {
  NEED_CONTEXT if (!a->recorded || !b->recorded) return 400;
  *ms = (float)((double)(b->at.tv_sec - a->at.tv_sec) * 1e3 + (double)(b->at.tv_nsec - a->at.tv_nsec) / 1e6); return 0; }
int cuEventDestroy_v2(Event *event) { NEED_CONTEXT live_events--; free(event); return 0; }
int cuStreamBeginCapture_v2(Stream *stream, int mode) {
  NEED_CONTEXT if (!stream) return 400; if (mode != 1) return 1; if (fails("cuStreamBeginCapture_v2")) return 801; if (stream->is_capturing) return 900;
  stream->is_capturing = 1; stream->is_broken = 0; stream->captured = calloc(1, sizeof(Graph)); live_graphs++; return 0; }
int cuStreamEndCapture(Stream *stream, Graph **made) {
  NEED_CONTEXT if (!stream || !stream->is_capturing) return 400;
  stream->is_capturing = 0; *made = stream->captured; stream->captured = 0;
  if (stream->is_broken || fails("cuStreamEndCapture")) { free(*made); live_graphs--; *made = 0; return 901; }
  return 0; }
int cuGraphInstantiateWithFlags(Graph **made, Graph *from, unsigned long long flags) {
  NEED_CONTEXT if (!from || flags) return 1; if (fails("cuGraphInstantiateWithFlags")) return 801;
  *made = malloc(sizeof(Graph)); **made = *from; (*made)->is_executable = 1; live_graphs++; return 0; }
int cuGraphLaunch(Graph *graph, Stream *stream) {
  NEED_CONTEXT if (!graph || !graph->is_executable || !stream) return 400; NOT_IN_CAPTURE if (fails("cuGraphLaunch")) return 719;
  launches++; if (graph->work) graph->work(graph->argument); return 0; }
int cuGraphDestroy(Graph *graph) { NEED_CONTEXT if (!graph || graph->is_executable) return 400; free(graph); live_graphs--; return 0; }
int cuGraphExecDestroy(Graph *graph) { NEED_CONTEXT if (!graph || !graph->is_executable) return 400; free(graph); live_graphs--; return 0; }
int cuGetErrorName(int status, const char **text) { *text = status == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : status == 100 ? "CUDA_ERROR_NO_DEVICE" : "CUDA_ERROR_OF_THE_STAND_IN"; return 0; }
int cuGetErrorString(int status, const char **text) { *text = status == 2 ? "out of memory" : status == 100 ? "no CUDA-capable device is detected" : "a test's own error"; return 0; }

/* for tests */
int fakeLiveBlocks(void) { return live_blocks; }
int fakeLiveEvents(void) { return live_events; }
int fakeLiveStreams(void) { return live_streams; }
int fakeSynchronisations(void) { return synchronisations; }
int fakeLiveGraphs(void) { return live_graphs; }
int fakeLaunches(void) { return launches; }
int fakeIsCapturing(Stream *stream) { return stream->is_capturing; }
void fakeBreakCapture(Stream *stream) { stream->is_broken = 1; }
void fakeCapture(Stream *stream, Work work, void *argument) { stream->captured->work = work; stream->captured->argument = argument; }
