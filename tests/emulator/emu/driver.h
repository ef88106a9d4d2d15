// What the parts of the driver API share. The API's types are opaque to its callers and plain structures here; no
// header of NVIDIA's is needed. Work in a stream is done at once, in the call; a stream that is being captured
// records it instead.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#define EMU_API extern "C" __attribute__((visibility("default"))) int

namespace emu {

// Numbers of cuda.h.
enum Result {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  NO_BINARY_FOR_GPU = 209,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  LAUNCH_OUT_OF_RESOURCES = 701,
  MISALIGNED_ADDRESS = 716,
  LAUNCH_FAILED = 719,
  COOPERATIVE_LAUNCH_TOO_LARGE = 720,
  NOT_SUPPORTED = 801,
  STREAM_CAPTURE_UNSUPPORTED = 900,
  STREAM_CAPTURE_INVALIDATED = 901,
  STREAM_CAPTURE_UNMATCHED = 903,
  STREAM_CAPTURE_UNJOINED = 904,
  GRAPH_EXEC_UPDATE_FAILURE = 910,
  INVALID_CLUSTER_SIZE = 912,
};

/// Says on standard error, and to last_report, why a call fails; returns `result`.
int refuse(Result result, const char *format, ...) __attribute__((format(printf, 2, 3)));

/// What the tests set and read; see control.cpp.
struct Device {
  std::atomic<int> count{1}, major{9}, minor{0}, driver_version{13000};
  std::atomic<bool> initialised{false};
};
extern Device device;

struct Statistics {
  std::atomic<uint64_t> launches{0}, graph_launches{0};
  std::atomic<uint64_t> allocations{0}, frees{0}; // of device and of pinned memory
  std::atomic<uint64_t> synchronisations{0};      // of host and device, blocking copies included
  std::atomic<uint64_t> copies{0}, pageable_copies{0};
};
extern Statistics statistics;

// Limits of a device of compute capability 9.0.
constexpr unsigned max_block_threads = 1024, max_dynamic_shared = 227 << 10, default_dynamic_shared = 48 << 10;
constexpr unsigned multiprocessors = 4, shared_per_multiprocessor = 228 << 10, max_resident_threads = 2048;

/// One piece of work of a stream.
struct Operation {
  std::string name; // a graph may be updated only by one with the same list of these
  std::function<int()> run;
};

struct Graph {
  std::vector<Operation> operations;
};

struct Stream {
  std::shared_ptr<Graph> capture; // null unless it is being captured
  bool origin = false;            // capture began here
  bool relaxed = false;           // in the mode that allows calls which might wait, such as allocating
  bool invalid = false;           // a forbidden call was made while it was captured
  unsigned flags = 0;
  int priority = 0;
};

/// Null if the handle is none.
Stream *stream_of(void *handle);
/// Does the work now, or records it.
int submit(void *stream, const char *name, std::function<int()> work);
/// An error if the stream is being captured: for calls that may not be captured.
int not_capturing(void *stream);
/// The same for calls that name no stream: no stream may be being captured by this thread.
int nothing_capturing();
/// The same for calls that only might wait: a relaxed capture allows them.
int nothing_capturing_strictly();

} // namespace emu
