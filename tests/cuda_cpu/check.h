// What the loader hands over for one launch, and what check mode asks and is told.
#pragma once

#include "runtime.h"

namespace cuda_cpu {

enum Order { FORWARD, BACKWARD, SHUFFLED };

struct Range {
    char* low;
    uint64_t size;
    int32_t writable, argument;
};

struct Fault {
    int32_t happened, line;
    uint64_t code, address;
    uint32_t thread[3], block[3];
    char file[256];
    char text[512];
};

struct Launch {
    const Entry* entry;
    void** arguments;
    char* stacks;
    char* dynamic;
    uint64_t shared_bytes;
    Range* shared;  // the static arrays
    Range* arrays;  // those passed as arguments
    Range* image;   // of this module, as loaded: constants, and what is the compiler's own
    Fault* fault;
    Range unowned;  // from the module's first static array to its last, whichever kernel's
    uint32_t grid[3], block[3];
    int32_t shared_count, array_count, image_count, order;
};

int current_thread();
const Launch& current_launch();
bool on_a_stack(const void* address);
bool is_shared(const void* address, size_t size);

void launch_begins();
void block_begins();
void barrier_passed();
void warp_passed(int warp);

}  // namespace cuda_cpu
