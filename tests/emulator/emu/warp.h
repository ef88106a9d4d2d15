// What a warp or a block does together: barriers, shuffles, votes, reductions, atomics.
#pragma once
#include "intrinsics.h"

namespace emu {

/// Runs when the last lane of a warp collective has arrived: `lanes[l]` is what lane l brought, null outside the mask.
using Collective = void (*)(const void *const *lanes, uint32_t mask);

/// Every lane of `mask` brings `operands`; the last to arrive runs `act` on all of them, then all go on. Shuffles,
/// votes, ldmatrix, mma.sync and wgmma are all this. `orders_memory`: whether it orders the lanes' memory accesses.
void collective(uint32_t mask, const char *what, const void *operands, Collective act, bool orders_memory, Site site);

/// Barrier `id` of the block for `count` threads (-1: all of them).
void barrier(int id, int count, bool arrive_only, Site site);
/// __syncthreads that also counts the threads whose `predicate` holds.
int barrier_count(bool predicate, Site site);
void thread_fence();

// Order of atomics as the checker sees it; called before and after the operation.
void atomic_access(void *p, size_t size, Site site);

template <class T>
struct Shuffle {
  T value;
  T *result;
  int source;
};

template <class T>
EMU_UNCHECKED T shuffle(uint32_t mask, T value, int source, const char *what, Site site) {
  T result = value;
  Shuffle<T> operand{value, &result, source};
  auto act = [](const void *const *lanes, uint32_t mask) EMU_UNCHECKED {
    for (int l = 0; l < 32; l++) {
      if (!lanes[l]) continue;
      auto to = static_cast<const Shuffle<T> *>(lanes[l]);
      if (to->source == l) continue;
      if (!(mask >> to->source & 1)) fail("shuffle: lane %d reads lane %d, which does not take part", l, to->source);
      *to->result = static_cast<const Shuffle<T> *>(lanes[to->source])->value;
    }
  };
  collective(mask, what, &operand, act, false, site);
  return result;
}

EMU_UNCHECKED inline int lane() { return int((current->index.x + current->block->block_dim.x *
    (current->index.y + current->block->block_dim.y * current->index.z)) % 32); }

/// A reduction over the lanes of `mask`, in ascending order of the lanes.
template <class T>
struct Reduction {
  T value;
  T *result;
};
template <class T, class F>
EMU_UNCHECKED T reduce(uint32_t mask, T value, const char *what, F, Site site) {
  T result = value;
  Reduction<T> operand{value, &result};
  auto act = [](const void *const *lanes, uint32_t mask) EMU_UNCHECKED {
    T r{};
    bool first = true;
    for (int l = 0; l < 32; l++) {
      if (!(mask >> l & 1)) continue;
      T v = static_cast<const Reduction<T> *>(lanes[l])->value;
      r = first ? v : F()(r, v);
      first = false;
    }
    for (int l = 0; l < 32; l++)
      if (mask >> l & 1) *static_cast<const Reduction<T> *>(lanes[l])->result = r;
  };
  collective(mask, what, &operand, act, false, site);
  return result;
}

#define EMU_OPERATION(name, expression)                                                                       \
  struct name {                                                                                               \
    template <class T>                                                                                        \
    EMU_UNCHECKED T operator()(T a, T b) const {                                                              \
      return expression;                                                                                      \
    }                                                                                                         \
  };
EMU_OPERATION(Add, T(a + b))
EMU_OPERATION(Min, b < a ? b : a)
EMU_OPERATION(Max, a < b ? b : a)
EMU_OPERATION(And, T(a & b))
EMU_OPERATION(Or, T(a | b))
EMU_OPERATION(Xor, T(a ^ b))
EMU_OPERATION(Exchange, b)
#undef EMU_OPERATION

/// p = F(p, v); returns what was there.
template <class F, class T>
EMU_UNCHECKED T atomic(T *p, T v, Site site) {
  atomic_access(p, sizeof(T), site);
  T was, now;
  __atomic_load(p, &was, __ATOMIC_RELAXED);
  do now = F()(was, v);
  while (!__atomic_compare_exchange(p, &was, &now, true, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED));
  return was;
}

} // namespace emu

// ---- barriers and fences ------------------------------------------------------------------------------------

inline void __syncthreads(EMU_HERE) { emu::barrier(0, -1, false, site); }
inline int __syncthreads_count(int p, EMU_HERE) { return emu::barrier_count(p != 0, site); }
inline int __syncthreads_or(int p, EMU_HERE) { return emu::barrier_count(p != 0, site) != 0; }
inline int __syncthreads_and(int p, EMU_HERE) { return emu::barrier_count(p == 0, site) == 0; }
inline void __syncwarp(uint32_t mask = ~0u, EMU_HERE) {
  emu::collective(mask, "__syncwarp", nullptr, [](const void *const *, uint32_t) {}, true, site);
}
inline void __threadfence() { emu::thread_fence(); }
inline void __threadfence_block() { emu::thread_fence(); }
inline void __threadfence_system() { emu::thread_fence(); }

// ---- shuffles -----------------------------------------------------------------------------------------------
// `width` cuts the warp into segments; a source outside the lane's segment gives the lane's own value.

template <class T>
inline T __shfl_sync(uint32_t mask, T v, int source, int width = 32, EMU_HERE) {
  int first = emu::lane() & ~(width - 1);
  return emu::shuffle(mask, v, first | (source & (width - 1)), "__shfl_sync", site);
}
template <class T>
inline T __shfl_xor_sync(uint32_t mask, T v, int x, int width = 32, EMU_HERE) {
  int l = emu::lane(), source = l ^ x;
  // As the hardware has it: a lower segment may be read, a higher one may not.
  if (source > (l | (width - 1)) || source > 31) source = l;
  return emu::shuffle(mask, v, source, "__shfl_xor_sync", site);
}
template <class T>
inline T __shfl_down_sync(uint32_t mask, T v, unsigned delta, int width = 32, EMU_HERE) {
  int l = emu::lane(), source = l + int(delta);
  if (source > (l | (width - 1))) source = l;
  return emu::shuffle(mask, v, source, "__shfl_down_sync", site);
}
template <class T>
inline T __shfl_up_sync(uint32_t mask, T v, unsigned delta, int width = 32, EMU_HERE) {
  int l = emu::lane(), source = l - int(delta);
  if (source < (l & ~(width - 1))) source = l;
  return emu::shuffle(mask, v, source, "__shfl_up_sync", site);
}

// ---- votes and reductions -----------------------------------------------------------------------------------

inline uint32_t __ballot_sync(uint32_t mask, int p, EMU_HERE) {
  return emu::reduce(mask, p ? 1u << emu::lane() : 0u, "__ballot_sync", emu::Or(), site);
}
inline int __any_sync(uint32_t mask, int p, EMU_HERE) {
  return emu::reduce(mask, p ? 1 : 0, "__any_sync", emu::Or(), site);
}
inline int __all_sync(uint32_t mask, int p, EMU_HERE) {
  return emu::reduce(mask, p ? 1 : 0, "__all_sync", emu::And(), site);
}
inline uint32_t __activemask() { return ~0u; }

inline unsigned __reduce_add_sync(uint32_t m, unsigned v, EMU_HERE) {
  return emu::reduce(m, v, "__reduce_add_sync", emu::Add(), site);
}
inline int __reduce_add_sync(uint32_t m, int v, EMU_HERE) {
  return int(emu::reduce(m, unsigned(v), "__reduce_add_sync", emu::Add(), site));
}
template <class T>
inline T __reduce_min_sync(uint32_t m, T v, EMU_HERE) {
  return emu::reduce(m, v, "__reduce_min_sync", emu::Min(), site);
}
template <class T>
inline T __reduce_max_sync(uint32_t m, T v, EMU_HERE) {
  return emu::reduce(m, v, "__reduce_max_sync", emu::Max(), site);
}
inline unsigned __reduce_and_sync(uint32_t m, unsigned v, EMU_HERE) {
  return emu::reduce(m, v, "__reduce_and_sync", emu::And(), site);
}
inline unsigned __reduce_or_sync(uint32_t m, unsigned v, EMU_HERE) {
  return emu::reduce(m, v, "__reduce_or_sync", emu::Or(), site);
}
inline unsigned __reduce_xor_sync(uint32_t m, unsigned v, EMU_HERE) {
  return emu::reduce(m, v, "__reduce_xor_sync", emu::Xor(), site);
}

// ---- atomics ------------------------------------------------------------------------------------------------
// Integers only: a sum of floats in the order of arrival is not the same for every run.

template <class T>
using EmuInteger = std::enable_if_t<std::is_integral<T>::value, T>;
// The value converts to the type of the memory, as it does in CUDA's overloads.
template <class T>
using EmuValue = std::enable_if_t<true, T>;

template <class T>
inline EmuInteger<T> atomicAdd(T *p, EmuValue<T> v, EMU_HERE) { return emu::atomic<emu::Add>(p, v, site); }
template <class T>
inline EmuInteger<T> atomicMin(T *p, EmuValue<T> v, EMU_HERE) { return emu::atomic<emu::Min>(p, v, site); }
template <class T>
inline EmuInteger<T> atomicMax(T *p, EmuValue<T> v, EMU_HERE) { return emu::atomic<emu::Max>(p, v, site); }
template <class T>
inline EmuInteger<T> atomicAnd(T *p, EmuValue<T> v, EMU_HERE) { return emu::atomic<emu::And>(p, v, site); }
template <class T>
inline EmuInteger<T> atomicOr(T *p, EmuValue<T> v, EMU_HERE) { return emu::atomic<emu::Or>(p, v, site); }
template <class T>
inline EmuInteger<T> atomicXor(T *p, EmuValue<T> v, EMU_HERE) { return emu::atomic<emu::Xor>(p, v, site); }
template <class T>
inline EmuInteger<T> atomicExch(T *p, EmuValue<T> v, EMU_HERE) { return emu::atomic<emu::Exchange>(p, v, site); }
template <class T>
EMU_UNCHECKED inline EmuInteger<T> atomicCAS(T *p, EmuValue<T> expected, EmuValue<T> v, EMU_HERE) {
  emu::atomic_access(p, sizeof(T), site);
  __atomic_compare_exchange(p, &expected, &v, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
  return expected;
}
