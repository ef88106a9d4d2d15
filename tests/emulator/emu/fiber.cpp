#include "fiber.h"
#include <cstdint>

namespace emu {

#if defined(__x86_64__)

// ucontext makes a system call for the signal mask at every switch (167 ns against 4.5): a barrier of 256 threads
// is 256 switches. The callee-saved registers are all that a call may not change.
extern "C" void emu_fiber_switch(void **save, void *load);
asm(R"(
.text
.globl emu_fiber_switch
.hidden emu_fiber_switch
.type emu_fiber_switch,@function
emu_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_fiber_switch,.-emu_fiber_switch
)");

void fiber_prepare(Fiber &fiber, char *stack, size_t size, void (*entry)()) {
  auto top = reinterpret_cast<void **>((reinterpret_cast<uintptr_t>(stack) + size) & ~uintptr_t(15));
  *--top = nullptr; // a return address that is never used; it gives `entry` the stack alignment of a call
  *--top = reinterpret_cast<void *>(entry);
  for (int saved = 0; saved < 6; saved++) *--top = nullptr;
  fiber.stack_pointer = top;
}

void fiber_switch(Fiber &from, Fiber &to) { emu_fiber_switch(&from.stack_pointer, to.stack_pointer); }

#else

void fiber_prepare(Fiber &fiber, char *stack, size_t size, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = stack;
  fiber.context.uc_stack.ss_size = size;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

void fiber_switch(Fiber &from, Fiber &to) { swapcontext(&from.context, &to.context); }

#endif

} // namespace emu
