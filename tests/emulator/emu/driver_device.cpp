// The driver API: initialisation, devices, contexts, errors.
#include "device_memory.h"
#include "driver.h"
#include <cstdio>
#include <cstring>

using namespace emu;

namespace emu {
Device device;
Statistics statistics;
} // namespace emu

static char primary_context; // only its address matters
static thread_local void *current_context = nullptr;

EMU_API cuInit(unsigned flags) {
  if (flags) return INVALID_VALUE;
  if (device.count == 0) return NO_DEVICE;
  device.initialised = true;
  return SUCCESS;
}

EMU_API cuDriverGetVersion(int *version) {
  *version = device.driver_version;
  return SUCCESS;
}

EMU_API cuDeviceGetCount(int *count) {
  if (!device.initialised) return NOT_INITIALIZED;
  *count = device.count;
  return SUCCESS;
}

EMU_API cuDeviceGet(int *handle, int ordinal) {
  if (!device.initialised) return NOT_INITIALIZED;
  if (ordinal < 0 || ordinal >= device.count) return INVALID_DEVICE;
  *handle = ordinal;
  return SUCCESS;
}

static bool is_device(int handle) { return handle >= 0 && handle < device.count; }

EMU_API cuDeviceGetName(char *name, int length, int handle) {
  if (!is_device(handle)) return INVALID_DEVICE;
  snprintf(name, size_t(length), "CPU emulator");
  return SUCCESS;
}

EMU_API cuDeviceGetUuid_v2(void *uuid, int handle) {
  if (!is_device(handle)) return INVALID_DEVICE;
  memset(uuid, 0, 16);
  memcpy(uuid, "noiseforge", 10);
  static_cast<char *>(uuid)[15] = char(handle);
  return SUCCESS;
}
EMU_API cuDeviceGetUuid(void *uuid, int handle) { return cuDeviceGetUuid_v2(uuid, handle); }

EMU_API cuDeviceTotalMem_v2(size_t *bytes, int handle) {
  if (!is_device(handle)) return INVALID_DEVICE;
  *bytes = device_memory_limit();
  return SUCCESS;
}

static int attribute(int number) {
  switch (number) {
  case 1: return max_block_threads;          // MAX_THREADS_PER_BLOCK
  case 2: case 3: return 1024;               // MAX_BLOCK_DIM_X, Y
  case 4: return 64;                         // MAX_BLOCK_DIM_Z
  case 5: return 2147483647;                 // MAX_GRID_DIM_X
  case 6: case 7: return 65535;              // MAX_GRID_DIM_Y, Z
  case 8: return default_dynamic_shared;     // MAX_SHARED_MEMORY_PER_BLOCK
  case 9: return 64 << 10;                   // TOTAL_CONSTANT_MEMORY
  case 10: return 32;                        // WARP_SIZE
  case 12: case 82: return 65536;            // MAX_REGISTERS_PER_BLOCK, _MULTIPROCESSOR
  case 13: return 1000000;                   // CLOCK_RATE
  case 16: return multiprocessors;           // MULTIPROCESSOR_COUNT
  case 19: return 1;                         // CAN_MAP_HOST_MEMORY
  case 31: return 1;                         // CONCURRENT_KERNELS
  case 36: return 1000000;                   // MEMORY_CLOCK_RATE
  case 37: return 512;                       // GLOBAL_MEMORY_BUS_WIDTH
  case 38: return 50 << 20;                  // L2_CACHE_SIZE
  case 39: return max_resident_threads;      // MAX_THREADS_PER_MULTIPROCESSOR
  case 40: return 1;                         // ASYNC_ENGINE_COUNT
  case 41: return 1;                         // UNIFIED_ADDRESSING
  case 75: return device.major;              // COMPUTE_CAPABILITY_MAJOR
  case 76: return device.minor;              // COMPUTE_CAPABILITY_MINOR
  case 78: return 1;                         // STREAM_PRIORITIES_SUPPORTED
  case 81: return shared_per_multiprocessor; // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
  case 95: return 1;                         // COOPERATIVE_LAUNCH
  case 97: return max_dynamic_shared;        // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
  case 106: return 32;                       // MAX_BLOCKS_PER_MULTIPROCESSOR
  case 111: return 1024;                     // RESERVED_SHARED_MEMORY_PER_BLOCK
  case 115: return 1;                        // MEMORY_POOLS_SUPPORTED
  case 120: case 127: return device.major >= 9; // CLUSTER_LAUNCH, TENSOR_MAP_ACCESS_SUPPORTED
  default: return 0;
  }
}

EMU_API cuDeviceGetAttribute(int *value, int number, int handle) {
  if (!is_device(handle)) return INVALID_DEVICE;
  if (number < 1 || number > 255) return INVALID_VALUE;
  *value = attribute(number);
  return SUCCESS;
}

// ---- contexts: there is one, of every device ------------------------------------------------------------------

EMU_API cuDevicePrimaryCtxRetain(void **context, int handle) {
  if (!is_device(handle)) return INVALID_DEVICE;
  *context = &primary_context;
  return SUCCESS;
}
EMU_API cuDevicePrimaryCtxRelease_v2(int handle) { return is_device(handle) ? SUCCESS : INVALID_DEVICE; }
EMU_API cuDevicePrimaryCtxGetState(int, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return SUCCESS;
}
EMU_API cuDevicePrimaryCtxSetFlags_v2(int, unsigned) { return SUCCESS; }
EMU_API cuCtxGetCurrent(void **context) {
  *context = current_context;
  return SUCCESS;
}
EMU_API cuCtxSetCurrent(void *context) {
  if (context && context != &primary_context) return INVALID_CONTEXT;
  current_context = context;
  return SUCCESS;
}
EMU_API cuCtxGetDevice(int *handle) {
  if (!current_context) return INVALID_CONTEXT;
  *handle = 0;
  return SUCCESS;
}
EMU_API cuCtxGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return SUCCESS;
}
EMU_API cuCtxGetLimit(size_t *value, int) {
  *value = 0;
  return SUCCESS;
}
EMU_API cuCtxSetLimit(int, size_t) { return SUCCESS; }
EMU_API cuCtxSetFlags(unsigned) { return SUCCESS; }
EMU_API cuProfilerStart() { return SUCCESS; }
EMU_API cuProfilerStop() { return SUCCESS; }

// ---- errors -------------------------------------------------------------------------------------------------

namespace {
struct Message {
  Result result;
  const char *name, *text;
};
} // namespace

static const Message messages[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {MISALIGNED_ADDRESS, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {COOPERATIVE_LAUNCH_TOO_LARGE, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE", "too many blocks in cooperative launch"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {STREAM_CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "operation not permitted when stream is capturing"},
    {STREAM_CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "operation failed due to a previous error during capture"},
    {STREAM_CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED",
     "capture was not ended in the same stream as it began"},
    {STREAM_CAPTURE_UNJOINED, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "capturing stream has unjoined work"},
    {GRAPH_EXEC_UPDATE_FAILURE, "CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE",
     "the graph update was not performed because it included changes which violated constraints"},
    {INVALID_CLUSTER_SIZE, "CUDA_ERROR_INVALID_CLUSTER_SIZE", "cluster misconfiguration"},
};

static const Message *message_of(int result) {
  for (const Message &message : messages)
    if (message.result == result) return &message;
  return nullptr;
}

EMU_API cuGetErrorName(int result, const char **name) {
  const Message *message = message_of(result);
  *name = message ? message->name : nullptr;
  return message ? SUCCESS : INVALID_VALUE;
}

EMU_API cuGetErrorString(int result, const char **text) {
  const Message *message = message_of(result);
  *text = message ? message->text : nullptr;
  return message ? SUCCESS : INVALID_VALUE;
}
