// A phase is complete when all arrivals have come and the bytes expected equal the bytes brought; the barrier then
// starts its next phase at once. A thread waits for the phase of a parity to be complete.
#include "mbarrier.h"
#include "checker.h"
#include "gpu.h"

namespace emu {

namespace {
struct Mbarrier {
  unsigned expected = 0; // arrivals of a phase
  unsigned missing = 0;  // of this phase
  int64_t bytes = 0;     // expected and not brought yet; negative when they came first
  unsigned phase = 0;
  Clock arriving, complete; // of this phase, and of the last complete one
};
struct Waiter {
  Thread *thread;
  uint64_t *barrier;
  unsigned parity;
};
// What lies in the 8 bytes of shared memory: that a barrier is here. Anything else was written by mistake.
constexpr uint64_t marker = 0x6d62617272696572;
} // namespace

struct Mbarriers {
  std::unordered_map<uint64_t *, Mbarrier> at;
  std::vector<Waiter> waiters;
};

void reset_mbarriers() { cluster->mbarriers = std::make_shared<Mbarriers>(); }

static Mbarrier &find(uint64_t *barrier, Site site) {
  auto &all = cluster->mbarriers->at;
  auto it = all.find(barrier);
  if (it == all.end()) fail("mbarrier used before mbarrier.init%s", at(site).c_str());
  if (*barrier != marker) fail("the memory of an mbarrier was overwritten%s", at(site).c_str());
  return it->second;
}

static void check_address(uint64_t *barrier, Site site) {
  if (reinterpret_cast<uintptr_t>(barrier) % 8) fail("mbarrier: misaligned address%s", at(site).c_str());
  Block *block = shared_owner(barrier);
  if (!block || !block->shared->holds(barrier, 8))
    fail("mbarrier outside of shared memory%s", at(site).c_str());
}

void mbarrier_init(uint64_t *barrier, unsigned count, Site site) {
  check_address(barrier, site);
  if (count == 0 || count >= 1u << 20) fail("mbarrier.init with a count of %u%s", count, at(site).c_str());
  touch(barrier, 8, true, site);
  *barrier = marker;
  Mbarrier fresh;
  fresh.expected = fresh.missing = count;
  cluster->mbarriers->at[barrier] = fresh;
}

static void complete_phase(uint64_t *barrier, Mbarrier &b) {
  if (b.missing || b.bytes) return;
  b.phase ^= 1;
  b.missing = b.expected;
  b.complete = b.arriving;
  std::vector<Thread *> woken;
  auto &waiters = cluster->mbarriers->waiters;
  for (size_t i = 0; i < waiters.size();) {
    if (waiters[i].barrier == barrier && waiters[i].parity != b.phase) {
      woken.push_back(waiters[i].thread);
      waiters.erase(waiters.begin() + long(i));
    } else {
      i++;
    }
  }
  if (cluster->checker)
    for (Thread *thread : woken) cluster->checker->acquire(b.complete, thread->number);
  wake_all(woken);
}

void mbarrier_arrive(uint64_t *barrier, unsigned arrivals, unsigned bytes, Site site) {
  check_address(barrier, site);
  Mbarrier &b = find(barrier, site);
  if (b.missing < arrivals)
    fail("mbarrier: more arrivals than the %u of a phase%s", b.expected, at(site).c_str());
  b.missing -= arrivals;
  b.bytes += bytes;
  if (cluster->checker && arrivals) cluster->checker->release(b.arriving, self()->number);
  complete_phase(barrier, b);
}

void mbarrier_wait(uint64_t *barrier, unsigned parity, Site site) {
  check_address(barrier, site);
  Mbarrier &b = find(barrier, site);
  if (parity > 1) fail("mbarrier: a parity of %u%s", parity, at(site).c_str());
  if (b.phase != parity) {
    if (cluster->checker) cluster->checker->acquire(b.complete, self()->number);
    return;
  }
  cluster->mbarriers->waiters.push_back({self(), barrier, parity});
  wait_here("an mbarrier", site);
}

void mbarrier_complete(uint64_t *barrier, uint32_t bytes, uint32_t time) {
  Mbarrier &b = find(barrier, {});
  b.bytes -= bytes;
  if (cluster->checker) cluster->checker->engine_release(b.arriving, time);
  complete_phase(barrier, b);
}

std::string state_of_wait(const Thread *thread) {
  for (const Waiter &waiter : cluster->mbarriers->waiters) {
    if (waiter.thread != thread) continue;
    const Mbarrier &b = cluster->mbarriers->at[waiter.barrier];
    return " (for parity " + std::to_string(waiter.parity) + ": " + std::to_string(b.missing) + " of " +
           std::to_string(b.expected) + " arrivals and " + std::to_string(b.bytes) + " bytes are missing)";
  }
  return "";
}

} // namespace emu
