#include "checker.h"
#include "device_memory.h"
#include <algorithm>

namespace emu {

bool checking = false;

// Runs before this one belong to an earlier launch: their work is complete and races with nothing.
static uint32_t last_run = 0, first_run_of_launch = 1;

// What was published through atomics in this launch: by address, then by run.
struct Publication {
  uint32_t run;
  std::shared_ptr<Clock> clock;
};
static std::unordered_map<void *, std::vector<Publication>> published;

void begin_checked_launch() {
  start_checker_records();
  first_run_of_launch = last_run + 1;
  published.clear();
}

void Checker::start() {
  run = ++last_run;
  rows.assign(size_t(width - 1) * width, 0);
  // A thread comes after its own work; times start at 1, so that 0 is before everything.
  for (unsigned t = 0; t + 1 < width; t++) row(t)[t] = 1;
  fenced.assign(width, 0);
  proxy_fenced.assign(width, 0);
  engine_time = 0;
  learned.clear();
  recent.clear();
}

static void join(uint32_t *into, const uint32_t *from, unsigned width) {
  for (unsigned i = 0; i < width; i++) into[i] = std::max(into[i], from[i]);
}

void Checker::release(Clock &clock, unsigned thread) {
  clock.resize(width);
  join(clock.data(), row(thread), width);
  row(thread)[thread]++;
}

void Checker::acquire(const Clock &clock, unsigned thread) {
  if (clock.size() == width) join(row(thread), clock.data(), width);
}

void Checker::fence(unsigned thread) { join(fenced.data(), row(thread), width); }

void Checker::fence_proxy(unsigned thread) { join(proxy_fenced.data(), row(thread), width); }

void Checker::synchronise(void *p, unsigned thread) {
  auto &here = published[p];
  // Only what is behind a fence is published. The fence may be another thread's, before a barrier.
  auto mine = std::make_shared<Clock>(row(thread), row(thread) + width);
  for (unsigned i = 0; i < width; i++) (*mine)[i] = std::min((*mine)[i], fenced[i]);
  bool found = false;
  for (Publication &other : here) {
    if (other.run == run) {
      acquire(*other.clock, thread);
      join(mine->data(), other.clock->data(), width);
      other.clock = mine;
      found = true;
    } else {
      // Two clocks of one run are joined in a new one: others may hold the old.
      auto &known = learned[other.run];
      if (!known) {
        known = other.clock;
      } else if (known != other.clock) {
        auto both = std::make_shared<Clock>(*known);
        join(both->data(), other.clock->data(), unsigned(both->size()));
        known = both;
      }
    }
  }
  if (!found) here.push_back({run, mine});
  row(thread)[thread]++;
}

bool Checker::find(const void *p, size_t size, const char *verb, const Where &where, Target &out) {
  if (Block *block = shared_owner(p)) {
    SharedMemory &shared = *block->shared;
    if (!shared.holds(p, size))
      fail("out-of-bounds %s of %zu bytes in shared memory: byte %zd of %zu static, byte %zd of %zu dynamic%s", verb, size,
           static_cast<const char *>(p) - shared.base, shared.static_size,
           static_cast<const char *>(p) - shared.dynamic, shared.dynamic_size, where.text().c_str());
    if (!block->live)
      fail("%s of shared memory of block %u of the cluster, which has exited%s", verb, block->rank, where.text().c_str());
    out = {shared.cells + shared.offset(p), nullptr, "shared"};
    return true;
  }
  if (!in_device_memory(p)) return false;
  auto c = static_cast<const char *>(p);
  Buffer *buffer = nullptr;
  for (Buffer *b : recent)
    if (c >= b->data && c + size <= b->data + b->size) buffer = b;
  if (!buffer) {
    buffer = find_buffer(p, size);
    if (!buffer) {
      std::string what = describe(find_buffer(p, 1) ? c + size - 1 : c);
      fail("out-of-bounds %s of %zu bytes: %s%s", verb, size, what.c_str(), where.text().c_str());
    }
    if (recent.size() == 8) recent.erase(recent.begin());
    recent.push_back(buffer);
  }
  size_t offset = size_t(c - buffer->data);
  out = {buffer->cells + offset, buffer->initialised + offset, "global"};
  return true;
}

bool Checker::comes_after(const Target &target, const Event &event, uint32_t other_run, unsigned other,
                          uint32_t time) const {
  if (other == 0 || other_run < first_run_of_launch) return true;
  // What another block left behind in shared memory is no access to this block's.
  if (other_run != run && !target.initialised) return true;
  // A component knows its own work; what is in flight is nobody's yet.
  if (other_run == run) return (other - 1 == event.as && time != UINT32_MAX) || event.known[other - 1] >= time;
  auto known = learned.find(other_run);
  return known != learned.end() && (*known->second)[other - 1] >= time;
}

void Checker::race(const Target &target, const Event &event, const char *verb, uint32_t other_run, unsigned other,
                   const char *other_verb) {
  std::string place = event.where.text();
  const char *who = event.kind == Access::Engine ? "the copy engine or tensor core" : "this thread";
  if (other_run != run)
    fail("race between blocks on %s memory: %s by this block, %s by another, not ordered%s", target.name, verb,
         other_verb, place.c_str());
  if (other == width)
    fail("race on %s memory: %s by %s, %s by the copy engine, no wait between%s", target.name, verb, who, other_verb,
         place.c_str());
  dim3 t = cluster->threads[other - 1].index;
  fail("race on %s memory: %s by %s, %s by thread (%u,%u,%u), no barrier between%s", target.name, verb, who,
       other_verb, t.x, t.y, t.z, place.c_str());
}

void Checker::check_read(Cell *cell, const Target &target, const Event &event) {
  bool both_atomic = event.kind == Access::Atomic && cell->kind == uint16_t(Access::Atomic);
  if (!both_atomic && !comes_after(target, event, cell->write_run, cell->writer, cell->write_clock))
    race(target, event, "read", cell->write_run, cell->writer, "write");
  unsigned me = event.as + 1;
  if (cell->read_run != run) {
    cell->read_run = run;
    cell->reader[0] = cell->reader[1] = 0;
  }
  // Two readers are kept: the last, and the last one of another warp than it. A write that races with any reader
  // nearly always races with one of these.
  if (cell->reader[0] != me) {
    if ((cell->reader[0] - 1u) / 32 != event.as / 32) {
      cell->reader[1] = cell->reader[0];
      cell->read_clock[1] = cell->read_clock[0];
    }
    cell->reader[0] = uint16_t(me);
  }
  cell->read_clock[0] = event.time;
}

void Checker::check_write(Cell *cell, const Target &target, const Event &event) {
  bool both_atomic = event.kind == Access::Atomic && cell->kind == uint16_t(Access::Atomic);
  if (!both_atomic && !comes_after(target, event, cell->write_run, cell->writer, cell->write_clock))
    race(target, event, "write", cell->write_run, cell->writer, "write");
  for (int i = 0; i < 2; i++)
    if (!comes_after(target, event, cell->read_run, cell->reader[i], cell->read_clock[i]))
      race(target, event, "write", cell->read_run, cell->reader[i], "read");
  cell->write_run = run;
  cell->write_clock = event.time;
  cell->writer = uint16_t(event.as + 1);
  cell->kind = uint16_t(event.kind);
  cell->reader[0] = cell->reader[1] = 0;
}

static void check_alignment(const void *p, size_t size, const Where &where) {
  bool power = (size & (size - 1)) == 0;
  if (power && size <= 16 && reinterpret_cast<uintptr_t>(p) % size)
    fail("misaligned access of %zu bytes%s", size, where.text().c_str());
}

void Checker::read_as(const void *p, size_t size, const uint32_t *known, unsigned as, uint32_t time, Access kind,
                      const Where &where) {
  Target target;
  if (!find(p, size, "read", where, target)) return;
  if (kind != Access::Engine) check_alignment(p, size, where);
  Event event{known, as, time, kind, where};
  for (size_t i = 0; i < size; i++) {
    Cell *cell = target.cells + i;
    bool written = target.initialised ? target.initialised[i] : cell->write_run == run;
    if (!written) fail("read of uninitialised %s memory%s", target.name, where.text().c_str());
    // An atomic only needs to know that there is a value: its read is part of its write.
    if (kind != Access::Atomic) check_read(cell, target, event);
    // What a thread wrote to shared memory is seen by TMA and wgmma only behind fence.proxy.async.
    bool proxy = kind == Access::Engine && !target.initialised && cell->kind != uint16_t(Access::Engine);
    if (proxy && proxy_fenced[cell->writer - 1u] < cell->write_clock)
      fail("the copy engine or tensor core reads shared memory that thread %u wrote, with no fence.proxy.async "
           "after it%s",
           cell->writer - 1u, where.text().c_str());
  }
}

void Checker::write_as(const void *p, size_t size, const uint32_t *known, unsigned as, uint32_t time, Access kind,
                       const Where &where) {
  Target target;
  if (!find(p, size, "write", where, target)) return;
  if (kind != Access::Engine) check_alignment(p, size, where);
  Event event{known, as, time, kind, where};
  for (size_t i = 0; i < size; i++) check_write(target.cells + i, target, event);
  if (target.initialised) memset(target.initialised, 1, size);
}

void Checker::begin_flight(const void *p, size_t size, const Clock &known, const Where &where) {
  // A time that nobody can know of.
  write_as(p, size, known.data(), engine(), UINT32_MAX, Access::Engine, where);
}

void Checker::land(const void *p, size_t size, unsigned as, uint32_t time, Access kind) {
  Target target;
  if (!find(p, size, "write", Where{}, target)) return;
  for (size_t i = 0; i < size; i++) {
    target.cells[i].writer = uint16_t(as + 1);
    target.cells[i].write_clock = time;
    target.cells[i].kind = uint16_t(kind);
  }
}

void Checker::engine_release(Clock &clock, uint32_t time) {
  clock.resize(width);
  clock[engine()] = std::max(clock[engine()], time);
}

void touch(const void *p, size_t size, bool write, Site site) {
  if (!checking) return;
  unsigned me = self()->number;
  if (write) {
    cluster->checker->write(p, size, me, Access::Plain, Where{site});
  } else {
    cluster->checker->read(p, size, me, Access::Plain, Where{site});
  }
}

} // namespace emu
