#include "launch.h"
#include "async_copy.h"
#include "checker.h"
#include "mbarrier.h"
#include "report.h"
#include "tma.h"
#include <algorithm>
#include <stdexcept>
#include <sys/mman.h>
#include <thread>

namespace emu {

std::shared_mutex launch_mutex;

// ---- kernels by name ----------------------------------------------------------------------------------------

static std::map<std::string, Kernel> &kernels() {
  static std::map<std::string, Kernel> all; // made on first use: registrars run before main, in any order
  return all;
}

Registrar::Registrar(const char *name, void (*call)(void **), unsigned count, const Parameter *parameters) {
  kernels()[name] = Kernel{name, call, std::vector<Parameter>(parameters, parameters + count)};
}

const Kernel *find_kernel(const std::string &name) {
  auto it = kernels().find(name);
  return it == kernels().end() ? nullptr : &it->second;
}

static std::mutex records_mutex;
static std::map<const Kernel *, size_t> static_sizes;
static Counts total;

size_t static_shared_size(const Kernel *kernel) {
  std::lock_guard<std::mutex> lock(records_mutex);
  return static_sizes[kernel];
}

Counts take_counts() {
  std::lock_guard<std::mutex> lock(records_mutex);
  Counts counts = total;
  total = Counts();
  return counts;
}

// ---- a cluster of blocks ------------------------------------------------------------------------------------

static void make_stacks(Cluster &c, size_t count) {
  if (c.stack_count >= count) return;
  if (c.stacks) munmap(c.stacks, c.stack_count * stack_size);
  void *p = mmap(nullptr, count * stack_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                 0);
  if (p == MAP_FAILED) fail("the emulator found no memory for %zu stacks", count);
  c.stacks = static_cast<char *>(p);
  c.stack_count = count;
  // A thread that overruns its stack must not reach its neighbour's.
  for (size_t i = 0; i < count; i++) mprotect(c.stacks + i * stack_size, 4096, PROT_NONE);
}

static unsigned count(dim3 d) { return d.x * d.y * d.z; }

static dim3 unravel(uint64_t i, dim3 size) {
  return dim3(unsigned(i % size.x), unsigned(i / size.x % size.y), unsigned(i / (uint64_t(size.x) * size.y)));
}

// Everything that is the same for all clusters of the launch.
static void prepare(Cluster &c, const Launch &launch) {
  unsigned blocks = count(launch.cluster), threads = count(launch.block), warps = (threads + 31) / 32;
  c.kernel = launch.kernel;
  c.arguments = launch.arguments;
  c.block_threads = threads;
  c.places.clear();
  c.static_size = 0;
  c.dynamic_size = launch.dynamic_shared;
  c.on_fiber = c.failed = false;
  c.acting = {};
  c.random_state = options.seed * 0x9e3779b97f4a7c15ull | 1;
  make_stacks(c, size_t(blocks) * threads);

  while (c.memories.size() < blocks) c.memories.push_back(std::make_unique<SharedMemory>());
  c.blocks.assign(blocks, Block());
  c.threads.assign(size_t(blocks) * threads, Thread());
  for (unsigned b = 0; b < blocks; b++) {
    Block &block = c.blocks[b];
    block.rank = b;
    block.grid_dim = launch.grid;
    block.block_dim = launch.block;
    block.shared = c.memories[b].get();
    block.shared->open(launch.dynamic_shared);
    block.warps.assign(warps, Warp());
    for (unsigned t = 0; t < threads; t++) {
      Thread &thread = c.threads[size_t(b) * threads + t];
      thread.index = unravel(t, launch.block);
      thread.block = &block;
      thread.number = b * threads + t;
      thread.rank = t;
      thread.lane = t % 32;
      thread.owner = &block;
      thread.warp = &block.warps[t / 32];
      thread.warp->index = t / 32;
      thread.warp->lanes |= 1u << thread.lane;
    }
  }
  c.checker = options.check ? std::make_shared<Checker>(unsigned(c.threads.size())) : nullptr;
}

static void run_one(Cluster &c, const Launch &launch, dim3 clusters, uint64_t id) {
  dim3 at = unravel(id, clusters);
  for (Block &block : c.blocks) {
    dim3 in = unravel(block.rank, launch.cluster);
    block.index = dim3(at.x * launch.cluster.x + in.x, at.y * launch.cluster.y + in.y, at.z * launch.cluster.z + in.z);
    block.live = c.block_threads;
    block.shared->poison();
    for (Barrier &barrier : block.barriers) barrier = Barrier();
    for (Barrier &barrier : block.warpgroups) barrier = Barrier();
    for (Warp &warp : block.warps) {
      warp.pending.clear();
      warp.wgmma.reset();
    }
  }
  for (Thread &thread : c.threads) {
    thread.state = State::Ready;
    thread.meeting = Meeting::None;
  }
  c.rendezvous = Barrier();
  reset_copies();
  reset_mbarriers();
  reset_tma();
  if (c.checker) c.checker->start();
  run_cluster();
}

// ---- the grid -----------------------------------------------------------------------------------------------

namespace {
// Clusters are kept for the next launch: their stacks and shared memory cost system calls.
struct Idle {
  std::mutex mutex;
  std::vector<std::unique_ptr<Cluster>> clusters;

  std::unique_ptr<Cluster> take() {
    std::lock_guard<std::mutex> lock(mutex);
    if (clusters.empty()) return std::make_unique<Cluster>();
    auto c = std::move(clusters.back());
    clusters.pop_back();
    return c;
  }
  void give(std::unique_ptr<Cluster> c) {
    std::lock_guard<std::mutex> lock(mutex);
    clusters.push_back(std::move(c));
  }
};

struct Work {
  std::vector<uint32_t> ids; // clusters, in the order under test
  std::atomic<size_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::string report;
};
} // namespace

static Idle &idle() {
  static Idle *one = new Idle; // never destroyed: kernels may run while the process ends
  return *one;
}

static void run_share(const Launch &launch, dim3 clusters, Work &work) {
  auto mine = idle().take();
  cluster = mine.get();
  if (!mine->signal_stack) mine->signal_stack = static_cast<char *>(malloc(FaultGuard::stack_size));
  try {
    prepare(*mine, launch);
    FaultGuard guard(mine->signal_stack);
    for (size_t i; !work.stop && (i = work.next++) < work.ids.size();)
      run_one(*mine, launch, clusters, work.ids[i]);
  } catch (const std::runtime_error &error) {
    work.stop = true;
    std::lock_guard<std::mutex> lock(work.mutex);
    if (work.report.empty()) work.report = error.what();
  }
  current = nullptr;
  cluster = nullptr;
  {
    std::lock_guard<std::mutex> lock(records_mutex);
    static_sizes[launch.kernel] = std::max(static_sizes[launch.kernel], mine->static_size);
    total.switches += mine->counts.switches;
    total.barriers += mine->counts.barriers;
    total.collectives += mine->counts.collectives;
    total.products += mine->counts.products;
    total.bank_conflicts += mine->counts.bank_conflicts;
    mine->counts = Counts();
  }
  idle().give(std::move(mine));
}

static std::string run_grid(const Launch &launch) {
  dim3 clusters(launch.grid.x / launch.cluster.x, launch.grid.y / launch.cluster.y, launch.grid.z / launch.cluster.z);
  uint64_t n = uint64_t(clusters.x) * clusters.y * clusters.z;
  if (n > UINT32_MAX) return "the emulator does not run grids of more than 2^32 blocks";
  Work work;
  work.ids.resize(n);
  for (uint64_t i = 0; i < n; i++) work.ids[i] = uint32_t(options.order == Order::Reverse ? n - 1 - i : i);
  if (options.order == Order::Random) {
    uint64_t state = options.seed * 0x9e3779b97f4a7c15ull | 1;
    for (uint64_t i = n; i > 1; i--) {
      state ^= state << 13;
      state ^= state >> 7;
      state ^= state << 17;
      std::swap(work.ids[i - 1], work.ids[(state >> 20) % i]);
    }
  }
  // Threads of the host are not worth starting for a few blocks, and the checker's records belong to one.
  size_t share = 2048 / std::max(1u, count(launch.block)) + 1;
  unsigned hosts = options.check ? 1 : unsigned(std::min<uint64_t>(std::max(1u, options.threads), (n + share - 1) / share));
  std::vector<std::thread> others;
  for (unsigned i = 1; i < hosts; i++) others.emplace_back([&] { run_share(launch, clusters, work); });
  run_share(launch, clusters, work);
  for (std::thread &other : others) other.join();
  return work.report;
}

std::string run(const Launch &launch) {
  {
    // A launch that is checked runs alone: the records of device memory have one writer.
    std::shared_lock<std::shared_mutex> lock(launch_mutex);
    if (!options.check) return run_grid(launch);
  }
  std::unique_lock<std::shared_mutex> lock(launch_mutex);
  if (!options.check) return run_grid(launch);
  begin_checked_launch();
  checking = true;
  std::string report = run_grid(launch);
  checking = false;
  return report;
}

} // namespace emu
