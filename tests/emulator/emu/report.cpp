#include "report.h"
#include "device_memory.h"
#include "state.h"
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <mutex>
#include <stdexcept>
#include <ucontext.h>

namespace emu {

void fail(const char *format, ...) {
  char text[2000];
  va_list arguments;
  va_start(arguments, format);
  int n = vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  if (n < 0 || n > int(sizeof text) - 1) n = sizeof text - 1;

  std::string report(text, size_t(n));
  // A collective's operation does not know where it was called.
  bool has_line = report.find(".cu:") != std::string::npos || report.find(".cuh:") != std::string::npos;
  if (cluster && !has_line) report += at(cluster->acting);
  if (cluster && cluster->kernel && current) {
    dim3 b = current->block->index, t = current->index;
    char place[300];
    snprintf(place, sizeof place, " [kernel %s, block (%u,%u,%u), thread (%u,%u,%u)]", cluster->kernel->name, b.x,
             b.y, b.z, t.x, t.y, t.z);
    report += place;
  }
  current = nullptr;
  if (!cluster || !cluster->on_fiber) throw std::runtime_error(report);
  // The threads' stacks are simply abandoned.
  cluster->report = report;
  cluster->failed = true;
  Fiber gone;
  fiber_switch(gone, cluster->host);
  __builtin_unreachable();
}

std::string at(Site site) {
  if (!site.file) return "";
  return std::string(" at ") + site.file + ":" + std::to_string(site.line);
}

std::string at_code(const void *pc) {
  Dl_info info;
  if (!pc || !dladdr(pc, &info) || !info.dli_fname) return "";
  // One byte back: into the call or the instruction itself, not the one behind it.
  auto offset = reinterpret_cast<uintptr_t>(pc) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
  char command[1200], line[1200] = "";
  snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx 2>/dev/null", info.dli_fname, size_t(offset));
  if (FILE *pipe = popen(command, "r")) {
    if (fgets(line, sizeof line, pipe)) line[strcspn(line, "\n")] = 0;
    pclose(pipe);
  }
  if (!*line || *line == '?') return " (no line: is addr2line of binutils missing?)";
  // "file.cu:12 (discriminator 3)"
  if (char *extra = strstr(line, " (")) *extra = 0;
  return std::string(" at ") + line;
}

static struct sigaction before_segv, before_bus, before_fpe;

static const void *code_of(void *context) {
  auto &machine = static_cast<ucontext_t *>(context)->uc_mcontext;
#if defined(__x86_64__)
  return reinterpret_cast<const void *>(machine.gregs[REG_RIP] + 1);
#elif defined(__aarch64__)
  return reinterpret_cast<const void *>(machine.pc + 1);
#else
  (void)machine;
  return nullptr;
#endif
}

static void on_fault(int signal_number, siginfo_t *info, void *context) {
  if (current && cluster && cluster->on_fiber) {
    std::string place = at_code(code_of(context));
    if (signal_number == SIGFPE) fail("division of an integer by zero%s", place.c_str());
    auto address = static_cast<char *>(info->si_addr);
    std::string what;
    if (in_device_memory(address)) {
      what = describe(address);
    } else if (shared_owner(address)) {
      what = "outside the block's shared memory";
    } else if (address >= cluster->stacks && address < cluster->stacks + cluster->stack_count * stack_size) {
      what = "the emulator's stack for this thread is full";
    } else if (address < reinterpret_cast<char *>(4096)) {
      // The processor gives no address for a misaligned vector access.
      what = "a null pointer, or a misaligned 16-byte access";
    } else {
      what = "not device memory";
    }
    fail("illegal address %p: %s%s", static_cast<void *>(address), what.c_str(), place.c_str());
  }
  // Not ours: whoever was there before gets it.
  struct sigaction &old = signal_number == SIGSEGV ? before_segv : signal_number == SIGBUS ? before_bus : before_fpe;
  if (old.sa_flags & SA_SIGINFO) {
    old.sa_sigaction(signal_number, info, context);
  } else {
    signal(signal_number, SIG_DFL);
    raise(signal_number);
  }
}

FaultGuard::FaultGuard(char *stack) {
  static_assert(sizeof(stack_t) <= sizeof before, "");
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    // No signal mask: the handler is left by a switch to another stack, never by a return.
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &before_segv);
    sigaction(SIGBUS, &action, &before_bus);
    sigaction(SIGFPE, &action, &before_fpe);
  });
  stack_t ours{};
  ours.ss_sp = stack;
  ours.ss_size = stack_size;
  sigaltstack(&ours, reinterpret_cast<stack_t *>(before));
}

FaultGuard::~FaultGuard() { sigaltstack(reinterpret_cast<stack_t *>(before), nullptr); }

} // namespace emu
