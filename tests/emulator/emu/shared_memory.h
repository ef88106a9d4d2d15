// The shared memory of one block: its static part, a guard page, its dynamic part up against another.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

struct Cell;

struct SharedMemory {
  char *base = nullptr;    // of the window that 18-bit addresses reach
  char *dynamic = nullptr; // 1024-byte aligned
  size_t static_size = 0, dynamic_size = 0;
  Cell *cells = nullptr; // the checker's record of every byte

  SharedMemory();
  ~SharedMemory();
  /// Opens the pages for a launch.
  void open(size_t dynamic_bytes);
  /// Fills everything with 0xff: a NaN in f32, bf16 and f16.
  void poison();
  /// Whether [p, p + size) is in the static or the dynamic part.
  bool holds(const void *p, size_t size) const;
  /// Whether p is in the window, mapped or not.
  bool near(const void *p) const;
  size_t offset(const void *p) const { return size_t(static_cast<const char *>(p) - base); }
  /// Fails if a byte behind the end of the dynamic part was written.
  void check_end() const;

private:
  size_t opened = SIZE_MAX;
};

/// The memory behind a shared address of the running block (or of its cluster); fails if any of it is not there.
char *shared_pointer(uint32_t address, size_t size);
/// The block of the running cluster whose window holds p, or null.
struct Block;
Block *shared_owner(const void *p);

} // namespace emu
