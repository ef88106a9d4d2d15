// CUDA's language as the host's C++ compiler needs it: keywords, vector types, the built-in indices, shared
// memory and the registration of kernels. Kernel files get it through gpu.cuh and emu/gpu.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

// Kernels are compiled with calls to the checker around every load and store. What stands in for an instruction
// of the GPU reports its own accesses and must not be seen twice.
#define EMU_UNCHECKED __attribute__((no_sanitize("thread")))

// The line of the kernel that a report names: the last parameter of every emulated instruction.
#define EMU_HERE emu::Site site = {__builtin_FILE(), __builtin_LINE()}

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define EMU_VECTORS(T, name)                                                                                  \
  struct name##1 {                                                                                            \
    T x;                                                                                                      \
  };                                                                                                          \
  struct alignas(2 * sizeof(T)) name##2 {                                                                     \
    T x, y;                                                                                                   \
  };                                                                                                          \
  struct name##3 {                                                                                            \
    T x, y, z;                                                                                                \
  };                                                                                                          \
  struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 {                                           \
    T x, y, z, w;                                                                                             \
  };                                                                                                          \
  inline name##1 make_##name##1(T x) { return {x}; }                                                          \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                                  \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                          \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

EMU_VECTORS(float, float)
EMU_VECTORS(double, double)
EMU_VECTORS(signed char, char)
EMU_VECTORS(unsigned char, uchar)
EMU_VECTORS(short, short)
EMU_VECTORS(unsigned short, ushort)
EMU_VECTORS(int, int)
EMU_VECTORS(unsigned, uint)
EMU_VECTORS(long long, longlong)
EMU_VECTORS(unsigned long long, ulonglong)
#undef EMU_VECTORS

namespace emu {

/// A place in a kernel.
struct Site {
  const char *file;
  int line;
};

/// What a kernel may see of the block and the thread it runs in; the scheduler's own records extend these.
struct BlockView {
  dim3 index, grid_dim, block_dim;
};
struct ThreadView {
  dim3 index;
  const BlockView *block;
};

/// The GPU thread that runs on this thread of the host; null outside a kernel.
extern __thread ThreadView *current;

/// Ends the kernel with a report.
[[noreturn]] void fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Shared memory of the running block. `tag` is the address of something unique to the declaration.
void *shared_static(const void *tag, size_t size, size_t align);
void *shared_dynamic();

// ---- kernels by name ----------------------------------------------------------------------------------------

/// A kernel parameter: its size and whether it is a pointer to device memory.
struct Parameter {
  uint32_t size, align;
  bool pointer;
};

struct Registrar {
  Registrar(const char *name, void (*call)(void **), unsigned count, const Parameter *parameters);
};

template <class... A>
struct Signature {
  static constexpr unsigned count = sizeof...(A);
  // One entry too many: an array may not be empty.
  static constexpr Parameter parameters[count + 1] = {
      Parameter{sizeof(A), alignof(A), std::is_pointer<A>::value}..., Parameter{}};

  template <size_t... I>
  static void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<A> *>(arguments[I])...);
  }
};
template <class... A>
Signature<A...> signature_of(void (*)(A...));

template <class... A>
void call(void (*kernel)(A...), void **arguments) {
  Signature<A...>::call(kernel, arguments, std::index_sequence_for<A...>{});
}

} // namespace emu

/// Makes a kernel known to the driver by its name.
#define GPU_EXPORT(kernel)                                                                                    \
  static emu::Registrar emu_registrar_##kernel(                                                               \
      #kernel, [](void **arguments) { emu::call(kernel, arguments); },                                        \
      decltype(emu::signature_of(kernel))::count, decltype(emu::signature_of(kernel))::parameters);

#define GPU_SHARED(type, name, dims)                                                                          \
  static const char name##_tag = 0;                                                                           \
  typedef type name##_type dims;                                                                              \
  name##_type &name = *static_cast<name##_type *>(                                                            \
      emu::shared_static(&name##_tag, sizeof(name##_type), alignof(name##_type) < 16 ? 16 : alignof(name##_type)))
#define GPU_DYN_SHARED(name) unsigned char *name = static_cast<unsigned char *>(emu::shared_dynamic())

#define threadIdx (emu::current->index)
#define blockIdx (emu::current->block->index)
#define blockDim (emu::current->block->block_dim)
#define gridDim (emu::current->block->grid_dim)
#define warpSize 32
