// The driver API: memory of the device, pools, pinned memory of the host, copies and fills.
#include "device_memory.h"
#include "driver.h"
#include "launch.h"
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

using namespace emu;
typedef unsigned long long Address;

static void *pointer(Address a) { return reinterpret_cast<void *>(a); }

// ---- allocation ---------------------------------------------------------------------------------------------

static int allocate(Address *out, size_t size) {
  if (size == 0) return INVALID_VALUE;
  void *p = device_allocate(size);
  if (!p) return OUT_OF_MEMORY;
  statistics.allocations++;
  *out = reinterpret_cast<Address>(p);
  return SUCCESS;
}

static int release(Address a) {
  if (!a) return SUCCESS;
  // A kernel that is being checked holds records of its buffers.
  std::shared_lock<std::shared_mutex> lock(launch_mutex);
  statistics.frees++;
  std::string error = device_free(pointer(a));
  return error.empty() ? SUCCESS : refuse(ILLEGAL_ADDRESS, "%s", error.c_str());
}

EMU_API cuMemAlloc_v2(Address *out, size_t size) {
  if (int r = nothing_capturing_strictly()) return r;
  return allocate(out, size);
}

EMU_API cuMemFree_v2(Address a) {
  if (int r = nothing_capturing_strictly()) return r;
  statistics.synchronisations++; // it waits for the device
  return release(a);
}

// Allocations inside a graph are not emulated: a step that is captured should make none.
EMU_API cuMemAllocAsync(Address *out, size_t size, void *stream) {
  if (!stream_of(stream)) return INVALID_HANDLE;
  if (int r = not_capturing(stream)) return r;
  return allocate(out, size);
}
EMU_API cuMemAllocFromPoolAsync(Address *out, size_t size, void *, void *stream) {
  return cuMemAllocAsync(out, size, stream);
}

EMU_API cuMemFreeAsync(Address a, void *stream) {
  if (!stream_of(stream)) return INVALID_HANDLE;
  if (int r = not_capturing(stream)) return r;
  return release(a);
}

EMU_API cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  *total = device_memory_limit();
  size_t used = device_memory_used();
  *free_bytes = *total > used ? *total - used : 0;
  return SUCCESS;
}

// ---- pools: one of each device, which keeps nothing -----------------------------------------------------------

static uint64_t release_threshold = 0;
static char pool;

EMU_API cuDeviceGetDefaultMemPool(void **out, int) {
  *out = &pool;
  return SUCCESS;
}
EMU_API cuDeviceGetMemPool(void **out, int handle) { return cuDeviceGetDefaultMemPool(out, handle); }
EMU_API cuDeviceSetMemPool(int, void *) { return SUCCESS; }
EMU_API cuMemPoolTrimTo(void *, size_t) { return SUCCESS; }

// 4 is RELEASE_THRESHOLD; 5 to 8 are memory reserved and used, now and at most.
EMU_API cuMemPoolSetAttribute(void *, int attribute, void *value) {
  if (attribute < 1 || attribute > 8) return INVALID_VALUE;
  if (attribute == 4) memcpy(&release_threshold, value, 8);
  return SUCCESS;
}
EMU_API cuMemPoolGetAttribute(void *, int attribute, void *value) {
  if (attribute < 1 || attribute > 8) return INVALID_VALUE;
  if (attribute < 4) {
    int on = 1;
    memcpy(value, &on, 4);
  } else {
    uint64_t v = attribute == 4 ? release_threshold : device_memory_used();
    memcpy(value, &v, 8);
  }
  return SUCCESS;
}

// ---- pinned memory ------------------------------------------------------------------------------------------

static std::mutex pinned_mutex;
static std::map<char *, size_t> pinned;

EMU_API cuMemHostAlloc(void **out, size_t size, unsigned) {
  if (int r = nothing_capturing()) return r;
  if (size == 0) return INVALID_VALUE;
  void *p = aligned_alloc(4096, (size + 4095) / 4096 * 4096);
  if (!p) return OUT_OF_MEMORY;
  statistics.allocations++;
  std::lock_guard<std::mutex> lock(pinned_mutex);
  pinned[static_cast<char *>(p)] = size;
  *out = p;
  return SUCCESS;
}
EMU_API cuMemAllocHost_v2(void **out, size_t size) { return cuMemHostAlloc(out, size, 0); }

EMU_API cuMemFreeHost(void *p) {
  std::lock_guard<std::mutex> lock(pinned_mutex);
  if (!pinned.erase(static_cast<char *>(p))) return INVALID_VALUE;
  statistics.frees++;
  free(p);
  return SUCCESS;
}

static bool is_pinned(const void *p, size_t size) {
  std::lock_guard<std::mutex> lock(pinned_mutex);
  auto c = const_cast<char *>(static_cast<const char *>(p));
  auto it = pinned.upper_bound(c);
  if (it == pinned.begin()) return false;
  --it;
  return c + size <= it->first + it->second;
}

// ---- copies and fills ---------------------------------------------------------------------------------------

namespace {
enum Direction { HostToDevice, DeviceToHost, DeviceToDevice };
const char *const direction_names[] = {"copy to the device", "copy from the device", "copy on the device"};
} // namespace

static int check_device(const void *p, size_t size, const char *what) {
  if (find_buffer(p, size)) return SUCCESS;
  std::string last = describe(find_buffer(p, 1) ? static_cast<const char *>(p) + size - 1 : p);
  return refuse(INVALID_VALUE, "%s of %zu bytes: %s", what, size, last.c_str());
}

static int copy(void *to, const void *from, size_t size, Direction direction) {
  statistics.copies++;
  if (size == 0) return SUCCESS;
  const char *name = direction_names[direction];
  if (direction != DeviceToHost)
    if (int r = check_device(to, size, name)) return r;
  if (direction != HostToDevice)
    if (int r = check_device(from, size, name)) return r;
  memmove(to, from, size);
  if (direction != DeviceToHost) mark_initialised(to, size);
  return SUCCESS;
}

static int copy_now(void *to, const void *from, size_t size, Direction direction) {
  if (int r = nothing_capturing()) return r;
  statistics.synchronisations++;
  return copy(to, from, size, direction);
}

static int copy_later(void *to, const void *from, size_t size, Direction direction, void *stream) {
  // The driver must stage pageable memory of the host itself; a copy from the device then holds the host.
  const void *host = direction == HostToDevice ? from : direction == DeviceToHost ? to : nullptr;
  if (host && !is_pinned(host, size)) statistics.pageable_copies++;
  return submit(stream, direction_names[direction], [=] { return copy(to, from, size, direction); });
}

EMU_API cuMemcpyHtoD_v2(Address to, const void *from, size_t size) {
  return copy_now(pointer(to), from, size, HostToDevice);
}
EMU_API cuMemcpyDtoH_v2(void *to, Address from, size_t size) {
  return copy_now(to, pointer(from), size, DeviceToHost);
}
EMU_API cuMemcpyDtoD_v2(Address to, Address from, size_t size) {
  return copy_now(pointer(to), pointer(from), size, DeviceToDevice);
}
EMU_API cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t size, void *stream) {
  return copy_later(pointer(to), from, size, HostToDevice, stream);
}
EMU_API cuMemcpyDtoHAsync_v2(void *to, Address from, size_t size, void *stream) {
  return copy_later(to, pointer(from), size, DeviceToHost, stream);
}
EMU_API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t size, void *stream) {
  return copy_later(pointer(to), pointer(from), size, DeviceToDevice, stream);
}

// `count` values of `width` bytes.
static int fill(void *to, unsigned value, unsigned width, size_t count) {
  size_t size = count * width;
  if (size == 0) return SUCCESS;
  if (reinterpret_cast<uintptr_t>(to) % width) return INVALID_VALUE;
  if (int r = check_device(to, size, "fill")) return r;
  for (size_t i = 0; i < count; i++) memcpy(static_cast<char *>(to) + i * width, &value, width);
  mark_initialised(to, size);
  return SUCCESS;
}

static int fill_later(Address to, unsigned value, unsigned width, size_t count, void *stream) {
  return submit(stream, "fill", [=] { return fill(pointer(to), value, width, count); });
}

EMU_API cuMemsetD8_v2(Address to, unsigned char value, size_t count) { return fill_later(to, value, 1, count, nullptr); }
EMU_API cuMemsetD16_v2(Address to, unsigned short value, size_t count) {
  return fill_later(to, value, 2, count, nullptr);
}
EMU_API cuMemsetD32_v2(Address to, unsigned value, size_t count) { return fill_later(to, value, 4, count, nullptr); }
EMU_API cuMemsetD8Async(Address to, unsigned char value, size_t count, void *stream) {
  return fill_later(to, value, 1, count, stream);
}
EMU_API cuMemsetD16Async(Address to, unsigned short value, size_t count, void *stream) {
  return fill_later(to, value, 2, count, stream);
}
EMU_API cuMemsetD32Async(Address to, unsigned value, size_t count, void *stream) {
  return fill_later(to, value, 4, count, stream);
}
