// wgmma.mma_async: four warps multiply a 64xK tile by a KxN tile in the background; K is 32 bytes of elements. B, and
// A unless it comes from registers, are described by 64-bit descriptors of shared memory. Each warp owns 16 rows, so a
// collective of each warp is enough. Early, the product is done at once; late, at the wait, and the accumulators are
// NaN until then.
#include "checker.h"
#include "gpu.h"
#include "tensor_core.h"
#include "tensor_map.h"

namespace emu {

namespace {
struct Operands {
  float *d;
  const uint32_t *a; // registers; null: descriptor_a
  Wgmma w;
};

struct Product {
  Wgmma w;
  bool a_in_registers, chained; // chained: an earlier product in flight writes the same accumulators
  float *d[32];
  uint32_t a[32][4];
  std::vector<float> c; // accumulators when it was asked for, lane by lane
  Clock known;
  Site site;
};
} // namespace

/// Committed groups of a warp, oldest first; the last one is still open.
struct WgmmaGroups {
  std::vector<std::vector<Product>> groups;
};

// ---- operands in shared memory ------------------------------------------------------------------------------

// The byte offset of the 16-byte piece that holds element (row, 0) and 16-byte column `piece` of a matrix whose rows
// (of A: M, of B: N) are contiguous along K.
static uint32_t piece_along_k(uint64_t descriptor, int row, int piece) {
  uint32_t leading = uint32_t(descriptor >> 16 & 0x3fff) << 4, stride = uint32_t(descriptor >> 32 & 0x3fff) << 4;
  int mode = int(descriptor >> 62);
  // Rows of 8-row groups follow one another at the width of the swizzle; without one, at 16 bytes, and the pieces of
  // a row lie `leading` bytes apart.
  uint32_t width = mode == 0 ? 16 : mode == 1 ? 128 : mode == 2 ? 64 : 32;
  return uint32_t(row / 8) * stride + uint32_t(row % 8) * width + uint32_t(piece) * (mode == 0 ? leading : 16);
}

// The same for a 16-bit matrix that is contiguous along M (or N): the piece of 8 rows from `row` at depth k.
static uint32_t piece_along_m(uint64_t descriptor, int row, int k) {
  uint32_t leading = uint32_t(descriptor >> 16 & 0x3fff) << 4, stride = uint32_t(descriptor >> 32 & 0x3fff) << 4;
  int mode = int(descriptor >> 62);
  if (mode == 0) return uint32_t(row / 8) * stride + uint32_t(k % 8) * 16 + uint32_t(k / 8) * leading;
  int pieces = mode == 1 ? 8 : mode == 2 ? 4 : 2; // in the width of the swizzle
  return uint32_t(row / 8 % pieces) * 16 + uint32_t(row / 8 / pieces) * leading +
         uint32_t(k % 8) * uint32_t(pieces) * 16 + uint32_t(k / 8) * stride;
}

static void read_piece(uint64_t descriptor, uint32_t offset, void *out, const Product &p) {
  static const unsigned swizzles[] = {0, 3, 2, 1}; // the descriptor's modes: none, 128, 64, 32 bytes
  uint32_t address = swizzled((uint32_t(descriptor & 0x3fff) << 4) + offset, swizzles[descriptor >> 62]);
  const char *piece = shared_pointer(address, 16);
  if (checking) {
    Checker &checker = *cluster->checker;
    unsigned me = self()->number;
    checker.read_as(piece, 16, p.known.data(), me, checker.row(me)[me], Access::Engine, Where{p.site});
  }
  memcpy(out, piece, 16);
}

// rows x depth, row by row.
static void read_matrix(double *out, uint64_t descriptor, bool transposed, int first_row, int rows, const Product &p) {
  int depth = p.w.type == Element::TF32 ? 8 : 16;
  if (transposed) {
    for (int k = 0; k < depth; k++)
      for (int r = 0; r < rows; r += 8) {
        uint16_t v[8];
        read_piece(descriptor, piece_along_m(descriptor, first_row + r, k), v, p);
        for (int i = 0; i < 8; i++) out[(r + i) * depth + k] = element_value(v[i], p.w.type);
      }
    return;
  }
  for (int r = 0; r < rows; r++)
    for (int q = 0; q < 2; q++) {
      uint32_t words[4];
      read_piece(descriptor, piece_along_k(descriptor, first_row + r, q), words, p);
      double *at = out + r * depth + q * depth / 2;
      for (int i = 0; i < 4; i++) {
        if (p.w.type == Element::TF32) {
          at[i] = __uint_as_float(words[i] & ~0x1fffu);
        } else {
          at[2 * i] = element_value(uint16_t(words[i]), p.w.type);
          at[2 * i + 1] = element_value(uint16_t(words[i] >> 16), p.w.type);
        }
      }
    }
}

// ---- the product --------------------------------------------------------------------------------------------

// Accumulator i of a lane is this element of the warp's 16 x N tile.
static int place(int lane, int i, int n) {
  int row = lane / 4 + 8 * (i >> 1 & 1), column = (i >> 2) * 8 + lane % 4 * 2 + (i & 1);
  return row * n + column;
}

static void execute(Product &p, unsigned warp) {
  int n = p.w.n, depth = p.w.type == Element::TF32 ? 8 : 16;
  std::vector<double> a(size_t(16 * depth)), b_rows(size_t(n * depth)), b(size_t(n * depth)), c(size_t(16 * n));
  if (p.a_in_registers) {
    if (p.w.type == Element::TF32) {
      for (int l = 0; l < 32; l++)
        for (int r = 0; r < 4; r++)
          a[size_t((l / 4 + 8 * (r & 1)) * depth + l % 4 + 4 * (r >> 1))] = __uint_as_float(p.a[l][r] & ~0x1fffu);
    } else {
      const uint32_t *lanes[32];
      for (int l = 0; l < 32; l++) lanes[l] = p.a[l];
      fragment_a(a.data(), lanes, p.w.type);
    }
  } else {
    read_matrix(a.data(), p.w.descriptor_a, p.w.transpose_a, int(warp % 4) * 16, 16, p);
  }
  read_matrix(b_rows.data(), p.w.descriptor_b, p.w.transpose_b, 0, n, p);
  for (int j = 0; j < n; j++)
    for (int k = 0; k < depth; k++) b[size_t(k * n + j)] = b_rows[size_t(j * depth + k)];
  if (p.w.accumulate)
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < n / 2; i++)
        c[size_t(place(l, i, n))] = p.chained ? p.d[l][i] : p.c[size_t(l * (n / 2) + i)];
  multiply_add(c.data(), a.data(), b.data(), 16, n, depth);
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < n / 2; i++) p.d[l][i] = float(c[size_t(place(l, i, n))]);
  cluster->counts.products += uint64_t(n) / 8;
}

static std::vector<std::vector<Product>> &groups_of(Warp *warp) {
  if (!warp->wgmma) warp->wgmma = std::make_shared<WgmmaGroups>();
  if (warp->wgmma->groups.empty()) warp->wgmma->groups.emplace_back();
  return warp->wgmma->groups;
}

static void issue(const void *const *lanes, uint32_t mask) {
  if (mask != ~0u) fail("wgmma needs all 32 lanes of each warp");
  auto first = static_cast<const Operands *>(lanes[0]);
  Warp *warp = self()->warp;
  auto &groups = groups_of(warp);
  Product p;
  p.w = first->w;
  p.site = cluster->acting;
  p.a_in_registers = first->a != nullptr;
  p.chained = false;
  for (auto &group : groups)
    for (Product &other : group) p.chained |= other.d[0] == first->d;
  int registers = p.w.n / 2;
  for (int l = 0; l < 32; l++) {
    auto o = static_cast<const Operands *>(lanes[l]);
    if (o->w.descriptor_a != p.w.descriptor_a || o->w.descriptor_b != p.w.descriptor_b)
      fail("wgmma: the lanes differ in their descriptors");
    p.d[l] = o->d;
    if (o->a) memcpy(p.a[l], o->a, sizeof p.a[l]);
    if (!p.chained) p.c.insert(p.c.end(), o->d, o->d + registers);
  }
  if (checking) {
    // What the warp's lanes know between them.
    unsigned lane0 = self()->number - self()->lane;
    for (unsigned l = 0; l < 32; l++) cluster->checker->release(p.known, lane0 + l);
  }
  if (!options.late) {
    execute(p, warp->index);
    return;
  }
  if (!p.chained)
    for (int l = 0; l < 32; l++)
      for (int i = 0; i < registers; i++) p.d[l][i] = __uint_as_float(0xffffffffu);
  groups.back().push_back(std::move(p));
}

void wgmma(float *d, const uint32_t *a, const Wgmma &w, Site site) {
  if ((self()->rank / 128 + 1) * 128 > cluster->block_threads)
    fail("wgmma outside a full warpgroup%s", at(site).c_str());
  Operands operands{d, a, w};
  collective(~0u, "wgmma", &operands, issue, false, site);
}

void wgmma_commit(Site site) {
  auto act = [](const void *const *, uint32_t) { groups_of(self()->warp).emplace_back(); };
  collective(~0u, "wgmma.commit_group", nullptr, act, false, site);
}

void wgmma_wait(int pending, Site site) {
  auto act = [](const void *const *lanes, uint32_t) {
    auto &groups = groups_of(self()->warp);
    int left = *static_cast<const int *>(lanes[self()->lane]);
    while (int(groups.size()) - 1 > left) {
      for (Product &p : groups.front()) execute(p, self()->warp->index);
      groups.erase(groups.begin());
    }
  };
  collective(~0u, "wgmma.wait_group", &pending, act, true, site);

  // The products belong to the warpgroup: no warp sees them complete before all four have done their rows.
  Thread *me = self();
  Barrier &barrier = me->owner->warpgroups[me->rank / 128];
  if (cluster->checker) cluster->checker->release(barrier.clock, me->number);
  barrier.waiting.push_back(me);
  if (++barrier.arrived < 128) {
    wait_here("wgmma.wait_group", site);
    return;
  }
  if (cluster->checker)
    for (Thread *thread : barrier.waiting) cluster->checker->acquire(barrier.clock, thread->number);
  barrier.clock.clear();
  barrier.arrived = 0;
  wake_all(barrier.waiting);
  take_turns();
}

} // namespace emu
