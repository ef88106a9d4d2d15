// Device memory: one reserved range of addresses; each buffer ends at a page that faults, starts out filled with
// 0xff, and its addresses are not used again until the range is used up.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>

namespace emu {

struct Cell;

struct Buffer {
  char *data = nullptr;
  size_t size = 0;
  bool live = false;
  // The checker's; null until it is on.
  uint8_t *initialised = nullptr; // one for each byte
  Cell *cells = nullptr;
};

/// Null when the limit or the range is exhausted.
void *device_allocate(size_t size);
/// An empty string, or what is wrong.
std::string device_free(void *p);
/// Whether p is in the range of addresses, allocated or not.
bool in_device_memory(const void *p);
/// The live buffer that holds [p, p + size), or null.
Buffer *find_buffer(const void *p, size_t size);
/// "12 bytes past the end of a device buffer of 256 bytes"
std::string describe(const void *p);
/// The host wrote these bytes.
void mark_initialised(const void *p, size_t size);

void set_device_memory_limit(size_t bytes);
size_t device_memory_limit();
size_t device_memory_used();

/// The checker's records begin (what was written before counts as initialised) or are dropped.
void start_checker_records();
void drop_checker_records();

} // namespace emu
