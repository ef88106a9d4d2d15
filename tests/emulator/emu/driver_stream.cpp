// The driver API: streams, events, capture and graphs.
#include "driver.h"
#include <chrono>

using namespace emu;

static Stream null_stream;
// Captures that are open: calls that name no stream are forbidden then.
static std::atomic<int> captures{0};
static thread_local std::vector<Stream *> capturing;

namespace {
struct Event {
  bool recorded = false, timed = true;
  double time = 0;
  std::shared_ptr<Graph> capture; // recorded in a stream that was being captured into this
};

double milliseconds() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}
} // namespace

namespace emu {

Stream *stream_of(void *handle) {
  // 0, 1 and 2 are the default stream and its two explicit names.
  if (reinterpret_cast<uintptr_t>(handle) <= 2) return &null_stream;
  return static_cast<Stream *>(handle);
}

int submit(void *handle, const char *name, std::function<int()> work) {
  Stream *stream = stream_of(handle);
  if (!stream->capture) return work();
  stream->capture->operations.push_back({name, std::move(work)});
  return SUCCESS;
}

int not_capturing(void *handle) {
  Stream *stream = stream_of(handle);
  if (!stream->capture) return SUCCESS;
  stream->invalid = true;
  return refuse(STREAM_CAPTURE_UNSUPPORTED, "a call that cannot be captured, in a stream that is being captured");
}

int nothing_capturing() {
  if (capturing.empty()) return SUCCESS;
  for (Stream *stream : capturing) stream->invalid = true;
  return refuse(STREAM_CAPTURE_UNSUPPORTED, "a call that waits for the device, while a stream is being captured");
}

int nothing_capturing_strictly() {
  for (Stream *stream : capturing)
    if (!stream->relaxed) return nothing_capturing();
  return SUCCESS;
}

} // namespace emu

// ---- streams ------------------------------------------------------------------------------------------------

EMU_API cuStreamCreateWithPriority(void **out, unsigned flags, int priority) {
  if (flags > 1) return INVALID_VALUE;
  auto stream = new Stream;
  stream->flags = flags;
  stream->priority = priority;
  *out = stream;
  return SUCCESS;
}
EMU_API cuStreamCreate(void **out, unsigned flags) { return cuStreamCreateWithPriority(out, flags, 0); }

EMU_API cuStreamDestroy_v2(void *handle) {
  Stream *stream = stream_of(handle);
  if (stream == &null_stream) return INVALID_HANDLE;
  delete stream;
  return SUCCESS;
}

EMU_API cuStreamGetFlags(void *handle, unsigned *flags) {
  *flags = stream_of(handle)->flags;
  return SUCCESS;
}
EMU_API cuStreamGetPriority(void *handle, int *priority) {
  *priority = stream_of(handle)->priority;
  return SUCCESS;
}

EMU_API cuStreamSynchronize(void *handle) {
  if (int r = not_capturing(handle)) return r;
  statistics.synchronisations++;
  return SUCCESS;
}
EMU_API cuStreamQuery(void *handle) { return not_capturing(handle); }

EMU_API cuCtxSynchronize() {
  if (int r = nothing_capturing()) return r;
  statistics.synchronisations++;
  return SUCCESS;
}

EMU_API cuLaunchHostFunc(void *handle, void (*function)(void *), void *data) {
  return submit(handle, "host function", [=] {
    function(data);
    return int(SUCCESS);
  });
}

// ---- events -------------------------------------------------------------------------------------------------

EMU_API cuEventCreate(void **out, unsigned flags) {
  auto event = new Event;
  event->timed = !(flags & 2); // CU_EVENT_DISABLE_TIMING
  *out = event;
  return SUCCESS;
}

EMU_API cuEventDestroy_v2(void *handle) {
  delete static_cast<Event *>(handle);
  return SUCCESS;
}

EMU_API cuEventRecord(void *handle, void *stream_handle) {
  auto event = static_cast<Event *>(handle);
  Stream *stream = stream_of(stream_handle);
  // Inside a capture an event is an edge of the graph, not a time.
  event->capture = stream->capture;
  event->recorded = !stream->capture;
  event->time = milliseconds();
  return SUCCESS;
}
EMU_API cuEventRecordWithFlags(void *handle, void *stream, unsigned) { return cuEventRecord(handle, stream); }

EMU_API cuStreamWaitEvent(void *stream_handle, void *handle, unsigned) {
  auto event = static_cast<Event *>(handle);
  Stream *stream = stream_of(stream_handle);
  if (event->capture) {
    // A second stream joins the capture; what it does is recorded in the order of the calls.
    if (!stream->capture) stream->capture = event->capture;
    if (stream->capture != event->capture) return STREAM_CAPTURE_UNMATCHED;
  } else if (stream->capture && event->recorded) {
    stream->invalid = true;
    return refuse(STREAM_CAPTURE_UNSUPPORTED, "a captured stream waits for an event recorded outside the capture");
  }
  return SUCCESS;
}

EMU_API cuEventSynchronize(void *handle) {
  if (static_cast<Event *>(handle)->capture) return STREAM_CAPTURE_UNSUPPORTED;
  statistics.synchronisations++;
  return SUCCESS;
}
EMU_API cuEventQuery(void *handle) {
  return static_cast<Event *>(handle)->capture ? STREAM_CAPTURE_UNSUPPORTED : SUCCESS;
}

EMU_API cuEventElapsedTime_v2(float *ms, void *start, void *end) {
  auto a = static_cast<Event *>(start), b = static_cast<Event *>(end);
  if (!a->recorded || !b->recorded || !a->timed || !b->timed) return INVALID_HANDLE;
  *ms = float(b->time - a->time);
  return SUCCESS;
}
EMU_API cuEventElapsedTime(float *ms, void *start, void *end) { return cuEventElapsedTime_v2(ms, start, end); }

// ---- capture ------------------------------------------------------------------------------------------------

EMU_API cuStreamBeginCapture_v2(void *handle, int mode) {
  Stream *stream = stream_of(handle);
  if (stream == &null_stream) return refuse(STREAM_CAPTURE_UNSUPPORTED, "the default stream cannot be captured");
  if (stream->capture) return INVALID_VALUE;
  stream->capture = std::make_shared<Graph>();
  stream->origin = true;
  stream->relaxed = mode == 2; // CU_STREAM_CAPTURE_MODE_RELAXED
  stream->invalid = false;
  capturing.push_back(stream);
  captures++;
  return SUCCESS;
}

EMU_API cuStreamEndCapture(void *handle, void **graph) {
  Stream *stream = stream_of(handle);
  *graph = nullptr;
  if (!stream->capture) return INVALID_VALUE;
  if (!stream->origin) return STREAM_CAPTURE_UNMATCHED;
  for (size_t i = 0; i < capturing.size(); i++)
    if (capturing[i] == stream) {
      capturing.erase(capturing.begin() + long(i));
      captures--;
      break;
    }
  bool invalid = stream->invalid;
  if (!invalid) *graph = new Graph(*stream->capture);
  stream->capture.reset();
  stream->origin = stream->invalid = false;
  return invalid ? STREAM_CAPTURE_INVALIDATED : SUCCESS;
}

EMU_API cuStreamIsCapturing(void *handle, int *status) {
  Stream *stream = stream_of(handle);
  *status = !stream->capture ? 0 : stream->invalid ? 2 : 1; // NONE, INVALIDATED, ACTIVE
  return SUCCESS;
}

// ---- graphs -------------------------------------------------------------------------------------------------

EMU_API cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long) {
  *executable = new Graph(*static_cast<Graph *>(graph));
  return SUCCESS;
}

namespace {
struct InstantiateParameters {
  uint64_t flags;
  void *upload_stream, *error_node;
  int result;
};
struct UpdateResult {
  int result;
  void *error_node, *error_from_node;
};
} // namespace

EMU_API cuGraphInstantiateWithParams(void **executable, void *graph, void *parameters) {
  auto p = static_cast<InstantiateParameters *>(parameters);
  p->error_node = nullptr;
  p->result = 0;
  return cuGraphInstantiateWithFlags(executable, graph, p->flags);
}

EMU_API cuGraphLaunch(void *executable, void *stream) {
  statistics.graph_launches++;
  auto graph = *static_cast<Graph *>(executable);
  // Captured into another graph, it is a child of that.
  return submit(stream, "graph", [graph] {
    for (const Operation &operation : graph.operations)
      if (int r = operation.run()) return r;
    return int(SUCCESS);
  });
}

EMU_API cuGraphUpload(void *, void *) { return SUCCESS; }
EMU_API cuGraphDestroy(void *graph) {
  delete static_cast<Graph *>(graph);
  return SUCCESS;
}
EMU_API cuGraphExecDestroy(void *executable) {
  delete static_cast<Graph *>(executable);
  return SUCCESS;
}

EMU_API cuGraphGetNodes(void *handle, void **nodes, size_t *count) {
  auto graph = static_cast<Graph *>(handle);
  if (nodes)
    for (size_t i = 0; i < graph->operations.size() && i < *count; i++) nodes[i] = &graph->operations[i];
  *count = graph->operations.size();
  return SUCCESS;
}

EMU_API cuGraphExecUpdate_v2(void *executable, void *handle, void *info) {
  auto now = static_cast<Graph *>(executable);
  auto next = static_cast<const Graph *>(handle);
  bool same = now->operations.size() == next->operations.size();
  for (size_t i = 0; same && i < now->operations.size(); i++)
    same = now->operations[i].name == next->operations[i].name;
  if (info) *static_cast<UpdateResult *>(info) = UpdateResult{same ? 0 : 2, nullptr, nullptr}; // 2: topology changed
  if (!same) return refuse(GRAPH_EXEC_UPDATE_FAILURE, "the new graph does not have the same list of operations");
  *now = *next;
  return SUCCESS;
}
