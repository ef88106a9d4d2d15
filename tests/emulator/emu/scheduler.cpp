// Which thread runs. A thread runs until it must wait; then the next ready one does. The order of readiness is what
// the modes vary: a kernel whose result depends on it has a race.
#include "async_copy.h"
#include "checker.h"
#include "mbarrier.h"
#include "report.h"
#include "state.h"
#include "tma.h"
#include <algorithm>
#include <stdexcept>

namespace emu {

__thread ThreadView *current = nullptr;
__thread Cluster *cluster = nullptr;
Options options;

uint32_t Cluster::random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return uint32_t(random_state >> 32);
}

void wake(Thread *thread) {
  thread->state = State::Ready;
  cluster->ready.push_back(thread);
}

void wake_all(std::vector<Thread *> &threads) {
  auto up = [](Thread *a, Thread *b) { return a->number < b->number; };
  auto down = [](Thread *a, Thread *b) { return a->number > b->number; };
  switch (options.order) {
  case Order::Forward:
    if (!std::is_sorted(threads.begin(), threads.end(), up)) std::sort(threads.begin(), threads.end(), up);
    break;
  case Order::Reverse:
    if (!std::is_sorted(threads.begin(), threads.end(), down)) std::sort(threads.begin(), threads.end(), down);
    break;
  case Order::Random: break; // next() draws
  }
  for (Thread *thread : threads) wake(thread);
  threads.clear();
}

static Thread *next() {
  auto &ready = cluster->ready;
  size_t &head = cluster->head;
  if (head == ready.size()) {
    ready.clear();
    head = 0;
    return nullptr;
  }
  if (options.order == Order::Random) std::swap(ready[head], ready[head + cluster->random() % (ready.size() - head)]);
  Thread *thread = ready[head++];
  if (head > 4096) {
    ready.erase(ready.begin(), ready.begin() + long(head));
    head = 0;
  }
  return thread;
}

[[noreturn]] static void deadlock() {
  std::string text = "deadlock: no thread can go on.";
  unsigned shown = 0, done = 0;
  Thread *first = nullptr;
  for (Thread &thread : cluster->threads) {
    if (thread.state == State::Done) done++;
    if (thread.state != State::Waiting) continue;
    if (!first) first = &thread;
    // The first that waits, and one of each other warp: enough to see who is missing.
    if (shown == 16 || (shown > 0 && thread.lane != 0)) continue;
    char name[100];
    dim3 t = thread.index;
    snprintf(name, sizeof name, " thread (%u,%u,%u) waits in ", t.x, t.y, t.z);
    text += name + std::string(thread.waits_in) + state_of_wait(&thread) + at(thread.waits_at) + ";";
    shown++;
  }
  current = first;
  fail("%s threads exited: %u of %zu", text.c_str(), done, cluster->threads.size());
}

// Called by a thread that cannot go on, or that has ended.
static void run_others() {
  Thread *me = self(), *thread;
  while (!(thread = next())) {
    if (run_background()) continue;
    if (cluster->live > 0) deadlock();
    cluster->counts.switches++;
    current = nullptr;
    fiber_switch(me->fiber, cluster->host);
    return;
  }
  if (thread == me) return;
  cluster->counts.switches++;
  current = thread;
  fiber_switch(me->fiber, thread->fiber);
}

void wait_here(const char *what, Site site) {
  Thread *me = self();
  me->state = State::Waiting;
  me->waits_in = what;
  me->waits_at = site;
  run_others();
}

void take_turns() { run_others(); }

static void thread_main() {
  cluster->kernel->call(cluster->arguments);
  Thread *me = self();
  finish_copies(me);
  finish_stores(me);
  me->state = State::Done;
  me->owner->live--;
  cluster->live--;
  run_others();
  __builtin_unreachable();
}

void run_cluster() {
  Cluster &c = *cluster;
  c.ready.clear();
  c.head = 0;
  c.live = unsigned(c.threads.size());
  c.failed = false;
  std::vector<Thread *> all;
  for (Thread &thread : c.threads) {
    // Stacks start a little apart: all at one offset of a page would share a few lines of the cache.
    size_t shift = (thread.number & 63) * 64;
    char *stack = c.stacks + thread.number * stack_size;
    fiber_prepare(thread.fiber, stack, stack_size - shift, thread_main);
    all.push_back(&thread);
  }
  wake_all(all);

  Thread *first = next();
  current = first;
  c.on_fiber = true;
  fiber_switch(c.host, first->fiber);
  c.on_fiber = false;
  current = nullptr;
  if (c.failed) throw std::runtime_error(c.report);

  for (Block &block : c.blocks) {
    for (Barrier &barrier : block.barriers)
      if (barrier.arrived) {
        current = &c.threads[block.rank * c.block_threads];
        fail("threads exited while %d of %d had arrived at a barrier", barrier.arrived, barrier.need);
      }
    block.shared->check_end();
  }
}

} // namespace emu
