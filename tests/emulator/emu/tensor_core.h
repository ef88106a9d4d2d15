// What mma.sync and wgmma share.
#pragma once
#include "gpu.h"

namespace emu {

float element_value(uint16_t bits, Element type);

/// c[rows][columns] += a[rows][depth] b[depth][columns]; columns is a multiple of 8.
void multiply_add(double *c, const double *a, const double *b, int rows, int columns, int depth);

/// The 16x16 matrix A from the registers of the lanes, 16-bit types.
void fragment_a(double *a, const uint32_t *const (&lanes)[32], Element type);

} // namespace emu
