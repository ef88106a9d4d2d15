// What instrumented kernels call. They are compiled with -fsanitize=thread, which puts a call before every load and
// store, and with a few checks of -fsanitize=undefined; the functions are ours, no sanitizer library is linked.
#include "checker.h"
#include "gpu.h"
#include "warp.h"

using namespace emu;

static inline void hook(void *p, size_t size, bool write, const void *code) {
  // Most accesses of a kernel are to its own stack: the search ends that quickly.
  if (!checking || !current) return;
  unsigned me = self()->number;
  Where where{{}, code};
  if (write) {
    cluster->checker->write(p, size, me, Access::Plain, where);
  } else {
    cluster->checker->read(p, size, me, Access::Plain, where);
  }
}

#define EMU_HOOKS(size)                                                                                       \
  void __tsan_read##size(void *p) { hook(p, size, false, __builtin_return_address(0)); }                      \
  void __tsan_write##size(void *p) { hook(p, size, true, __builtin_return_address(0)); }                      \
  void __tsan_unaligned_read##size(void *p) { hook(p, size, false, __builtin_return_address(0)); }            \
  void __tsan_unaligned_write##size(void *p) { hook(p, size, true, __builtin_return_address(0)); }            \
  void __tsan_volatile_read##size(void *p) { hook(p, size, false, __builtin_return_address(0)); }             \
  void __tsan_volatile_write##size(void *p) { hook(p, size, true, __builtin_return_address(0)); }

extern "C" {
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)
void __tsan_read_range(void *p, size_t size) { hook(p, size, false, __builtin_return_address(0)); }
void __tsan_write_range(void *p, size_t size) { hook(p, size, true, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
// clang calls these for copies of structs.
void *__tsan_memcpy(void *to, const void *from, size_t size) {
  hook(const_cast<void *>(from), size, false, __builtin_return_address(0));
  hook(to, size, true, __builtin_return_address(0));
  return memcpy(to, from, size);
}
void *__tsan_memset(void *to, int value, size_t size) {
  hook(to, size, true, __builtin_return_address(0));
  return memset(to, value, size);
}
void __tsan_vptr_update(void *, void *) {}
void __tsan_vptr_read(void *) {}
}

// ---- -fsanitize=alignment,bounds,shift-exponent,integer-divide-by-zero ----------------------------------------
// The layouts are those of gcc's and clang's calls. Errors on every GPU or undefined in C++: reported in every mode.

namespace {
struct Location {
  const char *file;
  uint32_t line, column;
};
struct Mismatch {
  Location location;
  const void *type;
  unsigned char log2_alignment, kind;
};
Site site_of(const Location &location) { return {location.file, int(location.line)}; }
} // namespace

// Compiled with -fno-sanitize-recover: the calls of that form end in _abort.
extern "C" {
void __ubsan_handle_type_mismatch_v1_abort(Mismatch *data, uintptr_t pointer) {
  size_t alignment = size_t(1) << data->log2_alignment;
  fail("misaligned address 0x%zx: the access needs %zu bytes of alignment%s", size_t(pointer), alignment,
       at(site_of(data->location)).c_str());
}
void __ubsan_handle_out_of_bounds_abort(Location *location, uintptr_t index) {
  fail("index %zd is outside the array%s", ptrdiff_t(index), at(site_of(*location)).c_str());
}
void __ubsan_handle_shift_out_of_bounds_abort(Location *location, uintptr_t, uintptr_t by) {
  fail("shift by %zd bits%s", ptrdiff_t(by), at(site_of(*location)).c_str());
}
void __ubsan_handle_divrem_overflow_abort(Location *location, uintptr_t, uintptr_t) {
  fail("division of an integer by zero%s", at(site_of(*location)).c_str());
}
}

namespace emu {

void atomic_access(void *p, size_t size, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % size) fail("misaligned atomic of %zu bytes%s", size, at(site).c_str());
  if (!checking) return;
  unsigned me = self()->number;
  cluster->checker->read(p, size, me, Access::Atomic, Where{site});
  cluster->checker->write(p, size, me, Access::Atomic, Where{site});
  cluster->checker->synchronise(p, me);
}

void fence_proxy() {
  if (cluster->checker) cluster->checker->fence_proxy(self()->number);
}

static void check_vector(const void *p, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % 16)
    fail("misaligned address %p: the access needs 16 bytes of alignment%s", p, at(site).c_str());
}

void vector_read(void *to, const void *from, Site site) {
  check_vector(from, site);
  touch(from, 16, false, site);
  memcpy(to, from, 16);
}

void vector_write(void *to, const void *from, Site site) {
  check_vector(to, site);
  touch(to, 16, true, site);
  memcpy(to, from, 16);
}

} // namespace emu
