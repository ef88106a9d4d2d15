// The exact checker: every load and store of a kernel passes through it when it is on. For each byte it knows who
// wrote and who read it last and when; for each thread, what of the others' work it comes after. It finds races
// within a block, within a cluster and between blocks, accesses out of bounds, reads of what nobody wrote, and
// misaligned accesses.
#pragma once
#include "report.h"
#include "state.h"

namespace emu {

/// What is remembered of one byte. Runs number the executions of clusters through the life of the process; thread
/// numbers here are one more than Thread::number, 0 meaning none.
struct Cell {
  uint32_t write_run, write_clock;
  uint32_t read_run, read_clock[2];
  uint16_t writer, reader[2];
  // How the last write was made: plain, atomic (two of these do not race) or by the copy engine.
  uint16_t kind;
};

enum class Access : uint16_t { Plain, Atomic, Engine };

/// Where an access happened: in a line of source, or at an instruction.
struct Where {
  Site site = {};
  const void *code = nullptr;
  std::string text() const { return code ? at_code(code) : at(site); }
};

/// Whether the hooks in instrumented code do anything.
extern bool checking;

struct Checker {
  explicit Checker(unsigned threads) : width(threads + 1) {}

  /// Before each run of the cluster.
  void start();

  uint32_t *row(unsigned thread) { return &rows[size_t(thread) * width]; }
  /// clock comes after everything `thread` did.
  void release(Clock &clock, unsigned thread);
  /// `thread` comes after everything the clock comes after.
  void acquire(const Clock &clock, unsigned thread);
  /// __threadfence: what this thread knows of becomes visible to other blocks.
  void fence(unsigned thread);
  /// fence.proxy.async: what this thread knows of becomes visible to TMA and wgmma.
  void fence_proxy(unsigned thread);
  /// An atomic operation on p: publishes what is fenced, and learns what others published there.
  void synchronise(void *p, unsigned thread);

  void read(const void *p, size_t size, unsigned thread, Access kind, const Where &where) {
    read_as(p, size, row(thread), thread, row(thread)[thread], kind, where);
  }
  void write(const void *p, size_t size, unsigned thread, Access kind, const Where &where) {
    write_as(p, size, row(thread), thread, row(thread)[thread], kind, where);
  }
  /// An access by component `as` of the clocks at its `time`, ordered after what `known` comes after: background work
  /// knows what its issuer knew when it was asked for.
  void read_as(const void *p, size_t size, const uint32_t *known, unsigned as, uint32_t time, Access kind,
               const Where &where);
  void write_as(const void *p, size_t size, const uint32_t *known, unsigned as, uint32_t time, Access kind,
                const Where &where);
  /// A copy to [p, p + size) begins: until it lands, whoever reads or writes there races with it.
  void begin_flight(const void *p, size_t size, const Clock &known, const Where &where);
  /// It has landed; the write counts as that of `as` at `time`.
  void land(const void *p, size_t size, unsigned as, uint32_t time, Access kind);

  /// The copy engine's component, and a new time of it.
  unsigned engine() const { return width - 1; }
  uint32_t tick() { return ++engine_time; }
  /// clock comes after everything that the copy engine did up to `time`.
  void engine_release(Clock &clock, uint32_t time);

  /// What `thread` did and knows of up to now; what it does later is not in it.
  Clock snapshot(unsigned thread) {
    Clock clock(row(thread), row(thread) + width);
    row(thread)[thread]++;
    return clock;
  }

  const unsigned width; // of a clock: threads, then the copy engine
  uint32_t run = 0;

private:
  /// Memory that is checked, and where its records are.
  struct Target {
    Cell *cells;
    uint8_t *initialised; // null for shared memory, where the cells tell
    const char *name;
  };
  /// One access, as the messages tell it.
  struct Event {
    const uint32_t *known; // the clock of who makes it
    unsigned as;           // its component
    uint32_t time;         // of that component
    Access kind;
    const Where &where;
  };
  bool find(const void *p, size_t size, const char *verb, const Where &where, Target &out);
  bool comes_after(const Target &target, const Event &event, uint32_t run, unsigned writer, uint32_t time) const;
  void check_read(Cell *cell, const Target &target, const Event &event);
  void check_write(Cell *cell, const Target &target, const Event &event);
  [[noreturn]] void race(const Target &target, const Event &event, const char *verb, uint32_t run, unsigned other,
                         const char *other_verb);

  std::vector<uint32_t> rows;
  Clock fenced, proxy_fenced;
  uint32_t engine_time = 0;
  // What this cluster learned of others through atomics: by run.
  std::unordered_map<uint32_t, std::shared_ptr<Clock>> learned;
  std::vector<struct Buffer *> recent; // buffers used lately: saves the search
};

/// Before each launch that is checked.
void begin_checked_launch();

/// An access that an emulated instruction makes for the running thread; nothing if the checker is off.
void touch(const void *p, size_t size, bool write, Site site);

} // namespace emu
