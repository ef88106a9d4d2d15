// Launches: what a device would refuse is refused, then the grid runs.
#pragma once
#include "state.h"
#include <mutex>
#include <shared_mutex>

namespace emu {

struct Launch {
  const Kernel *kernel = nullptr;
  dim3 grid, block, cluster;
  size_t dynamic_shared = 0;
  void **arguments = nullptr;
};

/// Runs the whole grid. An empty string, or why the kernel failed.
std::string run(const Launch &launch);

/// What the threads of the host hold while kernels run (shared) or options change (alone).
extern std::shared_mutex launch_mutex;

/// Of everything since the last call.
Counts take_counts();

/// Static shared memory, known once the kernel has run.
size_t static_shared_size(const Kernel *kernel);

} // namespace emu
