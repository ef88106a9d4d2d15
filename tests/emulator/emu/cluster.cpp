// Clusters: blocks that run together, meet at a barrier and reach each other's shared memory.
#include "checker.h"
#include "gpu.h"

namespace emu {

unsigned cluster_rank() { return self()->owner->rank; }
unsigned cluster_size() { return unsigned(cluster->blocks.size()); }

void cluster_arrive(Site site) {
  Barrier &barrier = cluster->rendezvous;
  Thread *me = self();
  if (me->meeting != Meeting::None) fail("barrier.cluster.arrive twice without a wait%s", at(site).c_str());
  me->meeting = Meeting::Arrived;
  barrier.arrived++;
  if (cluster->checker) cluster->checker->release(barrier.clock, me->number);
  if (barrier.arrived < int(cluster->threads.size())) return;
  barrier.arrived = 0;
  barrier.complete.swap(barrier.clock);
  barrier.clock.clear();
  for (Thread &thread : cluster->threads) thread.meeting = Meeting::Complete;
  wake_all(barrier.waiting);
}

void cluster_wait(Site site) {
  Barrier &barrier = cluster->rendezvous;
  Thread *me = self();
  if (me->meeting == Meeting::None) fail("barrier.cluster.wait without an arrive%s", at(site).c_str());
  if (me->meeting == Meeting::Arrived) {
    barrier.waiting.push_back(me);
    wait_here("barrier.cluster.wait", site);
  }
  me->meeting = Meeting::None;
  // The next phase cannot complete, and replace this clock, before this thread arrives for it.
  if (cluster->checker) cluster->checker->acquire(barrier.complete, me->number);
}

void *cluster_map(void *p, unsigned rank, Site site) {
  if (rank >= cluster->blocks.size())
    fail("mapa: there is no block %u in a cluster of %zu%s", rank, cluster->blocks.size(), at(site).c_str());
  SharedMemory &mine = *self()->owner->shared;
  if (!mine.near(p)) fail("mapa: the address is not in the block's shared memory%s", at(site).c_str());
  return cluster->blocks[rank].shared->base + mine.offset(p);
}

} // namespace emu
