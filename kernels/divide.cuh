// Division by a number that the host knows: a multiplication and a shift.
#pragma once
#include "gpu.cuh"

/// Divides numbers below 2^31: the quotient is `n * multiplier >> 32 + shift`, multiplier =
/// ceil(2^(32 + shift) / divisor), shift = ceil(log2(divisor)) - 1 (Granlund and Montgomery 1994). 1 has
/// no such multiplier.
struct Divisor {
  uint32_t divisor;
  uint32_t multiplier;
  uint32_t shift;
};

__device__ __forceinline__ uint32_t divide(uint32_t n, const Divisor &by) {
  return by.divisor == 1 ? n : __umulhi(n, by.multiplier) >> by.shift;
}

/// Quotient and remainder.
struct Division {
  uint32_t quotient, remainder;
};

__device__ __forceinline__ Division divide_rest(uint32_t n, const Divisor &by) {
  uint32_t q = divide(n, by);
  return {q, n - q * by.divisor};
}
