#include "gpu.cuh"
