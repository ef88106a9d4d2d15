// Tensors: casts, gathered rows, the count of values that are not finite.
#include "gpu.cuh"

// Elements a thread handles, 256 apart so that a warp's accesses are consecutive.
constexpr int PER_THREAD = 8;

/// y = x, rounded to nearest.
template <class T, class U>
KERNEL(256) cast(T *y, const U *x, uint64_t n) {
    uint64_t first = uint64_t(blockIdx.x) * (256 * PER_THREAD) + threadIdx.x;
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
        uint64_t i = first + j * 256;
        if (i < n) y[i] = gpu::from_f32<T>(gpu::to_f32(x[i]));
    }
}

/// Row r of y is row rows[r] of x; a row has `len` elements, y has n.
template <class T>
KERNEL(256) gather_rows(T *y, const T *x, const uint32_t *rows, uint64_t len, uint64_t n) {
    uint64_t first = uint64_t(blockIdx.x) * (256 * PER_THREAD) + threadIdx.x;
    for (int j = 0; j < PER_THREAD; j++) {
        uint64_t i = first + j * 256;
        if (i < n) y[i] = x[rows[i / len] * len + i % len];
    }
}

/// Adds the number of NaNs and infinities to *count: a sum of integers, so its order is free.
template <class T>
KERNEL(256) count_not_finite(uint64_t *count, const T *x, uint64_t n) {
    uint64_t first = uint64_t(blockIdx.x) * (256 * PER_THREAD) + threadIdx.x;
    int bad = 0;
    for (int j = 0; j < PER_THREAD; j++) {
        uint64_t i = first + j * 256;
        if (i < n && !isfinite(gpu::to_f32(x[i]))) bad++;
    }
    if (bad) atomicAdd(reinterpret_cast<unsigned long long *>(count), (unsigned long long)(bad));
}
