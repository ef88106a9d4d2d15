// mma.sync, ldmatrix and stmatrix. Fragments lie in the registers of the lanes as the PTX manual draws them: lane l
// is row l / 4 ("group") and column pair l % 4 of an 8x8 tile.
//
// Products are exact in double, summed there and rounded once for each instruction. The hardware keeps fewer bits
// and truncates: compare with a GPU by tolerance.
#include "checker.h"
#include "gpu.h"
#include "tensor_core.h"

namespace emu {

float element_value(uint16_t bits, Element type) {
  return type == Element::F16 ? __half2float(__half{bits}) : __bfloat162float(__nv_bfloat16{bits});
}

// Four doubles at once: the compiler makes vector instructions of it on every processor. (`auto` would forget the
// alignment.)
typedef double Four __attribute__((vector_size(32), aligned(8)));

void multiply_add(double *c, const double *a, const double *b, int rows, int columns, int depth) {
  for (int i = 0; i < rows; i++) {
    for (int j = 0; j < columns; j += 8) {
      Four *out = reinterpret_cast<Four *>(c + i * columns + j);
      Four low = out[0], high = out[1];
      for (int k = 0; k < depth; k++) {
        double v = a[i * depth + k];
        const Four *in = reinterpret_cast<const Four *>(b + k * columns + j);
        low += v * in[0];
        high += v * in[1];
      }
      out[0] = low;
      out[1] = high;
    }
  }
}

namespace {
struct Operands {
  float *d;
  const uint32_t *a, *b;
};
} // namespace

void fragment_a(double *a, const uint32_t *const (&lanes)[32], Element type) {
  for (int l = 0; l < 32; l++) {
    int group = l / 4, pair = l % 4 * 2;
    // Registers: rows 0-7, rows 8-15, then the same for the second half of the depth.
    for (int r = 0; r < 4; r++) {
      double *at = a + (group + 8 * (r & 1)) * 16 + pair + 8 * (r >> 1);
      at[0] = element_value(uint16_t(lanes[l][r]), type);
      at[1] = element_value(uint16_t(lanes[l][r] >> 16), type);
    }
  }
}

template <Element TYPE>
static void multiply_tile(const void *const *lanes, uint32_t mask) {
  if (mask != ~0u) fail("mma.sync needs all 32 lanes");
  constexpr int depth = TYPE == Element::TF32 ? 8 : 16;
  alignas(32) double a[16 * 16], b[16 * 8], c[16 * 8];
  const uint32_t *fragments[32];
  for (int l = 0; l < 32; l++) {
    auto o = static_cast<const Operands *>(lanes[l]);
    fragments[l] = o->a;
    int group = l / 4, quad = l % 4;
    if constexpr (TYPE == Element::TF32) {
      // The instruction ignores the low 13 bits.
      auto value = [](uint32_t u) { return double(__uint_as_float(u & ~0x1fffu)); };
      for (int r = 0; r < 4; r++) a[(group + 8 * (r & 1)) * depth + quad + 4 * (r >> 1)] = value(o->a[r]);
      for (int r = 0; r < 2; r++) b[(quad + 4 * r) * 8 + group] = value(o->b[r]);
    } else {
      for (int r = 0; r < 2; r++) {
        b[(2 * quad + 8 * r) * 8 + group] = element_value(uint16_t(o->b[r]), TYPE);
        b[(2 * quad + 8 * r + 1) * 8 + group] = element_value(uint16_t(o->b[r] >> 16), TYPE);
      }
    }
    for (int r = 0; r < 4; r++) c[(group + 8 * (r >> 1)) * 8 + 2 * quad + (r & 1)] = o->d[r];
  }
  if constexpr (TYPE != Element::TF32) fragment_a(a, fragments, TYPE);
  multiply_add(c, a, b, 16, 8, depth);
  for (int l = 0; l < 32; l++) {
    auto o = static_cast<const Operands *>(lanes[l]);
    for (int r = 0; r < 4; r++) o->d[r] = float(c[(l / 4 + 8 * (r >> 1)) * 8 + l % 4 * 2 + (r & 1)]);
  }
  cluster->counts.products++;
}

void multiply(float *d, const uint32_t *a, const uint32_t *b, Element type, Site site) {
  Operands operands{d, a, b};
  switch (type) {
  case Element::BF16: collective(~0u, "mma.bf16", &operands, multiply_tile<Element::BF16>, false, site); break;
  case Element::F16: collective(~0u, "mma.f16", &operands, multiply_tile<Element::F16>, false, site); break;
  case Element::TF32: collective(~0u, "mma.tf32", &operands, multiply_tile<Element::TF32>, false, site); break;
  }
}

// ---- ldmatrix, stmatrix -------------------------------------------------------------------------------------

namespace {
struct Matrices {
  uint32_t *registers;
  const void *row;
  int count;
  bool transposed;
};
} // namespace

// The 16 bytes whose address lane `l` brought. The access counts as that lane's.
static void access_row(const Matrices &m, int l, bool write, uint16_t *row, uint32_t &banks, bool &conflict) {
  const char *name = write ? "stmatrix" : "ldmatrix";
  uint32_t address = shared_address(m.row);
  if (address % 16) fail("%s: row address 0x%x of lane %d is not 16-byte aligned", name, address, l);
  char *p = shared_pointer(address, 16);
  Thread *caller = self();
  current = &cluster->threads[caller->number - caller->lane + unsigned(l)];
  touch(p, 16, write, cluster->acting);
  current = caller;
  if (write) {
    memcpy(p, row, 16);
  } else {
    memcpy(row, p, 16);
  }
  uint32_t used = 15u << (address / 4 % 32);
  conflict |= (banks & used) != 0;
  banks |= used;
}

template <bool WRITE>
static void access_matrices(const void *const *lanes, uint32_t mask) {
  if (mask != ~0u) fail("%s needs all 32 lanes", WRITE ? "stmatrix" : "ldmatrix");
  auto of = [&](int l) -> const Matrices & { return *static_cast<const Matrices *>(lanes[l]); };
  for (int q = 0; q < of(0).count; q++) {
    uint16_t matrix[8][8];
    uint32_t banks = 0;
    bool conflict = false;
    // Element (i, j) of the matrix in the registers is (j, i) of the rows in memory when transposed.
    auto exchange = [&] {
      for (int l = 0; l < 32; l++) {
        int i = l / 4, j = l % 4 * 2;
        bool t = of(l).transposed;
        uint16_t &low = t ? matrix[j][i] : matrix[i][j], &high = t ? matrix[j + 1][i] : matrix[i][j + 1];
        uint32_t &r = of(l).registers[q];
        if (WRITE) {
          low = uint16_t(r);
          high = uint16_t(r >> 16);
        } else {
          r = low | uint32_t(high) << 16;
        }
      }
    };
    if (WRITE) exchange();
    for (int r = 0; r < 8; r++) access_row(of(8 * q + r), 8 * q + r, WRITE, matrix[r], banks, conflict);
    if (!WRITE) exchange();
    cluster->counts.bank_conflicts += conflict;
  }
}

void load_matrix(uint32_t *r, int count, bool transposed, const void *row, Site site) {
  Matrices operands{r, row, count, transposed};
  collective(~0u, "ldmatrix", &operands, access_matrices<false>, false, site);
}

void store_matrix(const uint32_t *r, int count, bool transposed, void *row, Site site) {
  Matrices operands{const_cast<uint32_t *>(r), row, count, transposed};
  collective(~0u, "stmatrix", &operands, access_matrices<true>, false, site);
}

} // namespace emu
