// A second stack that the host's thread can switch to and from: one for each GPU thread.
#pragma once
#include <cstddef>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emu {

struct Fiber {
#if defined(__x86_64__)
  void *stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
};

/// Makes `fiber` start in `entry`, which must never return, on the stack [stack, stack + size).
void fiber_prepare(Fiber &fiber, char *stack, size_t size, void (*entry)());

/// Goes on in `to`; returns when something switches to `from`.
void fiber_switch(Fiber &from, Fiber &to);

} // namespace emu
