// cp.async: 4, 8 or 16 bytes that a thread copies in the background, in groups that it waits for. Early, a copy is
// done at once; late, only when its thread waits for its group, and until then the bytes are NaN.
#include "async_copy.h"
#include "checker.h"
#include "gpu.h"

namespace emu {

namespace {
struct Copy {
  void *to;
  const void *from; // null: zeros
  int bytes;
  Site site;
};
} // namespace

/// For each thread of the cluster its groups, oldest first; the last one is still open.
struct CopyGroups {
  std::vector<std::vector<std::vector<Copy>>> of;
};

void reset_copies() {
  if (!cluster->copies) cluster->copies = std::make_shared<CopyGroups>();
  cluster->copies->of.assign(options.late ? cluster->threads.size() : 0, {});
}

static void arrive(const Copy &copy) {
  if (checking) {
    unsigned me = self()->number;
    if (copy.from) touch(copy.from, size_t(copy.bytes), false, copy.site);
    cluster->checker->land(copy.to, size_t(copy.bytes), me, cluster->checker->row(me)[me], Access::Plain);
  }
  if (copy.from) {
    memcpy(copy.to, copy.from, size_t(copy.bytes));
  } else {
    memset(copy.to, 0, size_t(copy.bytes));
  }
}

void copy_async(void *shared, const void *global, int bytes, bool valid, Site site) {
  size_t size = size_t(bytes);
  if (reinterpret_cast<uintptr_t>(shared) % size || (valid && reinterpret_cast<uintptr_t>(global) % size))
    fail("cp.async: misaligned copy of %d bytes%s", bytes, at(site).c_str());
  if (!self()->owner->shared->holds(shared, size))
    fail("cp.async: the destination is outside the block's shared memory%s", at(site).c_str());
  Copy copy{shared, valid ? global : nullptr, bytes, site};
  if (!options.late) {
    arrive(copy);
    return;
  }
  if (checking) cluster->checker->begin_flight(shared, size, cluster->checker->snapshot(self()->number), Where{site});
  memset(shared, 0xff, size);
  auto &groups = cluster->copies->of[self()->number];
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(copy);
}

void copy_commit() {
  if (!options.late) return;
  auto &groups = cluster->copies->of[self()->number];
  if (groups.empty()) groups.emplace_back();
  groups.emplace_back();
}

void copy_wait(int pending) {
  if (!options.late) return;
  auto &groups = cluster->copies->of[self()->number];
  while (int(groups.size()) - 1 > pending) {
    for (const Copy &copy : groups.front()) arrive(copy);
    groups.erase(groups.begin());
  }
}

void finish_copies(Thread *thread) {
  if (!options.late) return;
  for (auto &group : cluster->copies->of[thread->number])
    for (const Copy &copy : group) arrive(copy);
}

} // namespace emu
