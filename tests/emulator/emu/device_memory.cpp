#include "device_memory.h"
#include "checker.h"
#include <cstdlib>
#include <map>
#include <mutex>
#include <sys/mman.h>

namespace emu {

constexpr size_t page = 4096;
constexpr size_t range = size_t(64) << 30;

static std::mutex mutex;
static char *range_start = nullptr, *range_end = nullptr;
static size_t next_offset = page;
static std::map<char *, Buffer> buffers; // freed ones stay until their addresses are used again
static size_t limit = size_t(16) << 30, used = 0;
static bool recording = false;

static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// The bytes between the end of a buffer and the page behind it.
static size_t padded(size_t size) { return round_up(size, 256); }
static size_t mapped(size_t size) { return round_up(padded(size), page); }
static char *first_page(const Buffer &b) { return b.data + padded(b.size) - mapped(b.size); }

static void release_records(Buffer &b) {
  free(b.initialised);
  free(b.cells);
  b.initialised = nullptr;
  b.cells = nullptr;
}

static void make_records(Buffer &b, bool initialised) {
  b.initialised = static_cast<uint8_t *>(calloc(b.size, 1));
  b.cells = static_cast<Cell *>(calloc(b.size, sizeof(Cell)));
  if (!b.initialised || !b.cells) fail("the emulator found no memory for the checker");
  if (initialised) memset(b.initialised, 1, b.size);
}

// The next free place of `size` bytes with a page on each side; null if there is none.
static char *place(size_t size) {
  for (int turn = 0; turn < 2; turn++) {
    size_t at = next_offset;
    auto it = buffers.lower_bound(range_start + at);
    while (at + size + page <= range) {
      while (it != buffers.end() && !it->second.live) ++it;
      size_t taken = it == buffers.end() ? range : size_t(first_page(it->second) - range_start);
      if (at + size + page <= taken) {
        next_offset = at + size + page;
        // Freed buffers whose addresses are used again are forgotten.
        auto old = buffers.lower_bound(range_start + at);
        while (old != buffers.end() && old->first < range_start + next_offset) old = buffers.erase(old);
        return range_start + at;
      }
      if (it == buffers.end()) break;
      at = size_t(it->second.data - range_start) + padded(it->second.size) + page;
      ++it;
    }
    next_offset = page;
  }
  return nullptr;
}

void *device_allocate(size_t size) {
  std::lock_guard<std::mutex> lock(mutex);
  if (!range_start) {
    void *p = mmap(nullptr, range, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return nullptr;
    range_start = static_cast<char *>(p);
    range_end = range_start + range;
  }
  if (size > limit || used > limit - size) return nullptr;
  size_t bytes = mapped(size);
  char *start = place(bytes);
  if (!start || mprotect(start, bytes, PROT_READ | PROT_WRITE) != 0) return nullptr;
  memset(start, 0xff, bytes);
  Buffer b;
  b.data = start + bytes - padded(size);
  b.size = size;
  b.live = true;
  if (recording) make_records(b, false);
  buffers[b.data] = b;
  used += size;
  return b.data;
}

std::string device_free(void *p) {
  std::lock_guard<std::mutex> lock(mutex);
  auto it = buffers.find(static_cast<char *>(p));
  if (it == buffers.end()) return "free of an address that is not the start of a device buffer";
  Buffer &b = it->second;
  if (!b.live) return "a device buffer of " + std::to_string(b.size) + " bytes is freed twice";
  std::string error;
  for (size_t i = b.size; i < padded(b.size); i++)
    if (static_cast<unsigned char>(b.data[i]) != 0xff) {
      error = "write past the end of a device buffer of " + std::to_string(b.size) + " bytes (found when it was freed)";
      break;
    }
  b.live = false;
  used -= b.size;
  release_records(b);
  madvise(first_page(b), mapped(b.size), MADV_DONTNEED);
  mprotect(first_page(b), mapped(b.size), PROT_NONE);
  return error;
}

bool in_device_memory(const void *p) { return p >= range_start && p < range_end; }

// The last buffer that starts at or before p.
static Buffer *buffer_before(const void *p) {
  auto it = buffers.upper_bound(const_cast<char *>(static_cast<const char *>(p)));
  return it == buffers.begin() ? nullptr : &(--it)->second;
}

Buffer *find_buffer(const void *p, size_t size) {
  std::lock_guard<std::mutex> lock(mutex);
  Buffer *b = buffer_before(p);
  if (!b || !b->live || static_cast<const char *>(p) + size > b->data + b->size) return nullptr;
  return b;
}

std::string describe(const void *p) {
  std::lock_guard<std::mutex> lock(mutex);
  auto c = static_cast<const char *>(p);
  auto size = [](const Buffer &b) { return std::to_string(b.size) + " bytes"; };
  Buffer *before = buffer_before(p);
  auto after = buffers.upper_bound(const_cast<char *>(c));
  if (before && (c < before->data + padded(before->size) + 2 * page || after == buffers.end())) {
    if (c < before->data + before->size)
      return std::string("inside a ") + (before->live ? "device buffer of " : "FREED device buffer of ") + size(*before);
    return std::to_string(c - (before->data + before->size)) + " bytes past the end of a " +
           (before->live ? "device buffer of " : "FREED device buffer of ") + size(*before);
  }
  if (after != buffers.end())
    return std::to_string(after->first - c) + " bytes before the start of a device buffer of " + size(after->second);
  return "not a device buffer";
}

void mark_initialised(const void *p, size_t size) {
  if (!recording || !in_device_memory(p)) return;
  if (Buffer *b = find_buffer(p, size)) {
    size_t at = size_t(static_cast<const char *>(p) - b->data);
    if (b->initialised) memset(b->initialised + at, 1, size);
  }
}

void set_device_memory_limit(size_t bytes) {
  std::lock_guard<std::mutex> lock(mutex);
  limit = bytes;
}
size_t device_memory_limit() {
  std::lock_guard<std::mutex> lock(mutex);
  return limit;
}
size_t device_memory_used() {
  std::lock_guard<std::mutex> lock(mutex);
  return used;
}

void start_checker_records() {
  std::lock_guard<std::mutex> lock(mutex);
  if (recording) return;
  recording = true;
  for (auto &entry : buffers)
    if (entry.second.live) make_records(entry.second, true);
}

void drop_checker_records() {
  std::lock_guard<std::mutex> lock(mutex);
  if (!recording) return;
  recording = false;
  for (auto &entry : buffers) release_records(entry.second);
}

} // namespace emu
