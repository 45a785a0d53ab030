// Check mode: the compiler calls one of these functions at each access to memory (-fsanitize=thread) and where an index
// or an alignment is wrong (-fsanitize=bounds,alignment). They are linked in place of the sanitizers' own libraries,
// which know nothing of fibers, blocks and barriers.
//
// Two accesses to a byte of shared memory race if they are by different threads, one is a write, at least one is no
// atomic operation, and no barrier lies between: no __syncthreads() or, within a warp, no __syncwarp(). In memory of the
// arguments, what one block writes no other may read or write during the launch, but by atomic operations.

#include "check.h"

#ifndef CUDA_CPU_CHECK

namespace cuda_cpu {
void launch_begins() {}
void block_begins() {}
void barrier_passed() {}
void warp_passed(int) {}
void note_access(const void*, size_t, bool, bool, Place) {}
}  // namespace cuda_cpu

#else

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

namespace cuda_cpu {
namespace {

constexpr int LANES = 32, MOST_WARPS = 32;

// Who has touched a byte of shared memory last; an epoch lasts from barrier to barrier, a warp's from __syncwarp() on.
struct Touch {
    uint32_t epoch, warp_epoch;
    int16_t thread;
    bool other_lanes, other_warps, atomic;  // reads: by more than that thread, in the same epoch
};

struct Shadow {
    Touch write, read;
};

struct Region {
    char* low;
    uint64_t size, room;
    Shadow* shadow;
};

constexpr int MOST_REGIONS = 65;
Region regions[MOST_REGIONS];
int region_count = 0;
uint32_t epoch = 1;
uint32_t warp_epochs[MOST_WARPS];

// Of each argument's array, for each byte: the block that has written it, counted from 1; 0 if none.
struct Written {
    uint32_t* block;
    uint64_t room;
};
Written* written = nullptr;
int written_room = 0;
uint32_t block_number = 1;

bool same_warp(int a, int b) { return a / LANES == b / LANES; }

bool races(const Touch& past, int thread, bool atomic) {
    if (past.epoch != epoch || (past.atomic && atomic)) return false;
    if (past.other_warps) return true;
    if (!same_warp(past.thread, thread)) return true;
    if (past.warp_epoch != warp_epochs[thread / LANES]) return false;
    return past.thread != thread || past.other_lanes;
}

void remember(Touch& touch, int thread, bool atomic) {
    uint32_t warp_epoch = warp_epochs[thread / LANES];
    if (touch.epoch == epoch && touch.thread != thread) {
        if (!same_warp(touch.thread, thread)) touch.other_warps = true;
        else if (touch.warp_epoch == warp_epoch) touch.other_lanes = true;
        else touch.other_lanes = false;
    } else if (touch.epoch != epoch) {
        touch.other_lanes = touch.other_warps = false;
    } else if (touch.warp_epoch != warp_epoch) {
        touch.other_lanes = false;
    }
    touch.epoch = epoch;
    touch.warp_epoch = warp_epoch;
    touch.thread = int16_t(thread);
    touch.atomic = atomic;
}

struct Where {
    const void* code;
    const Place* place;
};

template <typename... V>
[[noreturn]] void report(const Where& where, const void* address, const char* format, V... values) {
    note_address(address);
    if (where.place) fault(*where.place, format, values...);
    fault_at(where.code, format, values...);
}

void write_name(char* text, size_t size, const Touch& past, int thread) {
    unsigned t = unsigned(past.thread), columns = block_size.x, rows = block_size.y;
    if (past.thread == thread) snprintf(text, size, "another thread");
    else snprintf(text, size, "thread (%u, %u, %u)", t % columns, t / columns % rows, t / (columns * rows));
}

void check_shared(const Region& region, const char* at, size_t size, bool write, bool atomic, const Where& where) {
    int thread = current_thread();
    for (size_t i = 0; i < size; i++) {
        Shadow& shadow = region.shadow[at - region.low + i];
        const Touch* other = races(shadow.write, thread, atomic)          ? &shadow.write
                             : write && races(shadow.read, thread, atomic) ? &shadow.read
                                                                           : nullptr;
        if (other) {
            char name[64];
            write_name(name, sizeof name, *other, thread);
            report(where, nullptr, "race: %s shared memory that %s %s since the last barrier",
                   write ? "writes" : "reads", name, other == &shadow.write ? "wrote" : "read");
        }
        remember(write ? shadow.write : shadow.read, thread, atomic);
    }
}

void check_array(const Range& range, int number, const char* at, size_t size, bool write, bool atomic,
                 const Where& where) {
    if (write && !range.writable) report(where, at, "writes to an array that is read-only");
    for (size_t i = 0; i < size; i++) {
        uint32_t& writer = written[number].block[at - range.low + i];
        uint32_t by = writer & 0x7fffffffu;
        bool atomically = writer >> 31;
        if (by && by != block_number && !(atomic && atomically))
            report(where, at, "race between blocks: %s what block %u of the grid has written in the same launch",
                   write ? "writes" : "reads", by - 1);
        if (write) writer = block_number | uint32_t(atomic) << 31;
    }
}

void check(const void* address, size_t size, bool write, bool atomic, const Where& where) {
    auto* at = static_cast<const char*>(address);
    if (on_a_stack(at) || size == 0) return;
    for (int i = 0; i < region_count; i++) {
        const Region& region = regions[i];
        if (at >= region.low && at < region.low + region.size) {
            if (at + size > region.low + region.size)
                report(where, nullptr, "%zu bytes at the end of a shared array, of which it has only %zu", size,
                       size_t(region.low + region.size - at));
            check_shared(region, at, size, write, atomic, where);
            return;
        }
    }
    const Launch& launch = current_launch();
    bool inside = false;
    for (int i = 0; i < launch.array_count; i++) {
        const Range& range = launch.arrays[i];
        if (at < range.low || at + size > range.low + range.size) continue;
        inside = true;
        if (write && !range.writable && i + 1 < launch.array_count) continue;  // it may be another argument's, too
        check_array(range, i, at, size, write, atomic, where);
        return;
    }
    if (inside) report(where, at, "writes to an array that is read-only");
    for (int i = 0; i < launch.image_count; i++) {
        const Range& image = launch.image[i];
        if (at >= image.low && at + size <= image.low + image.size) {
            if (at >= launch.unowned.low && at < launch.unowned.low + launch.unowned.size)
                report(where, nullptr, "%s %zu bytes outside all shared arrays of this kernel",
                       write ? "writes" : "reads", size);
            return;
        }
    }
    if (at >= launch.dynamic - 1024 && at < launch.dynamic + launch.shared_bytes + 1024)
        report(where, nullptr, "%s %zu bytes at %td of dynamic shared memory, of which there are %llu",
               write ? "writes" : "reads", size, at - launch.dynamic,
               static_cast<unsigned long long>(launch.shared_bytes));
    report(where, at, "%s %zu bytes outside all arrays that were passed", write ? "writes" : "reads", size);
}

// The shadow is kept from launch to launch: what it holds is of older epochs, and counts for nothing.
void add_region(char* low, uint64_t size) {
    Region& region = regions[region_count++];
    if (region.room < size) {
        free(region.shadow);
        region.shadow = static_cast<Shadow*>(calloc(size, sizeof(Shadow)));
        region.room = size;
    }
    region.low = low;
    region.size = size;
}

}  // namespace

void launch_begins() {
    const Launch& launch = current_launch();
    region_count = 0;
    for (int i = 0; i < launch.shared_count && i < MOST_REGIONS - 1; i++)
        add_region(launch.shared[i].low, launch.shared[i].size);
    if (launch.shared_bytes) add_region(launch.dynamic, launch.shared_bytes);
    if (written_room < launch.array_count) {
        written = static_cast<Written*>(realloc(written, launch.array_count * sizeof(Written)));
        memset(written + written_room, 0, (launch.array_count - written_room) * sizeof(Written));
        written_room = launch.array_count;
    }
    for (int i = 0; i < launch.array_count; i++) {
        uint64_t size = launch.arrays[i].size;
        if (written[i].room < size) {
            written[i].block = static_cast<uint32_t*>(realloc(written[i].block, size * sizeof(uint32_t)));
            written[i].room = size;
        }
        if (size) memset(written[i].block, 0, size * sizeof(uint32_t));
    }
}

void block_begins() {
    const uint3 &b = now.block, &g = grid_size;
    block_number = b.x + g.x * (b.y + g.y * b.z) + 1;
    barrier_passed();
}

void barrier_passed() { epoch++; }

void warp_passed(int warp) { warp_epochs[warp]++; }

void note_access(const void* address, size_t size, bool write, bool atomic, Place place) {
    check(address, size, write, atomic, {nullptr, &place});
}

}  // namespace cuda_cpu

#define ACCESS(name, size, write)                                                                            \
    extern "C" void name(void* address) {                                                                    \
        cuda_cpu::check(address, size, write, false, {__builtin_return_address(0), nullptr});                \
    }
#define ACCESSES(size)                             \
    ACCESS(__tsan_read##size, size, false)         \
    ACCESS(__tsan_write##size, size, true)         \
    ACCESS(__tsan_unaligned_read##size, size, false) \
    ACCESS(__tsan_unaligned_write##size, size, true) \
    ACCESS(__tsan_volatile_read##size, size, false)  \
    ACCESS(__tsan_volatile_write##size, size, true)
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_read_range(void* address, size_t size) {
    cuda_cpu::check(address, size, false, false, {__builtin_return_address(0), nullptr});
}
void __tsan_write_range(void* address, size_t size) {
    cuda_cpu::check(address, size, true, false, {__builtin_return_address(0), nullptr});
}

struct SourcePlace {
    const char* file;
    uint32_t line, column;
};
struct OutOfBounds {
    SourcePlace place;
    void *array, *index;
};
struct TypeMismatch {
    SourcePlace place;
    void* type;
    unsigned char log_alignment, kind;
};

void __ubsan_handle_out_of_bounds(OutOfBounds* data, uintptr_t index) {
    cuda_cpu::fault({data->place.file, int(data->place.line)}, "index %lld is outside its array",
                    static_cast<long long>(index));
}
void __ubsan_handle_out_of_bounds_abort(OutOfBounds* data, uintptr_t index) {
    __ubsan_handle_out_of_bounds(data, index);
}
void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, uintptr_t address) {
    if (!address) return;  // the access itself is reported
    cuda_cpu::fault({data->place.file, int(data->place.line)}, "misaligned access: address %% %d is %d",
                    1 << data->log_alignment, int(address % (1u << data->log_alignment)));
}
}

#endif
