// What this GPU does at its best: memory, L2, instruction rates, normals, tensor cores, launches.
// The kernels' floors are computed from these. CSV on standard output: probe,value,unit,note.
//
//   nvcc -std=c++17 -O3 -gencode arch=compute_90a,code=sm_90a -o probes scripts/probes.cu
//   probes             every probe, each well under a second
//   probes NAME...     these
//   probes --list
//
// It belongs to no other part of the project. Compute capability 9.0 alone.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <vector>

#define CHECK(call)                                                                                      \
  do {                                                                                                   \
    cudaError_t status = (call);                                                                         \
    if (status != cudaSuccess) {                                                                         \
      fprintf(stderr, "probes: %s: %s\n", #call, cudaGetErrorString(status));                            \
      exit(1);                                                                                           \
    }                                                                                                    \
  } while (0)

static cudaDeviceProp device;
static cudaStream_t stream;

static void row(const char *probe, double value, const char *unit, const char *note = "") {
  printf("%s,%.5g,%s,%s\n", probe, value, unit, note);
  fflush(stdout);
}

template <class T>
static T *allocate(size_t n) {
  void *p;
  CHECK(cudaMalloc(&p, n * sizeof(T)));
  CHECK(cudaMemset(p, 0, n * sizeof(T)));
  return static_cast<T *>(p);
}

/// The median of seven, in seconds, after one that does not count.
template <class F>
static double seconds(F &&work) {
  cudaEvent_t from, to;
  CHECK(cudaEventCreate(&from));
  CHECK(cudaEventCreate(&to));
  std::vector<float> times;
  for (int i = 0; i < 8; i++) {
    CHECK(cudaEventRecord(from, stream));
    work();
    CHECK(cudaEventRecord(to, stream));
    CHECK(cudaEventSynchronize(to));
    CHECK(cudaGetLastError());
    float ms;
    CHECK(cudaEventElapsedTime(&ms, from, to));
    if (i > 0) times.push_back(ms);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2] * 1e-3;
}

// ---- memory ----------------------------------------------------------------------------------------------

__global__ void copy_kernel(uint4 *to, const uint4 *from, size_t n) {
  size_t i = size_t(blockIdx.x) * blockDim.x * 4 + threadIdx.x;
  uint4 v[4];
#pragma unroll
  for (int j = 0; j < 4; j++)
    if (i + j * blockDim.x < n) v[j] = from[i + j * blockDim.x];
#pragma unroll
  for (int j = 0; j < 4; j++)
    if (i + j * blockDim.x < n) to[i + j * blockDim.x] = v[j];
}

static void memory() {
  const size_t bytes = size_t(512) << 20, n = bytes / sizeof(uint4);
  uint4 *from = allocate<uint4>(n), *to = allocate<uint4>(n);
  double t = seconds([&] { copy_kernel<<<unsigned((n + 1023) / 1024), 256, 0, stream>>>(to, from, n); });
  row("copy by a kernel", 2 * bytes / t / 1e9, "GB/s", "512 MiB; bytes read and written");
  t = seconds([&] { CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream)); });
  row("copy by the driver", 2 * bytes / t / 1e9, "GB/s", "512 MiB");
  t = seconds([&] { CHECK(cudaMemsetAsync(to, 1, bytes, stream)); });
  row("fill by the driver", bytes / t / 1e9, "GB/s", "512 MiB");
  CHECK(cudaFree(from));
  CHECK(cudaFree(to));
}

/// Every round reads the whole footprint once, past L1.
__global__ void l2_kernel(const uint4 *p, unsigned n, int rounds, unsigned *sink) {
  unsigned total = gridDim.x * blockDim.x, first = blockIdx.x * blockDim.x + threadIdx.x, sum = 0;
  for (int round = 0; round < rounds; round++) {
#pragma unroll 8
    for (unsigned i = first; i < n; i += total) {
      uint4 v = __ldcg(p + i);
      sum += v.x ^ v.y ^ v.z ^ v.w;
    }
  }
  if (sum == 0x12345) *sink = sum;
}

static void l2() {
  unsigned *sink = allocate<unsigned>(1);
  for (int mb : {10, 20, 40}) {
    unsigned n = mb * 1000000u / sizeof(uint4);
    uint4 *p = allocate<uint4>(n);
    int rounds = 2000 / mb;
    double t = seconds([&] { l2_kernel<<<device.multiProcessorCount * 2, 1024, 0, stream>>>(p, n, rounds, sink); });
    char note[64];
    snprintf(note, sizeof note, "%d MB by 16-byte loads", mb);
    row("L2 read", double(n) * sizeof(uint4) * rounds / t / 1e9, "GB/s", note);
    CHECK(cudaFree(p));
  }
  CHECK(cudaFree(sink));
}

// ---- the bulk copy engine --------------------------------------------------------------------------------

__device__ uint32_t shared_address(const void *p) { return uint32_t(__cvta_generic_to_shared(p)); }

__device__ void barrier_init(uint64_t *b, unsigned count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}

__device__ void barrier_expect(uint64_t *b, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(b)), "r"(bytes)
               : "memory");
}

__device__ void barrier_wait(uint64_t *b, unsigned parity) {
  uint32_t done;
  do {
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
                 "selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(shared_address(b)), "r"(parity)
                 : "memory");
  } while (!done);
}

/// Arrives at the barrier of another block of the cluster, which has it at the same place.
__device__ void barrier_arrive_at(uint64_t *b, unsigned rank) {
  asm volatile("{\n.reg .b32 a;\nmapa.shared::cluster.u32 a, %0, %1;\n"
               "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [a];\n}" ::"r"(shared_address(b)),
               "r"(rank)
               : "memory");
}

__device__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

constexpr int STAGES = 8, STAGE = 16384;

/// One thread per SM keeps eight copies of 16 KB in flight. With CLUSTER = 2 the blocks of a pair each
/// load half of every piece and send it to both.
template <int CLUSTER>
__global__ void __launch_bounds__(32) bulk_kernel(const unsigned char *p, unsigned pieces, unsigned turns) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ uint64_t full[STAGES], empty[STAGES];
  unsigned rank = CLUSTER > 1 ? blockIdx.x % CLUSTER : 0;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) {
      barrier_init(full + s, 1);
      barrier_init(empty + s, CLUSTER);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();
  if (CLUSTER > 1) cluster_sync();
  if (threadIdx.x == 0) {
    for (unsigned turn = 0; turn < turns + STAGES; turn++) {
      int s = turn % STAGES;
      unsigned before = (turn / STAGES - 1) & 1;
      if (turn >= STAGES) {
        barrier_wait(full + s, before);
        if (CLUSTER > 1) {
          for (unsigned other = 0; other < CLUSTER; other++) barrier_arrive_at(empty + s, other);
          barrier_wait(empty + s, before);
        }
      }
      if (turn >= turns) continue;
      unsigned piece = (blockIdx.x / CLUSTER + turn * (gridDim.x / CLUSTER)) % pieces;
      barrier_expect(full + s, STAGE);
      constexpr int PART = STAGE / CLUSTER;
      uint32_t to = shared_address(shared + s * STAGE + rank * PART), at = shared_address(full + s);
      const unsigned char *from = p + size_t(piece) * STAGE + rank * PART;
      if constexpr (CLUSTER == 1) {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                     "l"(from), "r"(PART), "r"(at)
                     : "memory");
      } else {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
                     "[%0], [%1], %2, [%3], %4;" ::"r"(to),
                     "l"(from), "r"(PART), "r"(at), "h"((unsigned short)3)
                     : "memory");
      }
    }
  }
  __syncthreads();
  if (CLUSTER > 1) cluster_sync();
}

template <int CLUSTER>
static void bulk_run(int mb) {
  unsigned pieces = mb * 1000000u / STAGE, turns = 4000;
  unsigned char *p = allocate<unsigned char>(size_t(pieces) * STAGE);
  auto kernel = bulk_kernel<CLUSTER>;
  const int size = STAGES * STAGE;
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, size));
  cudaLaunchConfig_t config = {};
  unsigned blocks = device.multiProcessorCount / CLUSTER * CLUSTER;
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(32);
  config.dynamicSmemBytes = size;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = CLUSTER;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  double t = seconds([&] { CHECK(cudaLaunchKernelEx(&config, kernel, (const unsigned char *)p, pieces, turns)); });
  char note[64];
  snprintf(note, sizeof note, "%d MB by bulk copies%s", mb, CLUSTER > 1 ? " to two SMs each" : "");
  double arrived = double(blocks) * turns * STAGE;
  row("L2 to shared memory", arrived / t / 1e9, "GB/s", note);
  CHECK(cudaFree(p));
}

static void bulk() {
  for (int mb : {20, 40}) bulk_run<1>(mb);
}

static void multicast() {
  for (int mb : {20, 40}) bulk_run<2>(mb);
}

/// One thread per SM keeps `stages` boxes of a tensor in flight, or as many bytes in pieces one behind the other.
__global__ void __launch_bounds__(32) feed_kernel(const __grid_constant__ CUtensorMap map, const unsigned char *p, int bytes,
                                                  int piece, int stages, unsigned channels, unsigned width,
                                                  unsigned images, unsigned box_images, int before, unsigned turns) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ uint64_t full[STAGES];
  if (threadIdx.x != 0) return;
  for (int s = 0; s < stages; s++) barrier_init(full + s, 1);
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  int s = 0;
  unsigned parity = 1;
  for (unsigned turn = 0; turn < turns + stages; turn++) {
    if (turn >= stages) barrier_wait(full + s, parity);
    if (turn < turns) {
      uint32_t to = shared_address(shared + s * bytes), at = shared_address(full + s);
      barrier_expect(full + s, bytes);
      if (piece == 0) {
        unsigned c = turn * width % channels, n = (blockIdx.x + turn * width / channels) * box_images % images;
        asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
                     "l"(&map), "r"(at), "r"(c), "r"(n), "r"(-before), "r"(-before)
                     : "memory");
      } else {
        for (int i = 0; i < bytes; i += piece) {
          const unsigned char *from = p + (size_t(blockIdx.x % 4 + turn * 4) * bytes + i) % (size_t(8) << 20);
          asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to + i),
                       "l"(from), "r"(piece), "r"(at)
                       : "memory");
        }
      }
    }
    if (++s == stages) {
      s = 0;
      parity ^= 1;
    }
  }
}

/// Bytes that reach an SM in a clock, of boxes as convolutions load them and of pieces of weights.
static void feed() {
  CUresult (*encode)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *,
                     const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave, CUtensorMapSwizzle,
                     CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
  cudaDriverEntryPointQueryResult found;
  CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", reinterpret_cast<void **>(&encode), 12000,
                                         cudaEnableDefault, &found));
  CHECK(cudaFuncSetAttribute(feed_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 << 10));
  unsigned char *p = allocate<unsigned char>(size_t(32) << 20);
  auto run = [&](const char *what, int blocks, unsigned c, unsigned n, unsigned side, unsigned width, unsigned images, unsigned box,
                 int before, int piece) {
    CUtensorMap map = {};
    if (piece == 0) {
      cuuint64_t sizes[] = {c, n, side, side}, strides[] = {2ull * side * side * c, 2ull * c, 2ull * side * c};
      cuuint32_t boxes[] = {width, images, box, box}, ones[] = {1, 1, 1, 1};
      if (encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, p, sizes, strides, boxes, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                 width == 32 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS) {
        row(what, 0, "refused");
        return;
      }
    }
    int bytes = piece ? 12288 : width * 2 * images * box * box, stages = std::min(STAGES, (192 << 10) / bytes);
    stages = std::min(stages, piece ? 8 : 3);
    unsigned turns = unsigned((64u << 20) / bytes);
    double t = seconds([&] {
      feed_kernel<<<blocks, 32, stages * ((bytes + 1023) / 1024 * 1024), stream>>>(map, p, bytes, piece, stages, c, width, n, images, before, turns);
    });
    char note[96];
    snprintf(note, sizeof note, "%s; %d SMs; %d x %d bytes in flight", what, blocks, stages, bytes);
    row("fed to an SM", double(bytes) * turns / t / 1e9, "GB/s", note);
  };
  for (int blocks : {1, 16, 132}) {
    run("16 images 4x4 of 32 channels", blocks, 512, 128, 4, 32, 16, 4, 0, 0);
    run("16 images 4x4 of 64 channels", blocks, 512, 128, 4, 64, 16, 4, 0, 0);
    run("8 images 4x4 of 64 channels", blocks, 512, 128, 4, 64, 8, 4, 0, 0);
    run("64 images 2x2 of 32 channels", blocks, 512, 128, 2, 32, 64, 2, 0, 0);
    run("64 images 2x2 of 64 channels", blocks, 512, 128, 2, 64, 64, 2, 0, 0);
    run("1 image 16x16 of 32 channels with border", blocks, 128, 128, 16, 32, 1, 18, 1, 0);
    run("1 image 16x16 of 64 channels with border", blocks, 128, 128, 16, 64, 1, 18, 1, 0);
    run("4 images 8x8 of 32 channels with border", blocks, 256, 128, 8, 32, 4, 10, 1, 0);
    run("4 images 8x8 of 64 channels with border", blocks, 256, 128, 8, 64, 4, 10, 1, 0);
    run("pieces of 1 KB", blocks, 0, 0, 0, 0, 0, 0, 0, 1024);
    run("pieces of 4 KB", blocks, 0, 0, 0, 0, 0, 0, 0, 4096);
    run("pieces of 12 KB", blocks, 0, 0, 0, 0, 0, 0, 0, 12288);
  }
  CHECK(cudaFree(p));
}

// ---- instruction rates -----------------------------------------------------------------------------------

struct Mufu {
  static __device__ void step(uint32_t &x, uint64_t &) {
    asm volatile("ex2.approx.ftz.f32 %0, %0;" : "+f"(reinterpret_cast<float &>(x)));
  }
};
struct ImadWide {
  static __device__ void step(uint32_t &x, uint64_t &wide) {
    // Both halves go on, crosswise, at the price of a LOP3, which another pipe runs.
    asm volatile("mul.wide.u32 %0, %1, 0xD2511F53;" : "=l"(wide) : "r"(x));
    x = uint32_t(wide) ^ uint32_t(wide >> 32);
  }
};
struct Lop3 {
  static __device__ void step(uint32_t &x, uint64_t &wide) {
    asm volatile("lop3.b32 %0, %0, %1, 0x12345, 0x96;" : "+r"(x) : "r"(uint32_t(wide)));
  }
};
struct IntToFloat {
  static __device__ void step(uint32_t &x, uint64_t &) {
    float y;
    asm volatile("cvt.rn.f32.u32 %0, %1;" : "=f"(y) : "r"(x));
    x = __float_as_uint(y);
  }
};
struct Ffma {
  static __device__ void step(uint32_t &x, uint64_t &) {
    asm volatile("fma.rn.f32 %0, %0, %0, %0;" : "+f"(reinterpret_cast<float &>(x)));
  }
};

/// Eight independent chains in each of 1024 threads.
template <class Op>
__global__ void __launch_bounds__(1024) rate_kernel(long long *cycles, uint32_t *sink, int rounds) {
  uint32_t x[8];
  uint64_t wide[8];
  for (int j = 0; j < 8; j++) wide[j] = x[j] = threadIdx.x * 8 + j;
  __syncthreads();
  long long start = clock64();
  for (int i = 0; i < rounds; i++) {
#pragma unroll
    for (int k = 0; k < 8; k++)
#pragma unroll
      for (int j = 0; j < 8; j++) Op::step(x[j], wide[j]);
  }
  __syncthreads();
  long long end = clock64();
  uint32_t sum = 0;
  for (int j = 0; j < 8; j++) sum += x[j] + uint32_t(wide[j]);
  if (sum == 0x12345) *sink = sum;
  if (threadIdx.x == 0 && blockIdx.x == 0) *cycles = end - start;
}

template <class Op>
static void rate(const char *name) {
  long long *cycles = allocate<long long>(1), found;
  uint32_t *sink = allocate<uint32_t>(1);
  const int rounds = 512;
  seconds([&] { rate_kernel<Op><<<device.multiProcessorCount, 1024, 0, stream>>>(cycles, sink, rounds); });
  CHECK(cudaMemcpy(&found, cycles, sizeof found, cudaMemcpyDeviceToHost));
  row(name, 1024.0 * 64 * rounds / found, "per clock and SM");
  CHECK(cudaFree(cycles));
  CHECK(cudaFree(sink));
}

static void instructions() {
  rate<Mufu>("MUFU (ex2)");
  rate<ImadWide>("IMAD.WIDE with a LOP3 each");
  rate<Lop3>("LOP3");
  rate<IntToFloat>("I2FP");
  rate<Ffma>("FFMA");
}

// ---- normals ---------------------------------------------------------------------------------------------

/// Eight normals: Philox4x32-10, radius from 20 bits, angle from 12. Their sum, so that nothing is stored.
__device__ float eight_normals(uint32_t block, uint32_t row, uint32_t k0, uint32_t k1) {
  uint32_t c[4] = {block, row, 1, 0};
#pragma unroll
  for (int round = 0; round < 10; round++) {
    uint64_t a = uint64_t(c[0]) * 0xD2511F53u, b = uint64_t(c[2]) * 0xCD9E8D57u;
    c[0] = uint32_t(b >> 32) ^ c[1] ^ k0;
    c[1] = uint32_t(b);
    c[2] = uint32_t(a >> 32) ^ c[3] ^ k1;
    c[3] = uint32_t(a);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  float sum = 0;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    float u = (float(c[j] >> 12) + 0.5f) * 0x1p-20f, angle = (float(c[j] & 4095) + 0.5f) * (6.2831853f / 4096), r;
    asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(-1.3862944f * __log2f(u)));
    sum = fmaf(r, __cosf(angle), sum);
    sum = fmaf(r, __sinf(angle), sum);
  }
  return sum;
}

__global__ void __launch_bounds__(256) normals_kernel(float *sink, int rounds) {
  uint32_t first = (blockIdx.x * blockDim.x + threadIdx.x) * rounds;
  float sum = 0;
#pragma unroll 2
  for (int i = 0; i < rounds; i++) sum += eight_normals(first + i, 0, 1, 2);
  if (sum == 12345.0f) *sink = sum;
}

static void normals() {
  float *sink = allocate<float>(1);
  const int blocks = device.multiProcessorCount * 8, rounds = 512;
  double t = seconds([&] { normals_kernel<<<blocks, 256, 0, stream>>>(sink, rounds); });
  row("normals", blocks * 256.0 * rounds * 8 / t / 1e9, "G/s", "Philox4x32-10 and Box-Muller; kept in registers");
  CHECK(cudaFree(sink));
}

// ---- tensor cores ----------------------------------------------------------------------------------------

__global__ void __launch_bounds__(512) mma_kernel(float *sink, int rounds) {
  uint32_t a[4], b[2];
  float d[8][4] = {};
  // Random signs and mantissas: zeros would draw less power.
  for (int j = 0; j < 4; j++) a[j] = ((threadIdx.x * 4 + j) * 0x9E3779B9u & 0x80FF80FF) | 0x3F003F00;
  for (int j = 0; j < 2; j++) b[j] = ((threadIdx.x * 2 + j) * 0xBB67AE85u & 0x80FF80FF) | 0x3F003F00;
  for (int i = 0; i < rounds; i++)
#pragma unroll
    for (int j = 0; j < 8; j++)
      asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                   : "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  float sum = 0;
  for (int j = 0; j < 8; j++) sum += d[j][0] + d[j][1] + d[j][2] + d[j][3];
  if (sum == 12345.0f) *sink = sum;
}

static void mma() {
  float *sink = allocate<float>(1);
  const int rounds = 2048;
  double t = seconds([&] { mma_kernel<<<device.multiProcessorCount, 512, 0, stream>>>(sink, rounds); });
  row("mma.sync m16n8k16", device.multiProcessorCount * 16.0 * rounds * 8 * 2 * 16 * 8 * 16 / t / 1e12, "TFLOP/s", "bf16; operands in registers");
  CHECK(cudaFree(sink));
}

#define R0 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15," \
           "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define R1 "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47," \
           "%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define R2 "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79," \
           "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define R3 "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111," \
           "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define D8(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define D32(i) D8(i), D8(i + 8), D8(i + 16), D8(i + 24)
#define WGMMA(n, list, a, b) "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 {" list "}, " a ", " b ", 1, 1, 1, 0, 0;"

template <int N>
__device__ void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b) {
  if constexpr (N == 64) asm volatile(WGMMA(64, R0, "%32", "%33") : D32(0) : "l"(a), "l"(b));
  if constexpr (N == 128) asm volatile(WGMMA(128, R0 "," R1, "%64", "%65") : D32(0), D32(32) : "l"(a), "l"(b));
  if constexpr (N == 256)
    asm volatile(WGMMA(256, R0 "," R1 "," R2 "," R3, "%128", "%129") : D32(0), D32(32), D32(64), D32(96) : "l"(a), "l"(b));
}

/// A tile of rows of 128 bytes, K innermost, swizzled by 128 bytes.
__device__ uint64_t descriptor(const void *p) {
  return uint64_t((shared_address(p) & 0x3FFFF) >> 4) | uint64_t(1) << 16 | uint64_t(64) << 32 | uint64_t(1) << 62;
}

/// Two warpgroups multiply; with NOISE a third draws normals until they are done.
template <int N, bool NOISE>
__global__ void __launch_bounds__(NOISE ? 384 : 256, 1) wgmma_kernel(unsigned long long *drawn, long long *cycles, float *sink, int rounds) {
  extern __shared__ __align__(1024) unsigned char shared[];
  __shared__ volatile int done;
  uint32_t *words = reinterpret_cast<uint32_t *>(shared);
  constexpr int BYTES = 2 * 64 * 128 + N * 128;
  for (int i = threadIdx.x; i < BYTES / 4; i += blockDim.x) words[i] = (i * 0x9E3779B9u & 0x80FF80FF) | 0x3C003C00;
  if (threadIdx.x == 0) done = 0;
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  __syncthreads();
  int group = threadIdx.x / 128;
  float sum = 0;
  long long start = clock64();
  if (group < 2) {
    float d[N / 2] = {};
    uint64_t a = descriptor(shared + group * 64 * 128), b = descriptor(shared + 2 * 64 * 128);
    for (int i = 0; i < rounds; i++) {
      asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
      for (int k = 0; k < 4; k++) wgmma<N>(d, a + k * 2, b + k * 2);
      asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;" ::: "memory");
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    for (int j = 0; j < N / 2; j++) sum += d[j];
    if (threadIdx.x == 0) {
      done = 1;
      if (blockIdx.x == 0) *cycles = clock64() - start;
    }
  } else {
    unsigned count = 0;
    while (!done) {
#pragma unroll 1
      for (int i = 0; i < 16; i++) sum += eight_normals(count++, threadIdx.x, 1, 2);
    }
    atomicAdd(drawn, 8ull * count);
  }
  if (sum == 12345.0f) *sink = sum;
}

template <int N, bool NOISE>
static void wgmma_run() {
  unsigned long long *drawn = allocate<unsigned long long>(1), count;
  long long *cycles = allocate<long long>(1), clocks;
  float *sink = allocate<float>(1);
  auto kernel = wgmma_kernel<N, NOISE>;
  const int size = 2 * 64 * 128 + N * 128, rounds = 1 << 20 >> (N == 256 ? 7 : N == 128 ? 6 : 5);
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, size));
  double t = seconds([&] {
    CHECK(cudaMemsetAsync(drawn, 0, sizeof *drawn, stream));
    kernel<<<device.multiProcessorCount, NOISE ? 384 : 256, size, stream>>>(drawn, cycles, sink, rounds);
  });
  CHECK(cudaMemcpy(&count, drawn, sizeof count, cudaMemcpyDeviceToHost));
  CHECK(cudaMemcpy(&clocks, cycles, sizeof clocks, cudaMemcpyDeviceToHost));
  char name[64], note[96];
  snprintf(name, sizeof name, "wgmma m64n%dk16%s", N, NOISE ? " beside normals" : "");
  snprintf(note, sizeof note, "bf16; both operands in shared memory; at %.2f GHz", clocks / t / 1e9);
  row(name, device.multiProcessorCount * 2.0 * rounds * 4 * 2 * 64 * N * 16 / t / 1e12, "TFLOP/s", note);
  if (NOISE) row("normals beside wgmma", count / t / 1e9, "G/s", "by 128 threads of an SM");
  CHECK(cudaFree(drawn));
  CHECK(cudaFree(cycles));
  CHECK(cudaFree(sink));
}

static void wgmma_rates() {
  wgmma_run<64, false>();
  wgmma_run<128, false>();
  wgmma_run<256, false>();
  wgmma_run<256, true>();
}

// ---- launches --------------------------------------------------------------------------------------------

__global__ void nothing_kernel() {}
__global__ void nothing_dependent_kernel() {
  asm volatile("griddepcontrol.launch_dependents;\ngriddepcontrol.wait;" ::: "memory");
}

static void launches() {
  const int n = 1000;
  double t = seconds([&] {
    for (int i = 0; i < n; i++) nothing_kernel<<<1, 32, 0, stream>>>();
  });
  row("launch", t / n * 1e6, "us", "empty kernels in one stream");

  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(1);
  config.blockDim = dim3(32);
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = 1;
  auto dependent = [&] {
    for (int i = 0; i < n; i++) CHECK(cudaLaunchKernelEx(&config, nothing_dependent_kernel));
  };
  row("programmatic dependent launch", seconds(dependent) / n * 1e6, "us", "the same");

  for (bool programmatic : {false, true}) {
    cudaGraph_t graph;
    cudaGraphExec_t executable;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    if (programmatic) dependent();
    else
      for (int i = 0; i < n; i++) nothing_kernel<<<1, 32, 0, stream>>>();
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&executable, graph, 0));
    t = seconds([&] { CHECK(cudaGraphLaunch(executable, stream)); });
    row(programmatic ? "graph node after programmatic edge" : "graph node", t / n * 1e6, "us", "empty kernels in a chain");
    CHECK(cudaGraphExecDestroy(executable));
    CHECK(cudaGraphDestroy(graph));
  }
}

// ---- all of them -----------------------------------------------------------------------------------------

static const struct {
  const char *name;
  void (*run)();
} PROBES[] = {
    {"memory", memory},   {"l2", l2},     {"instructions", instructions},
    {"normals", normals}, {"mma", mma},   {"launches", launches},
    {"wgmma", wgmma_rates}, {"bulk", bulk}, {"multicast", multicast}, {"feed", feed},
};

int main(int argc, char **argv) {
  if (argc == 2 && !strcmp(argv[1], "--list")) {
    for (auto &probe : PROBES) puts(probe.name);
    return 0;
  }
  CHECK(cudaGetDeviceProperties(&device, 0));
  if (device.major != 9 || device.minor != 0) {
    fprintf(stderr, "probes: compute capability %d.%d; this program is for 9.0\n", device.major, device.minor);
    return 1;
  }
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  for (int i = 1; i < argc; i++) {
    auto named = [&](auto &probe) { return !strcmp(probe.name, argv[i]); };
    if (!std::any_of(std::begin(PROBES), std::end(PROBES), named)) {
      fprintf(stderr, "probes: no probe '%s'\n", argv[i]);
      return 2;
    }
  }
  for (auto &probe : PROBES) {
    auto named = [&](const char *argument) { return !strcmp(probe.name, argument); };
    if (argc == 1 || std::any_of(argv + 1, argv + argc, named)) probe.run();
  }
  return 0;
}
