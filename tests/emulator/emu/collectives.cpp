// What several threads do at one point: barriers of the block and collectives of the warp.
#include "checker.h"
#include "report.h"
#include "state.h"
#include "warp.h"

namespace emu {

static int join_barrier(int id, int count, bool arrive_only, bool predicate, const char *what, Site site) {
  Thread *me = self();
  Barrier &barrier = me->owner->barriers[id];
  int need = count < 0 ? int(cluster->block_threads) : count;
  if (count > 0 && count % 32)
    fail("barrier %d: %d threads are not a multiple of 32%s", id, count, at(site).c_str());
  if (barrier.arrived == 0) {
    barrier.need = need;
    barrier.count = 0;
  } else if (barrier.need != need) {
    fail("barrier %d: thread counts %d and %d differ%s", id, barrier.need, need, at(site).c_str());
  }
  cluster->counts.barriers++;
  barrier.arrived++;
  barrier.count += predicate;
  if (cluster->checker) cluster->checker->release(barrier.clock, me->number);
  if (!arrive_only) {
    me->state = State::Waiting;
    barrier.waiting.push_back(me);
  }
  if (barrier.arrived == barrier.need) {
    for (Thread *thread : barrier.waiting) {
      thread->result = barrier.count;
      if (cluster->checker) cluster->checker->acquire(barrier.clock, thread->number);
    }
    barrier.clock.clear();
    barrier.arrived = 0;
    wake_all(barrier.waiting);
    if (!arrive_only) take_turns();
  } else if (!arrive_only) {
    wait_here(what, site);
  }
  return me->result;
}

void barrier(int id, int count, bool arrive_only, Site site) {
  if (id < 0 || id > 15) fail("barrier %d: there are 16%s", id, at(site).c_str());
  join_barrier(id, count, arrive_only, false, id ? "bar.sync" : "__syncthreads", site);
}

int barrier_count(bool predicate, Site site) {
  return join_barrier(0, -1, false, predicate, "__syncthreads", site);
}

void thread_fence() {
  if (cluster->checker) cluster->checker->fence(self()->number);
}

void collective(uint32_t mask, const char *what, const void *operands, Collective act, bool orders_memory, Site site) {
  Thread *me = self();
  Warp *warp = me->warp;
  mask &= warp->lanes; // the last warp of a block may be short
  if (!(mask >> me->lane & 1))
    fail("%s: the calling lane %u is not in the mask 0x%08x%s", what, me->lane, mask, at(site).c_str());
  cluster->counts.collectives++;

  Pending *pending = nullptr;
  for (Pending &p : warp->pending)
    if (p.arrived && p.mask == mask) pending = &p;
  if (!pending) {
    for (Pending &p : warp->pending)
      if (!p.arrived) pending = &p;
    if (!pending) {
      warp->pending.emplace_back();
      pending = &warp->pending.back();
    }
    *pending = Pending();
    pending->mask = mask;
    pending->what = what;
  }
  if (pending->what != what && strcmp(pending->what, what) != 0)
    fail("divergent warp: lane %u is in %s%s while others of mask 0x%08x wait in %s", me->lane, what,
         at(site).c_str(), mask, pending->what);

  pending->arrived |= 1u << me->lane;
  // A null operand would look like an absent lane.
  pending->operands[me->lane] = operands ? operands : me;
  pending->threads[me->lane] = me;
  if (pending->arrived != mask) {
    wait_here(what, site);
    return;
  }

  cluster->acting = site;
  act(pending->operands, mask);
  cluster->acting = {};
  if (cluster->checker && orders_memory) {
    Clock clock;
    for (int l = 0; l < 32; l++)
      if (mask >> l & 1) cluster->checker->release(clock, pending->threads[l]->number);
    for (int l = 0; l < 32; l++)
      if (mask >> l & 1) cluster->checker->acquire(clock, pending->threads[l]->number);
  }
  pending->arrived = 0;
  for (int i = 0; i < 32; i++) {
    int l = options.order == Order::Reverse ? 31 - i : i;
    if (mask >> l & 1) wake(pending->threads[l]);
  }
  take_turns();
}

} // namespace emu
