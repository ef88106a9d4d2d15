// The records of a running kernel. The unit that runs is a cluster (one block, unless the launch asks for more): its
// threads take turns on one thread of the host.
#pragma once
#include "fiber.h"
#include "language.h"
#include "shared_memory.h"
#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace emu {

enum class Order { Forward, Reverse, Random };

/// How kernels run; constant while one does.
struct Options {
  Order order = Order::Forward; // of threads, blocks and background copies
  uint64_t seed = 1;            // of Order::Random
  bool late = false;            // background work is done only when a wait forces it
  bool check = false;           // races, bounds, initialisation
  unsigned threads = 1;         // of the host
};
extern Options options;

struct Kernel {
  const char *name;
  void (*call)(void **arguments);
  std::vector<Parameter> parameters;
};
/// Null if there is none of that name.
const Kernel *find_kernel(const std::string &name);

/// One component for each thread of the cluster and one for its copy engine: how much of the other's work a thread is
/// known to come after.
using Clock = std::vector<uint32_t>;

struct Thread;
struct Block;
struct Cluster;

struct WgmmaGroups;

/// A warp collective that waits for lanes.
struct Pending {
  uint32_t mask = 0, arrived = 0; // arrived == 0: free
  const char *what = nullptr;
  const void *operands[32] = {};
  Thread *threads[32] = {};
};

struct Warp {
  unsigned index = 0;   // in the block
  uint32_t lanes = 0;   // that exist: the last warp of a block may be short
  std::vector<Pending> pending;
  std::shared_ptr<WgmmaGroups> wgmma;
};

struct Barrier {
  int need = 0, arrived = 0, count = 0;
  std::vector<Thread *> waiting;
  Clock clock;    // of what those who arrived did
  Clock complete; // of the last complete phase, where arriving and waiting are two calls
};

enum class State : uint8_t { Ready, Waiting, Done };
/// Where a thread stands between barrier.cluster.arrive and .wait.
enum class Meeting : uint8_t { None, Arrived, Complete };

struct Thread : ThreadView {
  Fiber fiber;
  unsigned number = 0; // in the cluster
  unsigned rank = 0;  // in the block
  unsigned lane = 0;
  Block *owner = nullptr;
  Warp *warp = nullptr;
  State state = State::Ready;
  const char *waits_in = "";
  Site waits_at = {};
  int result = 0; // of __syncthreads_count
  Meeting meeting = Meeting::None; // of the cluster
};

struct Block : BlockView {
  unsigned rank = 0; // in the cluster
  SharedMemory *shared = nullptr;
  unsigned live = 0; // threads that have not ended
  std::vector<Warp> warps;
  Barrier barriers[16];
  Barrier warpgroups[8];
};

/// Counts of what ran, for the tests of the emulator and for the curious.
struct Counts {
  uint64_t switches = 0, barriers = 0, collectives = 0, products = 0, bank_conflicts = 0;
};

struct CopyGroups;
struct Mbarriers;
struct TmaQueue;
struct Checker;

struct Cluster {
  const Kernel *kernel = nullptr;
  void **arguments = nullptr;

  std::vector<Thread> threads;
  std::vector<Block> blocks;
  unsigned block_threads = 0;
  std::vector<Thread *> ready; // [head, end) are to run
  size_t head = 0;
  unsigned live = 0;
  Barrier rendezvous; // barrier.cluster

  // Where each static shared variable lies: the same in every block of the cluster.
  struct Place {
    size_t offset, size;
  };
  std::unordered_map<const void *, Place> places;
  size_t static_size = 0, dynamic_size = 0;

  std::vector<std::unique_ptr<SharedMemory>> memories; // kept from launch to launch, as the stacks are
  char *stacks = nullptr;
  size_t stack_count = 0;
  char *signal_stack = nullptr;

  std::shared_ptr<CopyGroups> copies;
  std::shared_ptr<Mbarriers> mbarriers;
  std::shared_ptr<TmaQueue> tma;
  std::shared_ptr<Checker> checker; // null unless options.check

  Site acting = {}; // where the collective whose operation runs now was called
  Fiber host;
  bool on_fiber = false, failed = false;
  std::string report;

  uint64_t random_state = 1;
  uint32_t random();
  Counts counts;
};

/// Of each GPU thread's stack, its guard page included.
constexpr size_t stack_size = 64 << 10;

/// The cluster that runs on this thread of the host.
extern __thread Cluster *cluster;

inline Thread *self() { return static_cast<Thread *>(current); }

// ---- scheduler.cpp ------------------------------------------------------------------------------------------

/// Makes one thread ready.
void wake(Thread *thread);
/// Makes all of them ready, in the order under test, and empties the list.
void wake_all(std::vector<Thread *> &threads);
/// Lets others run until something wakes this thread.
void wait_here(const char *what, Site site);
/// The same for a thread that is ready: it goes on when its turn comes.
void take_turns();
/// Runs the cluster's threads to their end. Throws the report of a kernel that failed.
void run_cluster();

} // namespace emu
