// What the tests set and read, through noiseforge-emulator's Rust side.
#include "device_memory.h"
#include "driver.h"
#include "launch.h"
#include <cstdarg>
#include <cstdio>
#include <mutex>

using namespace emu;

static std::mutex report_mutex;
static std::string report;

namespace emu {

int refuse(Result result, const char *format, ...) {
  char text[3000];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fprintf(stderr, "CUDA emulator: %s\n", text);
  std::lock_guard<std::mutex> lock(report_mutex);
  report = text;
  return result;
}

} // namespace emu

#define EMU_CONTROL extern "C" __attribute__((visibility("default")))

EMU_CONTROL void emu_set_mode(int order, uint64_t seed, int late, int check, unsigned threads) {
  std::unique_lock<std::shared_mutex> lock(launch_mutex);
  options.order = Order(order);
  options.seed = seed;
  // Races of a background copy show only while it is in flight.
  options.late = late || check;
  options.threads = threads;
  if (options.check != (check != 0)) {
    options.check = check != 0;
    // What runs unchecked leaves no records: later, all of memory counts as initialised.
    if (check) {
      start_checker_records();
    } else {
      drop_checker_records();
    }
  }
}

EMU_CONTROL void emu_set_device(int count, int major, int minor, int driver_version) {
  device.count = count;
  device.major = major;
  device.minor = minor;
  device.driver_version = driver_version;
}

EMU_CONTROL void emu_set_memory_limit(size_t bytes) { set_device_memory_limit(bytes); }
EMU_CONTROL size_t emu_memory_used() { return device_memory_used(); }

/// The counts since the last call, in the order of Stats in src/lib.rs.
EMU_CONTROL void emu_take_stats(uint64_t *out) {
  Counts counts = take_counts();
  uint64_t all[] = {
      statistics.launches.exchange(0),
      statistics.graph_launches.exchange(0),
      statistics.allocations.exchange(0),
      statistics.frees.exchange(0),
      statistics.synchronisations.exchange(0),
      statistics.copies.exchange(0),
      statistics.pageable_copies.exchange(0),
      counts.switches,
      counts.barriers,
      counts.collectives,
      counts.products,
      counts.bank_conflicts,
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) out[i] = all[i];
}

/// Copies the last report with its terminating zero, up to `size` bytes; returns its length, 0 if there is none.
EMU_CONTROL size_t emu_last_report(char *out, size_t size) {
  std::lock_guard<std::mutex> lock(report_mutex);
  if (size) snprintf(out, size, "%s", report.c_str());
  return report.size();
}
EMU_CONTROL void emu_clear_report() {
  std::lock_guard<std::mutex> lock(report_mutex);
  report.clear();
}

/// The size of parameter `index` of a kernel, with bit 31 set for a pointer; -1 if there is none, -2 if no such kernel.
EMU_CONTROL long emu_parameter(const char *kernel, unsigned index) {
  const Kernel *k = find_kernel(kernel);
  if (!k) return -2;
  if (index >= k->parameters.size()) return -1;
  return long(k->parameters[index].size) | (k->parameters[index].pointer ? 1l << 31 : 0);
}
