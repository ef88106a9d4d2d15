// The driver API: modules, functions, launches, occupancy. Kernels go by their names; the image of a module is not
// looked at.
#include "device_memory.h"
#include "driver.h"
#include "launch.h"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace emu;

namespace {
struct Function {
  const Kernel *kernel;
  unsigned max_dynamic = default_dynamic_shared;
  bool wide_clusters = false; // NON_PORTABLE_CLUSTER_SIZE_ALLOWED
};
struct Module {
  std::vector<std::unique_ptr<Function>> functions;
};
} // namespace

// ---- modules and functions ------------------------------------------------------------------------------------

EMU_API cuModuleLoadData(void **out, const void *image) {
  if (!image) return INVALID_VALUE;
  *out = new Module;
  return SUCCESS;
}
EMU_API cuModuleLoadDataEx(void **out, const void *image, unsigned, void *, void **) {
  return cuModuleLoadData(out, image);
}
EMU_API cuModuleLoadFatBinary(void **out, const void *image) { return cuModuleLoadData(out, image); }

EMU_API cuModuleUnload(void *module) {
  delete static_cast<Module *>(module);
  return SUCCESS;
}

EMU_API cuModuleGetFunction(void **out, void *handle, const char *name) {
  auto module = static_cast<Module *>(handle);
  const Kernel *kernel = find_kernel(name);
  if (!kernel) return refuse(NOT_FOUND, "%s: no such kernel", name);
  module->functions.push_back(std::make_unique<Function>());
  module->functions.back()->kernel = kernel;
  *out = module->functions.back().get();
  return SUCCESS;
}

EMU_API cuFuncGetAttribute(int *value, int attribute, void *handle) {
  auto f = static_cast<Function *>(handle);
  switch (attribute) {
  case 0: *value = max_block_threads; break;                   // MAX_THREADS_PER_BLOCK
  case 1: *value = int(static_shared_size(f->kernel)); break;  // SHARED_SIZE_BYTES: known after the first launch
  case 4: *value = 32; break;                                  // NUM_REGS: there are none
  case 5: case 6: *value = 10 * device.major + device.minor; break; // PTX_VERSION, BINARY_VERSION
  case 8: *value = int(f->max_dynamic); break;                 // MAX_DYNAMIC_SHARED_SIZE_BYTES
  case 14: *value = f->wide_clusters; break;
  default: *value = 0;
  }
  return attribute < 0 || attribute > 15 ? INVALID_VALUE : SUCCESS;
}

EMU_API cuFuncSetAttribute(void *handle, int attribute, int value) {
  auto f = static_cast<Function *>(handle);
  if (attribute == 8) {
    unsigned most = max_dynamic_shared - unsigned(static_shared_size(f->kernel));
    if (value < 0 || unsigned(value) > most)
      return refuse(INVALID_VALUE, "%s: %d bytes of dynamic shared memory, at most %u can be had", f->kernel->name,
                    value, most);
    f->max_dynamic = unsigned(value);
  }
  if (attribute == 14) f->wide_clusters = value != 0;
  return SUCCESS;
}
EMU_API cuFuncSetCacheConfig(void *, int) { return SUCCESS; }
EMU_API cuFuncGetName(const char **name, void *handle) {
  *name = static_cast<Function *>(handle)->kernel->name;
  return SUCCESS;
}
EMU_API cuFuncGetParamInfo(void *handle, size_t index, size_t *offset, size_t *size) {
  const auto &all = static_cast<Function *>(handle)->kernel->parameters;
  if (index >= all.size()) return INVALID_VALUE;
  size_t at = 0;
  for (size_t i = 0; i <= index; i++) {
    at = (at + all[i].align - 1) / all[i].align * all[i].align;
    if (i < index) at += all[i].size;
  }
  *offset = at;
  if (size) *size = all[index].size;
  return SUCCESS;
}

// ---- launches -----------------------------------------------------------------------------------------------

// Arguments are copied in the call, as the driver does it: the caller's may change before a graph replays them.
namespace {
struct Arguments {
  std::vector<void *> values;

  Arguments(const Kernel &kernel, void **from) {
    for (size_t i = 0; i < kernel.parameters.size(); i++) {
      size_t size = kernel.parameters[i].size;
      void *copy = aligned_alloc(128, (size + 127) / 128 * 128);
      memcpy(copy, from[i], size);
      values.push_back(copy);
    }
  }
  Arguments(const Arguments &) = delete;
  ~Arguments() {
    for (void *value : values) free(value);
  }
};
} // namespace

static std::string check(const Function &f, const Launch &l) {
  char text[300];
  uint64_t threads = uint64_t(l.block.x) * l.block.y * l.block.z;
  if (threads == 0 || threads > max_block_threads || l.block.z > 64) {
    snprintf(text, sizeof text, "blocks of %u x %u x %u threads: 1 to %u are allowed", l.block.x, l.block.y, l.block.z,
             max_block_threads);
    return text;
  }
  if (l.grid.x == 0 || l.grid.y == 0 || l.grid.z == 0 || l.grid.x > 2147483647u || l.grid.y > 65535 ||
      l.grid.z > 65535) {
    snprintf(text, sizeof text, "a grid of %u x %u x %u blocks: 1 to 2147483647 x 65535 x 65535 are allowed",
             l.grid.x, l.grid.y, l.grid.z);
    return text;
  }
  if (l.dynamic_shared > f.max_dynamic) {
    snprintf(text, sizeof text, "%zu bytes of dynamic shared memory: the function's attribute allows %u",
             l.dynamic_shared, f.max_dynamic);
    return text;
  }
  return "";
}

static std::string check_arguments(const Kernel &kernel, const Arguments &arguments) {
  for (size_t i = 0; i < kernel.parameters.size(); i++) {
    if (!kernel.parameters[i].pointer) continue;
    void *p = *static_cast<void **>(arguments.values[i]);
    if (!p || in_device_memory(p)) continue;
    char text[200];
    snprintf(text, sizeof text, "argument %zu (of %zu) is not a pointer to device memory: %p", i,
             kernel.parameters.size(), p);
    return text;
  }
  return "";
}

static int launch(Function *f, Launch l, void **from, void **extra, void *stream) {
  const Kernel &kernel = *f->kernel;
  std::string error = check(*f, l);
  if (!error.empty()) return refuse(INVALID_VALUE, "%s: %s", kernel.name, error.c_str());
  unsigned clusters = l.cluster.x * l.cluster.y * l.cluster.z;
  if (clusters == 0 || clusters > (f->wide_clusters ? 16u : 8u) || l.grid.x % l.cluster.x || l.grid.y % l.cluster.y ||
      l.grid.z % l.cluster.z || (clusters > 1 && device.major < 9))
    return refuse(INVALID_CLUSTER_SIZE, "%s: clusters of %u x %u x %u blocks in a grid of %u x %u x %u", kernel.name,
                  l.cluster.x, l.cluster.y, l.cluster.z, l.grid.x, l.grid.y, l.grid.z);
  if (extra) return refuse(NOT_SUPPORTED, "%s: the emulator takes arguments by kernelParams only", kernel.name);
  if (!from && !kernel.parameters.empty()) return refuse(INVALID_VALUE, "%s: no arguments", kernel.name);
  for (size_t i = 0; i < kernel.parameters.size(); i++)
    if (!from[i])
      return refuse(INVALID_VALUE, "%s: takes %zu arguments, argument %zu is missing", kernel.name,
                    kernel.parameters.size(), i);
  auto arguments = std::make_shared<Arguments>(kernel, from);
  error = check_arguments(kernel, *arguments);
  if (!error.empty()) return refuse(INVALID_VALUE, "%s: %s", kernel.name, error.c_str());

  return submit(stream, kernel.name, [l, arguments, &kernel] {
    Launch now = l;
    now.kernel = &kernel;
    now.arguments = arguments->values.data();
    statistics.launches++;
    std::string report = run(now);
    if (report.empty()) return int(SUCCESS);
    auto starts = [&](const char *with) { return report.rfind(with, 0) == 0; };
    Result result = starts("illegal address") || starts("out-of-bounds") ? ILLEGAL_ADDRESS
                    : starts("misaligned")                               ? MISALIGNED_ADDRESS
                                                                         : LAUNCH_FAILED;
    return refuse(result, "%s", report.c_str());
  });
}

EMU_API cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                       unsigned shared, void *stream, void **arguments, void **extra) {
  Launch l;
  l.grid = dim3(gx, gy, gz);
  l.block = dim3(bx, by, bz);
  l.cluster = dim3(1, 1, 1);
  l.dynamic_shared = shared;
  return launch(static_cast<Function *>(function), l, arguments, extra, stream);
}

namespace {
struct LaunchAttribute {
  int id, padding;
  union {
    char bytes[64];
    unsigned cluster[3];
  } value;
};
struct LaunchConfig {
  unsigned grid[3], block[3], shared;
  void *stream;
  LaunchAttribute *attributes;
  unsigned count;
};
} // namespace

static dim3 cluster_of(const LaunchConfig &config) {
  for (unsigned i = 0; i < config.count; i++)
    if (config.attributes[i].id == 4) { // CLUSTER_DIMENSION; the others change nothing that can be seen here
      const unsigned *c = config.attributes[i].value.cluster;
      return dim3(c[0], c[1], c[2]);
    }
  return dim3(1, 1, 1);
}

EMU_API cuLaunchKernelEx(const void *configuration, void *function, void **arguments, void **extra) {
  auto config = static_cast<const LaunchConfig *>(configuration);
  Launch l;
  l.grid = dim3(config->grid[0], config->grid[1], config->grid[2]);
  l.block = dim3(config->block[0], config->block[1], config->block[2]);
  l.cluster = cluster_of(*config);
  l.dynamic_shared = config->shared;
  return launch(static_cast<Function *>(function), l, arguments, extra, config->stream);
}

// ---- occupancy: by threads and shared memory, for there are no registers ---------------------------------------

static int active_blocks(const Function *f, int block, size_t dynamic) {
  if (block < 1 || block > int(max_block_threads)) return 0;
  size_t shared = dynamic + static_shared_size(f->kernel) + 1024; // the system keeps 1 KB for each block
  int by_threads = int(max_resident_threads) / ((block + 31) / 32 * 32);
  return std::min({by_threads, int(shared_per_multiprocessor / shared), 32});
}

EMU_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *count, void *f, int block, size_t dynamic) {
  *count = active_blocks(static_cast<Function *>(f), block, dynamic);
  return SUCCESS;
}
EMU_API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *count, void *f, int block, size_t dynamic,
                                                             unsigned) {
  return cuOccupancyMaxActiveBlocksPerMultiprocessor(count, f, block, dynamic);
}
EMU_API cuOccupancyMaxPotentialBlockSize(int *grid, int *block, void *f, size_t (*dynamic_of)(int), size_t dynamic,
                                         int limit) {
  *block = std::min(limit > 0 ? limit : int(max_block_threads), int(max_block_threads)) / 32 * 32;
  size_t size = dynamic_of ? dynamic_of(*block) : dynamic;
  *grid = active_blocks(static_cast<Function *>(f), *block, size) * int(multiprocessors);
  return SUCCESS;
}
EMU_API cuOccupancyMaxPotentialBlockSizeWithFlags(int *grid, int *block, void *f, size_t (*dynamic_of)(int),
                                                  size_t dynamic, int limit, unsigned) {
  return cuOccupancyMaxPotentialBlockSize(grid, block, f, dynamic_of, dynamic, limit);
}
EMU_API cuOccupancyAvailableDynamicSMemPerBlock(size_t *size, void *f, int blocks, int) {
  if (blocks < 1) return INVALID_VALUE;
  size_t each = shared_per_multiprocessor / unsigned(blocks), taken = 1024 + static_shared_size(static_cast<Function *>(f)->kernel);
  *size = std::min<size_t>(each > taken ? each - taken : 0, max_dynamic_shared);
  return SUCCESS;
}
EMU_API cuOccupancyMaxPotentialClusterSize(int *size, void *f, const void *) {
  *size = static_cast<Function *>(f)->wide_clusters ? 16 : 8;
  return SUCCESS;
}
EMU_API cuOccupancyMaxActiveClusters(int *count, void *f, const void *configuration) {
  auto config = static_cast<const LaunchConfig *>(configuration);
  dim3 c = cluster_of(*config);
  int threads = int(config->block[0] * config->block[1] * config->block[2]);
  *count = active_blocks(static_cast<Function *>(f), threads, config->shared) * int(multiprocessors) /
           int(std::max(1u, c.x * c.y * c.z));
  return SUCCESS;
}

EMU_API cuLaunchCooperativeKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                  unsigned bz, unsigned shared, void *stream, void **arguments) {
  auto f = static_cast<Function *>(function);
  uint64_t most = uint64_t(active_blocks(f, int(bx * by * bz), shared)) * multiprocessors;
  if (uint64_t(gx) * gy * gz > most) return COOPERATIVE_LAUNCH_TOO_LARGE;
  return cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, arguments, nullptr);
}
