// Failures of a kernel: their text, and the signals that turn into one.
#pragma once
#include "language.h"
#include <string>

namespace emu {

/// " at file:line"
std::string at(Site site);
/// The same for a return address or for a faulting instruction; needs addr2line.
std::string at_code(const void *pc);

/// While it lives, a fault on this thread of the host that a kernel causes ends the kernel, not the process.
class FaultGuard {
public:
  /// `stack` (of `stack_size` bytes) is what the handler runs on.
  explicit FaultGuard(char *stack);
  ~FaultGuard();
  static constexpr size_t stack_size = 256 << 10;

private:
  char before[64]; // the stack_t that was in force
};

} // namespace emu
