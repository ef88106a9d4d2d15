// The second half of gpu.cuh: what only compute capability 9.0 and up has. Kernel files include gpu.cuh.
#pragma once

namespace gpu {

#if __CUDA_ARCH__ >= 900
// ---- stmatrix: the inverse of ldmatrix ----------------------------------------------------------------------

template <int X, bool TRANS = false>
GPU_FN void stmatrix(void *row, const uint32_t (&r)[X]) {
  static_assert(X == 1 || X == 2 || X == 4, "stmatrix stores 1, 2 or 4 matrices");
  uint32_t a = shared_u32(row);
  if constexpr (X == 4 && !TRANS)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3]) : "memory");
  if constexpr (X == 4 && TRANS)
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(a), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
  if constexpr (X == 2 && !TRANS)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%0], {%1,%2};" ::"r"(a), "r"(r[0]), "r"(r[1]) : "memory");
  if constexpr (X == 2 && TRANS)
    asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1,%2};" ::"r"(a), "r"(r[0]), "r"(r[1])
                 : "memory");
  if constexpr (X == 1 && !TRANS)
    asm volatile("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%0], {%1};" ::"r"(a), "r"(r[0]) : "memory");
  if constexpr (X == 1 && TRANS)
    asm volatile("stmatrix.sync.aligned.m8n8.x1.trans.shared.b16 [%0], {%1};" ::"r"(a), "r"(r[0]) : "memory");
}

// ---- mbarrier: counts arrivals and bytes; phases alternate in parity, the first is 0 ---------------------------

GPU_FN void mbar_init(uint64_t *b, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_u32(b)), "r"(arrivals) : "memory");
}
/// After the initialisations, before the barrier that makes them known to the other threads.
GPU_FN void mbar_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
GPU_FN void mbar_arrive(uint64_t *b) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_u32(b)) : "memory");
}
/// Arrives and tells the phase to wait for so many bytes of TMA.
GPU_FN void mbar_arrive_expect(uint64_t *b, unsigned bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_u32(b)), "r"(bytes) : "memory");
}
/// The bytes alone.
GPU_FN void mbar_expect(uint64_t *b, unsigned bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_u32(b)), "r"(bytes) : "memory");
}
/// Whether the phase of this parity is complete; may wait for a while.
GPU_FN bool mbar_try_wait(uint64_t *b, unsigned parity) {
  uint32_t done;
  asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}"
               : "=r"(done) : "r"(shared_u32(b)), "r"(parity) : "memory");
  return done;
}
/// Waits until it is.
GPU_FN void mbar_wait(uint64_t *b, unsigned parity) {
  while (!mbar_try_wait(b, parity)) {
  }
}
/// The same for a whole warp, whose lanes go on together: behind a loop that they may leave one by one, nvcc takes
/// every shuffle apart.
GPU_FN void mbar_wait_warp(uint64_t *b, unsigned parity) {
  while (!__all_sync(0xffffffffu, mbar_try_wait(b, parity))) {
  }
}

// ---- clusters -----------------------------------------------------------------------------------------------

GPU_FN unsigned cluster_rank() {
  unsigned r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
GPU_FN unsigned cluster_size() {
  unsigned r;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(r));
  return r;
}
GPU_FN void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
GPU_FN void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
GPU_FN void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}
/// Where the variable at p of this block lies in block `rank` of the cluster.
template <class T>
GPU_FN T *cluster_map(T *p, unsigned rank) {
  uint64_t r;
  asm("mapa.u64 %0, %1, %2;" : "=l"(r) : "l"(p), "r"(rank));
  return reinterpret_cast<T *>(r);
}
/// mbar_arrive on the barrier of another block.
GPU_FN void mbar_arrive_remote(uint64_t *b, unsigned rank) {
  asm volatile("{\n.reg .b32 a;\nmapa.shared::cluster.u32 a, %0, %1;\n"
               "mbarrier.arrive.release.cluster.shared::cluster.b64 _, [a];\n}" ::"r"(shared_u32(b)), "r"(rank)
               : "memory");
}

// ---- TMA ----------------------------------------------------------------------------------------------------

/// Makes what this thread knows to be in shared memory visible to TMA and wgmma.
GPU_FN void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
GPU_FN void tma_prefetch_map(const CUtensorMap *m) { asm volatile("prefetch.tensormap [%0];" ::"l"(m) : "memory"); }

// tma_load_Nd(s, map, barrier, c0, ...): the tile at these coordinates, innermost first, to s (128-byte aligned); its
// bytes count at the barrier. tma_load_multicast_Nd: to the same place in each block of the mask. tma_store_Nd(map,
// s, c0, ...): back; see bulk_commit.
#define GPU_TMA_LOAD(RANK, MODE, SUFFIX, TAIL, TEXT, PARAMETERS, ...)                                         \
  GPU_FN void tma_load_##SUFFIX(void *s, const CUtensorMap *m, uint64_t *b, PARAMETERS) {                     \
    asm volatile("cp.async.bulk.tensor." RANK ".shared::cluster.global" MODE                                  \
                 ".mbarrier::complete_tx::bytes" TAIL " [%0], [%1, " TEXT ::"r"(shared_u32(s)),               \
                 "l"(m), "r"(shared_u32(b)), __VA_ARGS__ : "memory");                                         \
  }
#define GPU_TMA_STORE(RANK, SUFFIX, TEXT, PARAMETERS, ...)                                                    \
  GPU_FN void tma_store_##SUFFIX(const CUtensorMap *m, const void *s, PARAMETERS) {                           \
    asm volatile("cp.async.bulk.tensor." RANK ".global.shared::cta.tile.bulk_group [%1, {" TEXT "}], [%0];"   \
                 ::"r"(shared_u32(s)), "l"(m), __VA_ARGS__ : "memory");                                       \
  }
#define GPU_C1 int c0
#define GPU_C2 GPU_C1, int c1
#define GPU_C3 GPU_C2, int c2
#define GPU_C4 GPU_C3, int c3
#define GPU_C5 GPU_C4, int c4
#define GPU_V1 "r"(c0)
#define GPU_V2 GPU_V1, "r"(c1)
#define GPU_V3 GPU_V2, "r"(c2)
#define GPU_V4 GPU_V3, "r"(c3)
#define GPU_V5 GPU_V4, "r"(c4)
#define GPU_TMA(N, AT, AT_STORE, MASK)                                                                        \
  GPU_TMA_LOAD(#N "d", "", N##d, "", "{" AT "}], [%2];", GPU_C##N, GPU_V##N)                                  \
  GPU_TMA_LOAD(#N "d", "", multicast_##N##d, ".multicast::cluster", "{" AT "}], [%2], " MASK ";",             \
               uint16_t blocks GPU_COMMA GPU_C##N, GPU_V##N, "h"(blocks))                                     \
  GPU_TMA_STORE(#N "d", N##d, AT_STORE, GPU_C##N, GPU_V##N)
#define GPU_COMMA ,
GPU_TMA(1, "%3", "%2", "%4")
GPU_TMA(2, "%3, %4", "%2, %3", "%5")
GPU_TMA(3, "%3, %4, %5", "%2, %3, %4", "%6")
GPU_TMA(4, "%3, %4, %5, %6", "%2, %3, %4, %5", "%7")
GPU_TMA(5, "%3, %4, %5, %6, %7", "%2, %3, %4, %5, %6", "%8")
// tma_load_im2col_Nd: a column of pixels from base pixel (w, h, d) of image n on, each moved by (dw, dh, dd).
GPU_TMA_LOAD("3d", ".im2col", im2col_3d, "", "{%3, %4, %5}], [%2], {%6};",
             int c GPU_COMMA int w GPU_COMMA int n GPU_COMMA uint16_t dw, "r"(c), "r"(w), "r"(n), "h"(dw))
GPU_TMA_LOAD("4d", ".im2col", im2col_4d, "", "{%3, %4, %5, %6}], [%2], {%7, %8};",
             int c GPU_COMMA int w GPU_COMMA int h GPU_COMMA int n GPU_COMMA uint16_t dw GPU_COMMA uint16_t dh, "r"(c),
             "r"(w), "r"(h), "r"(n), "h"(dw), "h"(dh))
GPU_TMA_LOAD("5d", ".im2col", im2col_5d, "", "{%3, %4, %5, %6, %7}], [%2], {%8, %9, %10};",
             int c GPU_COMMA int w GPU_COMMA int h GPU_COMMA int d GPU_COMMA int n GPU_COMMA uint16_t dw GPU_COMMA
                 uint16_t dh GPU_COMMA uint16_t dd,
             "r"(c), "r"(w), "r"(h), "r"(d), "r"(n), "h"(dw), "h"(dh), "h"(dd))

/// `bytes` (a multiple of 16) from global to shared memory, both 16-byte aligned; they count at the barrier.
GPU_FN void bulk_load(void *s, const void *g, uint32_t bytes, uint64_t *b) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_u32(s)),
               "l"(g), "r"(bytes), "r"(shared_u32(b)) : "memory");
}

/// Ends a group of stores.
GPU_FN void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Waits until at most N of this thread's groups of stores are not complete ...
template <int N>
GPU_FN void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}
/// ... or still read shared memory.
template <int N>
GPU_FN void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(N) : "memory");
}
#endif // __CUDA_ARCH__ >= 900

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// ---- wgmma: 64 x N x 32 bytes, by a warpgroup; see matrix_descriptor ------------------------------------------

template <int N>
GPU_FN void setmaxnreg_inc() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
GPU_FN void setmaxnreg_dec() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
GPU_FN void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
GPU_FN void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int N>
GPU_FN void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// The N / 2 accumulators of a thread, as operands and as constraints. The emulator has every multiple of 8 for N.
#define GPU_REGS_4 "%0,%1,%2,%3"
#define GPU_REGS_8 GPU_REGS_4 ",%4,%5,%6,%7"
#define GPU_REGS_16 GPU_REGS_8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define GPU_REGS_32 GPU_REGS_16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define GPU_REGS_48 GPU_REGS_32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define GPU_REGS_64 GPU_REGS_48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define GPU_REGS_96 GPU_REGS_64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,"\
  "%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95"
#define GPU_REGS_128 GPU_REGS_96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,"\
  "%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"
#define GPU_ACCS_4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define GPU_ACCS_8 GPU_ACCS_4, "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
#define GPU_ACCS_16 GPU_ACCS_8, "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])
#define GPU_ACCS_32 GPU_ACCS_16, "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), \
  "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define GPU_ACCS_48 GPU_ACCS_32, "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), \
  "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
#define GPU_ACCS_64 GPU_ACCS_48, "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), \
  "+f"(d[56]), "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define GPU_ACCS_96 GPU_ACCS_64, "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), \
  "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), \
  "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), \
  "+f"(d[88]), "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95])
#define GPU_ACCS_128 GPU_ACCS_96, "+f"(d[96]), "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), \
  "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), \
  "+f"(d[112]), "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), \
  "+f"(d[120]), "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
#define GPU_WGMMA_SIZES(FORM, TYPES) \
  FORM(8, GPU_REGS_4, GPU_ACCS_4, 4, 5, 6, 7, 8, 9, 10, TYPES) \
  FORM(16, GPU_REGS_8, GPU_ACCS_8, 8, 9, 10, 11, 12, 13, 14, TYPES) \
  FORM(32, GPU_REGS_16, GPU_ACCS_16, 16, 17, 18, 19, 20, 21, 22, TYPES) \
  FORM(64, GPU_REGS_32, GPU_ACCS_32, 32, 33, 34, 35, 36, 37, 38, TYPES) \
  FORM(96, GPU_REGS_48, GPU_ACCS_48, 48, 49, 50, 51, 52, 53, 54, TYPES) \
  FORM(128, GPU_REGS_64, GPU_ACCS_64, 64, 65, 66, 67, 68, 69, 70, TYPES) \
  FORM(192, GPU_REGS_96, GPU_ACCS_96, 96, 97, 98, 99, 100, 101, 102, TYPES) \
  FORM(256, GPU_REGS_128, GPU_ACCS_128, 128, 129, 130, 131, 132, 133, 134, TYPES)

#define GPU_WGMMA_BEGIN(N, P) "{\n.reg .pred p;\nsetp.ne.b32 p, %" #P ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N
#define GPU_WGMMA_SS(N, REGS, ACCS, A, B, P, TA, TB, X, Y, TYPES)                                             \
  if constexpr (SIZE == N)                                                                                    \
    asm volatile(GPU_WGMMA_BEGIN(N, P) "k16.f32." TYPES " {" REGS "}, %" #A ", %" #B ", p, 1, 1, %" #TA ", %" #TB ";\n}" \
                 : ACCS : "l"(a), "l"(b), "r"(int(accumulate)), "n"(int(TRANS_A)), "n"(int(TRANS_B)));
#define GPU_WGMMA_RS(N, REGS, ACCS, A0, A1, A2, A3, B, P, TB, TYPES)                                          \
  if constexpr (SIZE == N)                                                                                    \
    asm volatile(GPU_WGMMA_BEGIN(N, P) "k16.f32." TYPES " {" REGS "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B \
                 ", p, 1, 1, %" #TB ";\n}"                                                                    \
                 : ACCS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)), "n"(int(TRANS_B)));
#define GPU_WGMMA_TF32_SS(N, REGS, ACCS, A, B, P, X, Y, Z, V, TYPES)                                          \
  if constexpr (SIZE == N)                                                                                    \
    asm volatile(GPU_WGMMA_BEGIN(N, P) "k8.f32." TYPES " {" REGS "}, %" #A ", %" #B ", p, 1, 1;\n}"           \
                 : ACCS : "l"(a), "l"(b), "r"(int(accumulate)));
#define GPU_WGMMA_TF32_RS(N, REGS, ACCS, A0, A1, A2, A3, B, P, X, TYPES)                                      \
  if constexpr (SIZE == N)                                                                                    \
    asm volatile(GPU_WGMMA_BEGIN(N, P) "k8.f32." TYPES " {" REGS "}, {%" #A0 ", %" #A1 ", %" #A2 ", %" #A3 "}, %" #B \
                 ", p, 1, 1;\n}"                                                                              \
                 : ACCS : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)));

template <int N>
constexpr bool wgmma_size = N == 8 || N == 16 || N == 32 || N == 64 || N == 96 || N == 128 || N == 192 || N == 256;

/// D = A B (+ D if accumulate), A and B in shared memory; a transposed one is contiguous along M or N, not along K.
template <int SIZE, bool TRANS_A = false, bool TRANS_B = false>
GPU_FN void wgmma_bf16(float (&d)[SIZE / 2], uint64_t a, uint64_t b, bool accumulate = true) {
  static_assert(wgmma_size<SIZE>, "add the size to GPU_WGMMA_SIZES");
  GPU_WGMMA_SIZES(GPU_WGMMA_SS, "bf16.bf16")
}
template <int SIZE, bool TRANS_A = false, bool TRANS_B = false>
GPU_FN void wgmma_f16(float (&d)[SIZE / 2], uint64_t a, uint64_t b, bool accumulate = true) {
  static_assert(wgmma_size<SIZE>, "add the size to GPU_WGMMA_SIZES");
  GPU_WGMMA_SIZES(GPU_WGMMA_SS, "f16.f16")
}
/// A from registers, laid out as for mma_bf16: each warp brings its own 16 rows.
template <int SIZE, bool TRANS_B = false>
GPU_FN void wgmma_bf16(float (&d)[SIZE / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true) {
  static_assert(wgmma_size<SIZE>, "add the size to GPU_WGMMA_SIZES");
  GPU_WGMMA_SIZES(GPU_WGMMA_RS, "bf16.bf16")
}
template <int SIZE, bool TRANS_B = false>
GPU_FN void wgmma_f16(float (&d)[SIZE / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true) {
  static_assert(wgmma_size<SIZE>, "add the size to GPU_WGMMA_SIZES");
  GPU_WGMMA_SIZES(GPU_WGMMA_RS, "f16.f16")
}
/// tf32: both operands along K.
template <int SIZE>
GPU_FN void wgmma_tf32(float (&d)[SIZE / 2], uint64_t a, uint64_t b, bool accumulate = true) {
  static_assert(wgmma_size<SIZE>, "add the size to GPU_WGMMA_SIZES");
  GPU_WGMMA_SIZES(GPU_WGMMA_TF32_SS, "tf32.tf32")
}
template <int SIZE>
GPU_FN void wgmma_tf32(float (&d)[SIZE / 2], const uint32_t (&a)[4], uint64_t b, bool accumulate = true) {
  static_assert(wgmma_size<SIZE>, "add the size to GPU_WGMMA_SIZES");
  GPU_WGMMA_SIZES(GPU_WGMMA_TF32_RS, "tf32.tf32")
}
#endif // __CUDA_ARCH_FEAT_SM90_ALL

} // namespace gpu
