// cp.async.bulk: the copy engine moves tiles between a tensor in device memory and shared memory, through a tensor map,
// or a run of bytes to shared memory. Early, a copy is done at once. Late, a load is done when no thread can go on (its destination is NaN
// until then), a store when its thread waits for it.
#include "tma.h"
#include "checker.h"
#include "gpu.h"
#include "mbarrier.h"
#include "tensor_map.h"

namespace emu {

namespace {
struct Load {
  TensorMap map; // a copy: the kernel that holds the map may have ended
  const char *run = nullptr; // without a map: bytes from here
  unsigned bytes = 0;        // of the copy
  int coordinate[5];
  unsigned offset[3]; // im2col: of the filter's element
  struct Destination {
    char *shared;
    uint64_t *barrier;
  };
  std::vector<Destination> to; // several for multicast
  Thread *issuer;
  Clock known; // to the issuer, when it asked
  Site site;
};

struct Store {
  TensorMap map;
  int coordinate[5];
  char *shared;
  std::vector<char> data; // once it is read from shared memory
  bool read = false, waited = false;
  Clock known;
  Site site;
};
using Group = std::vector<Store>;
} // namespace

struct TmaQueue {
  std::vector<Load> loads;
  // For each thread of the cluster its groups of stores, oldest first; the last one is still open.
  std::unordered_map<unsigned, std::vector<Group>> stores;
};

void reset_tma() { cluster->tma = std::make_shared<TmaQueue>(); }

static Clock known_to(Thread *thread) { return checking ? cluster->checker->snapshot(thread->number) : Clock(); }

// ---- where the elements lie ---------------------------------------------------------------------------------

static unsigned bytes_of(const TensorMap &map) {
  unsigned n = map.element;
  if (map.im2col) return n * map.channels * map.pixels;
  for (unsigned d = 0; d < map.rank; d++) n *= map.box[d];
  return n;
}

// Calls visit(i, p): element i of the copy in shared memory is at p in device memory, null outside the tensor.
template <class Visit>
static void each_of_tile(const TensorMap &map, const int *coordinate, Visit visit) {
  unsigned total = bytes_of(map) / map.element;
  for (unsigned i = 0; i < total; i++) {
    char *p = map.address;
    bool inside = true;
    unsigned rest = i;
    for (unsigned d = 0; d < map.rank; d++) {
      int64_t x = int64_t(coordinate[d]) + int64_t(rest % map.box[d]) * map.step[d];
      rest /= map.box[d];
      inside &= x >= 0 && x < int64_t(map.dim[d]);
      p += x * int64_t(d ? map.stride[d - 1] : map.element);
    }
    visit(i, inside ? p : nullptr);
  }
}

// A column of pixels: they run through the box of W, then H, then D, then the images. The box of a dimension goes from
// its lower corner to its last element plus its upper corner.
template <class Visit>
static void each_of_column(const TensorMap &map, const int *coordinate, const unsigned *offset, Visit visit) {
  unsigned spatial = map.rank - 2u;
  int64_t base[4];
  for (unsigned d = 0; d <= spatial; d++) base[d] = coordinate[d + 1];
  for (unsigned pixel = 0; pixel < map.pixels; pixel++) {
    char *row = map.address;
    bool inside = true;
    for (unsigned d = 0; d <= spatial; d++) {
      int64_t x = base[d] + (d < spatial ? offset[d] : 0);
      inside &= x >= 0 && x < int64_t(map.dim[d + 1]);
      row += x * int64_t(map.stride[d]);
    }
    for (unsigned c = 0; c < map.channels; c++) {
      int64_t x = int64_t(coordinate[0]) + c;
      bool here = inside && x >= 0 && x < int64_t(map.dim[0]);
      visit(pixel * map.channels + c, here ? row + x * map.element : nullptr);
    }
    for (unsigned d = 0; d <= spatial; d++) {
      if (d == spatial) {
        base[d]++;
        break;
      }
      base[d] += map.step[d + 1];
      if (base[d] <= int64_t(map.dim[d + 1]) - 1 + map.upper[d]) break;
      base[d] = map.lower[d];
    }
  }
}

// The byte of shared memory at which element i of a copy to or from `shared` lies.
static char *swizzled_pointer(const TensorMap &map, char *shared, unsigned i) {
  uint32_t start = shared_address(shared);
  return shared_pointer(swizzled(start + i * map.element, map.swizzle), map.element);
}

static void check(const TensorMap &map, int rank, bool im2col, const void *shared, Site site) {
  if (map.magic != tensor_map_magic) fail("TMA: not a tensor map%s", at(site).c_str());
  if (map.im2col != im2col)
    fail("TMA: a map of the %s mode%s", map.im2col ? "im2col" : "tiled", at(site).c_str());
  if (map.rank != rank) fail("TMA: a %dd copy with a map of rank %u%s", rank, map.rank, at(site).c_str());
  if (shared_address(shared) % 128)
    fail("TMA: shared address 0x%x is not 128-byte aligned%s", shared_address(shared), at(site).c_str());
  shared_pointer(shared_address(shared), bytes_of(map));
}

// ---- loads --------------------------------------------------------------------------------------------------

static void arrive(const Load &load) {
  // What goes wrong now is the issuer's fault, though it may be elsewhere by now.
  ThreadView *running = current;
  current = load.issuer;
  const TensorMap &map = load.map;
  std::vector<char> data(load.bytes, map.fill_nan ? '\xff' : '\0');
  uint32_t time = checking ? cluster->checker->tick() : 0;
  auto visit = [&](unsigned i, const char *p) {
    if (!p) return;
    if (checking)
      cluster->checker->read_as(p, map.element, load.known.data(), cluster->checker->engine(), time, Access::Engine,
                                Where{load.site});
    memcpy(&data[size_t(i) * map.element], p, map.element);
  };
  cluster->acting = load.site;
  if (load.run) {
    if (checking)
      cluster->checker->read_as(load.run, load.bytes, load.known.data(), cluster->checker->engine(), time, Access::Engine,
                                Where{load.site});
    memcpy(data.data(), load.run, load.bytes);
  } else if (map.im2col) {
    each_of_column(map, load.coordinate, load.offset, visit);
  } else {
    each_of_tile(map, load.coordinate, visit);
  }
  for (const Load::Destination &to : load.to) {
    if (load.run) memcpy(to.shared, data.data(), data.size());
    for (unsigned i = 0; !load.run && i < data.size() / map.element; i++)
      memcpy(swizzled_pointer(map, to.shared, i), &data[size_t(i) * map.element], map.element);
    if (checking)
      cluster->checker->land(to.shared, data.size(), cluster->checker->engine(), time, Access::Engine);
    mbarrier_complete(to.barrier, uint32_t(data.size()), time);
  }
  cluster->acting = {};
  current = running;
}

// Starts it, or does it at once.
static void start(Load &load) {
  load.issuer = self();
  load.known = known_to(self());
  // A swizzle only exchanges bytes within 1024-byte pieces, so whole copies stay within their bounds.
  for (const Load::Destination &to : load.to)
    if (checking) cluster->checker->begin_flight(to.shared, load.bytes, load.known, Where{load.site});
  if (!options.late) {
    arrive(load);
    return;
  }
  for (const Load::Destination &to : load.to) memset(to.shared, 0xff, load.bytes);
  cluster->tma->loads.push_back(load);
}

void tma_load(void *shared, const CUtensorMap *tensor_map, uint64_t *barrier, int rank, const int *coordinate,
              const unsigned *offset, unsigned block_mask, Site site) {
  Load load;
  memcpy(&load.map, tensor_map, sizeof load.map);
  check(load.map, rank, offset != nullptr, shared, site);
  memcpy(load.coordinate, coordinate, size_t(rank) * sizeof(int));
  for (int d = 0; d < rank - 2; d++) load.offset[d] = offset ? offset[d] : 0;
  load.bytes = bytes_of(load.map);
  load.site = site;
  if (block_mask) {
    // To the same place in each block of the mask; each one's own barrier counts its bytes.
    if (block_mask >> cluster->blocks.size())
      fail("TMA: multicast to blocks 0x%x of a cluster of %zu%s", block_mask, cluster->blocks.size(), at(site).c_str());
    SharedMemory &mine = *self()->owner->shared;
    for (Block &block : cluster->blocks)
      if (block_mask >> block.rank & 1)
        load.to.push_back({block.shared->base + mine.offset(shared),
                           reinterpret_cast<uint64_t *>(block.shared->base + mine.offset(barrier))});
  } else {
    load.to.push_back({static_cast<char *>(shared), barrier});
  }
  start(load);
}

void bulk_load(void *shared, const void *global, uint32_t bytes, uint64_t *barrier, Site site) {
  if (bytes == 0 || bytes % 16) fail("cp.async.bulk of %u bytes, not a multiple of 16%s", bytes, at(site).c_str());
  if (shared_address(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fail("cp.async.bulk: an address is not 16-byte aligned%s", at(site).c_str());
  shared_pointer(shared_address(shared), bytes);
  Load load;
  load.map = TensorMap();
  load.run = static_cast<const char *>(global);
  load.bytes = bytes;
  load.site = site;
  load.to.push_back({static_cast<char *>(shared), barrier});
  start(load);
}

bool run_background() {
  auto &loads = cluster->tma->loads;
  if (loads.empty()) return false;
  size_t i = options.order == Order::Random    ? cluster->random() % loads.size()
             : options.order == Order::Reverse ? loads.size() - 1
                                               : 0;
  Load load = std::move(loads[i]);
  loads.erase(loads.begin() + long(i));
  arrive(load);
  return true;
}

// ---- stores -------------------------------------------------------------------------------------------------

static void read_shared(Store &store) {
  if (store.read) return;
  store.read = true;
  unsigned bytes = bytes_of(store.map), me = self()->number;
  if (checking) {
    Checker &checker = *cluster->checker;
    checker.read_as(store.shared, bytes, store.known.data(), me, checker.row(me)[me], Access::Engine,
                    Where{store.site});
  }
  store.data.resize(bytes);
  for (unsigned i = 0; i < bytes / store.map.element; i++)
    memcpy(&store.data[size_t(i) * store.map.element], swizzled_pointer(store.map, store.shared, i),
           store.map.element);
}

static void write_global(Store &store) {
  read_shared(store);
  unsigned element = store.map.element, me = self()->number;
  cluster->acting = store.site;
  each_of_tile(store.map, store.coordinate, [&](unsigned i, char *p) {
    if (!p) return; // outside the tensor nothing is written
    if (checking) {
      Checker &checker = *cluster->checker;
      checker.write_as(p, element, store.known.data(), me, checker.row(me)[me], Access::Plain, Where{store.site});
    }
    memcpy(p, &store.data[size_t(i) * element], element);
  });
  cluster->acting = {};
}

void tma_store(const CUtensorMap *tensor_map, const void *shared, int rank, const int *coordinate, Site site) {
  Store store;
  memcpy(&store.map, tensor_map, sizeof store.map);
  check(store.map, rank, false, shared, site);
  memcpy(store.coordinate, coordinate, size_t(rank) * sizeof(int));
  store.shared = static_cast<char *>(const_cast<void *>(shared));
  store.site = site;
  store.known = known_to(self());
  auto &groups = cluster->tma->stores[self()->number];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(std::move(store));
  if (!options.late) write_global(groups.back().back());
}

void bulk_commit() {
  auto &groups = cluster->tma->stores[self()->number];
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void bulk_wait(int pending, bool read_only) {
  auto &groups = cluster->tma->stores[self()->number];
  int complete = int(groups.size()) - 1 - pending;
  for (int g = 0; g < complete; g++)
    for (Store &store : groups[size_t(g)]) {
      // Early, both are done already.
      if (!options.late) {
        store.read = true;
      } else if (read_only) {
        read_shared(store);
      } else {
        write_global(store);
      }
      store.waited = true;
    }
  if (!read_only && complete > 0) groups.erase(groups.begin(), groups.begin() + complete);
}

void finish_stores(Thread *thread) {
  auto found = cluster->tma->stores.find(thread->number);
  if (found == cluster->tma->stores.end()) return;
  for (Group &group : found->second)
    for (Store &store : group) {
      if (!store.waited)
        fail("a thread ends while a TMA store of its may still read shared memory: no cp.async.bulk.wait_group%s",
             at(store.site).c_str());
      if (options.late) write_global(store);
    }
}

} // namespace emu
