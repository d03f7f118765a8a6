/* One GPU that does nothing: enough of the CUDA runtime and driver for PyTorch to believe in it.
 *
 * trace_memory.py compiles this and loads it before libcudart, so that PyTorch decides as it does
 * on a GPU (attention kernel, autocast, fused dropout, optimizer loops) while fake tensors hold no
 * memory and no kernel is launched. Every call succeeds; those below the macros also answer.
 * TRACE_CAPABILITY is the compute capability times ten: 80 an A100, 90 an H100.
 */
#include <driver_types.h>
#include <stdlib.h>
#include <string.h>

#define SUCCEEDS(name) int name(void) { return 0; }
#define HANDS_OUT(name) int name(void **handle) { *handle = &token; return 0; }
#define SAYS(name, value) int name(int *answer) { *answer = (value); return 0; }

static long token[64]; /* what every stream, event and memory pool points to */

static int capability(void) {
    const char *text = getenv("TRACE_CAPABILITY");
    return text ? atoi(text) : 80;
}

/* Runtime: errors, device, streams, events. */
SUCCEEDS(cudaGetLastError)
SUCCEEDS(cudaPeekAtLastError)
SUCCEEDS(cudaSetDevice)
SUCCEEDS(cudaDeviceSynchronize)
SUCCEEDS(cudaStreamDestroy)
SUCCEEDS(cudaStreamQuery)
SUCCEEDS(cudaStreamSynchronize)
SUCCEEDS(cudaStreamWaitEvent)
SUCCEEDS(cudaEventDestroy)
SUCCEEDS(cudaEventQuery)
SUCCEEDS(cudaEventRecord)
SUCCEEDS(cudaEventRecordWithFlags)
SUCCEEDS(cudaEventSynchronize)
SUCCEEDS(cudaFree)
SUCCEEDS(cudaLaunchKernel)
SUCCEEDS(cudaMemcpy)
SUCCEEDS(cudaMemcpyAsync)
SUCCEEDS(cudaMemsetAsync)
SUCCEEDS(cudaFuncSetAttribute)
SUCCEEDS(cudaThreadExchangeStreamCaptureMode)
HANDS_OUT(cudaStreamCreate)
HANDS_OUT(cudaStreamCreateWithFlags)
HANDS_OUT(cudaStreamCreateWithPriority)
HANDS_OUT(cudaEventCreate)
HANDS_OUT(cudaEventCreateWithFlags)
HANDS_OUT(cudaDeviceGetDefaultMemPool)
SUCCEEDS(cudaMemPoolSetAttribute)
SAYS(cudaGetDeviceCount, 1)
SAYS(cudaGetDevice, 0)
SAYS(cudaDriverGetVersion, 99990) /* newer than any runtime */
SAYS(cudaDeviceCanAccessPeer, 0)

int cudaMalloc(void **pointer, size_t bytes) {
    /* Small blocks are touched by the host below; nothing reads a large one. */
    *pointer = calloc(1, bytes < 65536 ? bytes : 65536);
    return 0;
}
int cudaHostAlloc(void **pointer, size_t bytes) {
    *pointer = calloc(1, bytes);
    return 0;
}
int cudaMallocHost(void **pointer, size_t bytes) { return cudaHostAlloc(pointer, bytes); }
int cudaFreeHost(void *pointer) {
    free(pointer);
    return 0;
}
int cudaMemGetInfo(size_t *available, size_t *total) {
    *available = *total = (size_t)80 << 30;
    return 0;
}
int cudaStreamIsCapturing(void *stream, int *status) {
    (void)stream;
    *status = 0;
    return 0;
}
int cudaStreamGetCaptureInfo(void *stream, int *status) {
    return cudaStreamIsCapturing(stream, status);
}
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = *greatest = 0;
    return 0;
}
int cudaEventElapsedTime(float *milliseconds) {
    *milliseconds = 0.0f;
    return 0;
}
int cudaFuncGetAttributes(struct cudaFuncAttributes *attributes) {
    memset(attributes, 0, sizeof *attributes);
    return 0;
}
int cudaPointerGetAttributes(struct cudaPointerAttributes *attributes) {
    memset(attributes, 0, sizeof *attributes);
    return 0;
}
int cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
    (void)device;
    memset(properties, 0, sizeof *properties);
    strcpy(properties->name, "a GPU that does nothing");
    properties->major = capability() / 10;
    properties->minor = capability() % 10;
    properties->totalGlobalMem = (size_t)80 << 30;
    properties->multiProcessorCount = 108;
    properties->warpSize = 32;
    properties->maxThreadsPerBlock = 1024;
    properties->maxThreadsPerMultiProcessor = 2048;
    properties->regsPerBlock = 65536;
    properties->sharedMemPerBlock = 48 << 10;
    properties->sharedMemPerBlockOptin = properties->sharedMemPerMultiprocessor = 163 << 10;
    properties->l2CacheSize = 40 << 20;
    for (int axis = 0; axis < 3; axis++) {
        properties->maxThreadsDim[axis] = axis < 2 ? 1024 : 64;
        properties->maxGridSize[axis] = axis ? 65535 : 2147483647;
    }
    return 0;
}
int cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    struct cudaDeviceProp properties;
    cudaGetDeviceProperties(&properties, device);
    switch ((int)attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = properties.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = properties.minor; break;
    case cudaDevAttrMultiProcessorCount: *value = properties.multiProcessorCount; break;
    case cudaDevAttrWarpSize: *value = properties.warpSize; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = properties.maxThreadsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)properties.sharedMemPerBlockOptin; break;
    default: *value = 0;
    }
    return 0;
}
int cudaGetDriverEntryPointByVersion(
    const char *name, void **entry, unsigned version, unsigned long long flags, int *found) {
    (void)name, (void)version, (void)flags;
    *entry = (void *)cudaDeviceSynchronize; /* any function that returns 0 */
    if (found) *found = 0;
    return 0;
}

/* Driver: PyTorch asks whether the device has a context, Triton and bitsandbytes link the rest. */
SUCCEEDS(cuInit)
SUCCEEDS(cuCtxSetCurrent)
SUCCEEDS(cuDevicePrimaryCtxRetain)
SUCCEEDS(cuDeviceGet)
SUCCEEDS(cuDeviceGetAttribute)
SAYS(cuDeviceGetCount, 1)
SAYS(cuDriverGetVersion, 99990)
HANDS_OUT(cuCtxGetCurrent)

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    (void)device;
    *flags = 0;
    *active = 1;
    return 0;
}
