// Fibers: stacks that one thread of the operating system switches between, by hand.
//
// A switch on x86-64 saves what the System V ABI says a callee keeps (six registers and the stack pointer) and costs
// a few nanoseconds; swapcontext, for every other processor, also calls the kernel to save the signal mask.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && !defined(CUDA_CPU_UCONTEXT)

namespace cuda_cpu {

struct Context {
    void* stack_pointer;
};

extern "C" void cuda_cpu_switch(void** save, void* load);

asm(R"(
.text
.hidden cuda_cpu_switch
.globl cuda_cpu_switch
.type cuda_cpu_switch, @function
cuda_cpu_switch:
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
.size cuda_cpu_switch, .-cuda_cpu_switch
)");

// Ready `context` to run `entry`, which never returns, on the stack of `size` bytes at `stack`.
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    auto top = reinterpret_cast<uintptr_t>(stack + size) & ~uintptr_t(15);
    auto* frame = reinterpret_cast<void**>(top) - 8;  // six registers, the entry, and the place of a return address
    for (int i = 0; i < 8; i++) frame[i] = nullptr;
    frame[6] = reinterpret_cast<void*>(entry);
    context.stack_pointer = frame;
}

inline void swap(Context& save, Context& load) { cuda_cpu_switch(&save.stack_pointer, load.stack_pointer); }

}  // namespace cuda_cpu

#else

#include <ucontext.h>

namespace cuda_cpu {

struct Context {
    ucontext_t context;
};

inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = stack;
    context.context.uc_stack.ss_size = size;
    context.context.uc_link = nullptr;
    makecontext(&context.context, entry, 0);
}

inline void swap(Context& save, Context& load) { swapcontext(&save.context, &load.context); }

}  // namespace cuda_cpu

#endif
