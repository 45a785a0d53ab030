// What a compiled kernel asks of the machine that is emulated: barriers, meetings of a warp's lanes, late copies.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct uint3 {
    unsigned x, y, z;
};

namespace cuda_cpu {

// Where in the source something was called: filled in by the compiler at the call.
struct Place {
    const char* file;
    int line;
};

inline Place here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

// Set before a thread runs.
struct Builtins {
    uint3 thread, block;
};
extern Builtins now __attribute__((visibility("hidden")));
extern uint3 grid_size __attribute__((visibility("hidden")));
extern uint3 block_size __attribute__((visibility("hidden")));

int lane();  // of the running thread

// __syncthreads(), and the sum of what the threads bring to it.
int barrier(int brought, Place place);

// The lanes of `mask` meet; each brings the address of something, and `finish` is called once, by the last of them.
typedef void (*Finish)(void** brought, uint32_t mask);
enum Meeting { SYNC, SHUFFLE, VOTE, MATRIX };
void meet(Meeting kind, uint32_t mask, void* brought, Finish finish, Place place);
uint32_t active_lanes();

// cp.async: nothing arrives before the wait.
void copy_later(void* target, const void* source, size_t size, size_t zeros, Place place);
void commit_copies();
void wait_for_copies(size_t but_last, Place place);

void* dynamic_shared();

// An access by an atomic operation, or by a copy of this file's own: checked, if accesses are.
void note_access(const void* address, size_t size, bool write, bool atomic, Place place);

void move_unchecked(void* target, const void* source, size_t size);

[[noreturn]] void fault(Place place, const char* format, ...) __attribute__((format(printf, 2, 3)));
[[noreturn]] void fault_at(const void* code, const char* format, ...) __attribute__((format(printf, 2, 3)));

// The address that a fault is about, if it is one of an argument's array.
void note_address(const void* address);

// One kernel of this module, as the loader finds it.
struct Entry {
    const char* name;
    void* function;
    void (*call)(void* function, void** arguments);
    int count;
    const int* sizes;     // of each parameter, in bytes
    const int* pointers;  // 0: a value, 1: a pointer, 2: a pointer to const
};

}  // namespace cuda_cpu
