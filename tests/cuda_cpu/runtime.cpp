// One block at a time, each of its threads a fiber: they run in a given order from barrier to barrier.
//
// A fault (a divergent barrier, lanes that never come, an access outside all arrays, SIGSEGV) is written down and the
// block abandoned where it stands: the stacks hold nothing that would have to be destroyed.

#include "runtime.h"

#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "check.h"
#include "fibers.h"

namespace cuda_cpu {

Builtins now;
uint3 grid_size, block_size;

namespace {

constexpr int MOST_THREADS = 1024, LANES = 32;
constexpr size_t STACK = 256 * 1024, GUARD = 4096;

struct Copy {
    char* target;
    const char* source;
    size_t size, zeros;
    size_t group;
    Place place;
};

struct Thread {
    Context context;
    uint3 index;
    bool done, waits;      // waits: at a barrier
    Place place;           // of the barrier, or of the meeting
    uint32_t mask;         // of the meeting, 0: none
    Meeting kind;
    void* brought;
    Copy* copies;          // not yet arrived, oldest first
    size_t copy_count, copy_room, groups;
};

struct State {
    Thread threads[MOST_THREADS];
    int order[MOST_THREADS];
    int ready[MOST_THREADS];  // a ring
    int ready_first, ready_count;
    int started, done, waiting, first_waiting, total, current;
    int sum, last_sum;
    int free_stacks[MOST_THREADS], free_count;
    int own_stack;
    Context main, scrap;
    Launch* launch;
    bool running;
    pthread_t runner;
};

State* s = nullptr;

size_t stack_shift(int i) { return size_t(i % 61) * 832 & ~size_t(63); }  // or all would share the same cache sets

char* stack_base(int i) { return s->launch->stacks + i * (STACK + GUARD) + GUARD; }

void set_current(int t) {
    s->current = t;
    now.thread = s->threads[t].index;
}

void push(int t) {
    int at = s->ready_first + s->ready_count++;
    s->ready[at >= MOST_THREADS ? at - MOST_THREADS : at] = t;
}

void write_index(char* text, size_t size, uint3 i) { snprintf(text, size, "(%u, %u, %u)", i.x, i.y, i.z); }

[[noreturn]] void abandon() {
    Fault& f = *s->launch->fault;
    uint3 t = now.thread, b = now.block;
    const unsigned values[6] = {t.x, t.y, t.z, b.x, b.y, b.z};
    memcpy(f.thread, values, sizeof f.thread);
    memcpy(f.block, values + 3, sizeof f.block);
    f.happened = 1;
    swap(s->scrap, s->main);
    __builtin_unreachable();
}

void write_fault(const char* format, va_list values) {
    vsnprintf(s->launch->fault->text, sizeof s->launch->fault->text, format, values);
}

void fiber();

// Nothing can run: release a barrier that all have reached, or say why that will never be.
void settle() {
    if (s->waiting == s->total) {
        s->last_sum = s->sum;
        s->sum = s->waiting = 0;
        for (int i = 0; i < s->total; i++) {
            s->threads[s->order[i]].waits = false;
            push(s->order[i]);
        }
        barrier_passed();
        return;
    }
    const Thread *at_barrier = nullptr, *at_meeting = nullptr, *returned = nullptr;
    for (int t = 0; t < s->total; t++) {
        const Thread& thread = s->threads[t];
        if (thread.done) returned = &thread;
        if (thread.waits) at_barrier = &thread;
        if (thread.mask) at_meeting = &thread;
    }
    char other[64];
    if (at_meeting) {
        now.thread = at_meeting->index;
        fault(at_meeting->place, "some lanes of mask 0x%08x never come: they %s", at_meeting->mask,
              at_barrier ? "wait at a barrier" : returned ? "have returned, or are not there" : "are not there");
    }
    write_index(other, sizeof other, returned->index);
    now.thread = at_barrier->index;
    fault(at_barrier->place, "divergent barrier: thread %s returned without reaching it", other);
}

// Leave `from` for whatever is to run next.
void run_next(Context& from) {
    if (s->started < s->total) {
        int stack = s->free_stacks[--s->free_count];
        Context fresh;
        size_t shift = stack_shift(stack);
        prepare(fresh, stack_base(stack), STACK - shift, fiber);
        s->own_stack = stack;
        swap(from, fresh);
        return;
    }
    if (s->ready_count == 0) {
        if (s->done == s->total) {
            swap(from, s->main);
            return;
        }
        settle();
    }
    int t = s->ready[s->ready_first];
    s->ready_first = s->ready_first + 1 == MOST_THREADS ? 0 : s->ready_first + 1;
    s->ready_count--;
    set_current(t);
    Context& to = s->threads[t].context;
    if (&to != &from) swap(from, to);
}

// A stack: it runs threads that have not begun, one after another; one that waits keeps it.
void fiber() {
    int stack = s->own_stack;
    while (s->started < s->total) {
        set_current(s->order[s->started++]);
        s->launch->entry->call(s->launch->entry->function, s->launch->arguments);
        s->threads[s->current].done = true;
        s->done++;
    }
    s->free_stacks[s->free_count++] = stack;
    run_next(s->scrap);
    __builtin_unreachable();
}

void shuffle_order(uint64_t& seed) {
    for (int i = s->total - 1; i > 0; i--) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        int j = int((seed >> 33) % uint64_t(i + 1)), kept = s->order[i];
        s->order[i] = s->order[j];
        s->order[j] = kept;
    }
}

void run_block(uint64_t& seed) {
    Launch& launch = *s->launch;
    for (int i = 0; i < launch.shared_count; i++) memset(launch.shared[i].low, 0xFF, launch.shared[i].size);
    if (launch.shared_bytes) memset(launch.dynamic, 0xFF, launch.shared_bytes);
    for (int t = 0; t < s->total; t++) {
        Thread& thread = s->threads[t];
        thread.done = thread.waits = false;
        thread.mask = 0;
        thread.copy_count = thread.groups = 0;
        s->order[t] = launch.order == BACKWARD ? s->total - 1 - t : t;
    }
    if (launch.order == SHUFFLED) shuffle_order(seed);
    s->ready_first = s->ready_count = s->started = s->done = s->waiting = s->sum = 0;
    block_begins();
    run_next(s->main);
}

constexpr size_t SIGNAL_STACK = 64 * 1024;
char* signal_stack = nullptr;
struct sigaction old_actions[4];
const int SIGNALS[4] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};

void on_signal(int number, siginfo_t* info, void* context) {
    if (!s || !s->running || !pthread_equal(pthread_self(), s->runner)) {  // not ours
        for (int i = 0; i < 4; i++)
            if (SIGNALS[i] == number) sigaction(number, &old_actions[i], nullptr);
        return;  // it happens again, and the old handler sees it
    }
    const void* code = nullptr;
#if defined(__x86_64__)
    code = reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
#endif
    auto* address = static_cast<const char*>(info->si_addr);
    if (number == SIGFPE) fault_at(code, "division of an integer by zero, or its overflow");
    if (number == SIGILL) fault_at(code, "trap");
    const char* stacks = s->launch->stacks;
    if (address >= stacks && address < stacks + MOST_THREADS * (STACK + GUARD))
        fault_at(code, "stack overflow: local arrays too large, or recursion");
    s->launch->fault->address = reinterpret_cast<uint64_t>(address);
    fault_at(code, "access to memory that is not there");
}

}  // namespace

void fault(Place place, const char* format, ...) {
    Fault& f = *s->launch->fault;
    va_list values;
    va_start(values, format);
    write_fault(format, values);
    va_end(values);
    snprintf(f.file, sizeof f.file, "%s", place.file);
    f.line = place.line;
    abandon();
}

void fault_at(const void* code, const char* format, ...) {
    va_list values;
    va_start(values, format);
    write_fault(format, values);
    va_end(values);
    s->launch->fault->code = reinterpret_cast<uint64_t>(code);
    abandon();
}

void note_address(const void* address) { s->launch->fault->address = reinterpret_cast<uint64_t>(address); }

int lane() { return s->current % LANES; }

int current_thread() { return s->current; }

const Launch& current_launch() { return *s->launch; }

bool on_a_stack(const void* address) {
    auto* at = static_cast<const char*>(address);
    return at >= s->launch->stacks && at < s->launch->stacks + MOST_THREADS * (STACK + GUARD);
}

int barrier(int brought, Place place) {
    Thread& me = s->threads[s->current];
    if (s->waiting == 0) s->first_waiting = s->current;
    const Thread& other = s->threads[s->first_waiting];
    if (s->waiting > 0 && (other.place.line != place.line || strcmp(other.place.file, place.file) != 0)) {
        char index[64];
        write_index(index, sizeof index, other.index);
        fault(place, "divergent barrier: thread %s waits at that of line %d", index, other.place.line);
    }
    me.place = place;
    me.waits = true;
    s->waiting++;
    s->sum += brought;
    run_next(me.context);
    return s->last_sum;
}

uint32_t active_lanes() {
    int first = s->current / LANES * LANES;
    uint32_t mask = 0;
    for (int i = 0; i < LANES && first + i < s->total; i++)
        if (!s->threads[first + i].done) mask |= 1u << i;
    return mask;
}

void meet(Meeting kind, uint32_t mask, void* brought, Finish finish, Place place) {
    Thread& me = s->threads[s->current];
    Thread* warp = s->threads + s->current / LANES * LANES;
    if (!(mask >> lane() & 1)) fault(place, "lane %d calls with mask 0x%08x, which it is not in", lane(), mask);
    me.mask = mask;
    me.kind = kind;
    me.brought = brought;
    me.place = place;
    void* all[LANES] = {};
    for (int i = 0; i < LANES; i++) {
        if (!(mask >> i & 1)) continue;
        if (int(warp - s->threads) + i >= s->total)
            fault(place, "mask 0x%08x names lane %d, which the block has not", mask, i);
        if (warp[i].done) fault(place, "mask 0x%08x names lane %d, which has returned", mask, i);
        if (!warp[i].mask) {  // not yet there
            run_next(me.context);
            return;
        }
        if (warp[i].mask != mask || warp[i].kind != kind)
            fault(place, "lanes %d and %d of a warp meet with different masks or for different things (line %d)",
                  lane(), i, warp[i].place.line);
        all[i] = warp[i].brought;
    }
    finish(all, mask);
    for (int i = 0; i < LANES; i++) {
        if (!(mask >> i & 1)) continue;
        warp[i].mask = 0;
        if (warp + i != &me) push(int(warp - s->threads) + i);
    }
    if (kind == SYNC) warp_passed(s->current / LANES);
}

void move_unchecked(void* target, const void* source, size_t size) { memcpy(target, source, size); }

void* dynamic_shared() { return s->launch->dynamic; }

bool is_shared(const void* address, size_t size) {
    auto* at = static_cast<const char*>(address);
    const Launch& launch = *s->launch;
    if (at >= launch.dynamic && at + size <= launch.dynamic + launch.shared_bytes) return true;
    for (int i = 0; i < launch.shared_count; i++)
        if (at >= launch.shared[i].low && at + size <= launch.shared[i].low + launch.shared[i].size) return true;
    return false;
}

void copy_later(void* target, const void* source, size_t size, size_t zeros, Place place) {
    if (size != 4 && size != 8 && size != 16) fault(place, "cp.async copies 4, 8 or 16 bytes, not %zu", size);
    if (zeros > size) fault(place, "cp.async fills %zu bytes of %zu with zeros", zeros, size);
    if (reinterpret_cast<uintptr_t>(target) % size) fault(place, "cp.async: target not aligned to %zu bytes", size);
    if (zeros < size && reinterpret_cast<uintptr_t>(source) % size)
        fault(place, "cp.async: source not aligned to %zu bytes", size);
    if (!is_shared(target, size)) fault(place, "cp.async: target is not in shared memory");
    note_access(source, size - zeros, false, false, place);
    note_access(target, size, true, false, place);
    memset(target, 0xFF, size);  // what was there may be gone from now on
    Thread& me = s->threads[s->current];
    if (me.copy_count == me.copy_room) {
        me.copy_room = me.copy_room ? 2 * me.copy_room : 16;
        me.copies = static_cast<Copy*>(realloc(me.copies, me.copy_room * sizeof(Copy)));
    }
    me.copies[me.copy_count++] = {static_cast<char*>(target), static_cast<const char*>(source), size, zeros, me.groups,
                                  place};
}

void commit_copies() { s->threads[s->current].groups++; }

void wait_for_copies(size_t but_last, Place place) {
    Thread& me = s->threads[s->current];
    size_t kept = 0;
    for (size_t i = 0; i < me.copy_count; i++) {
        const Copy& copy = me.copies[i];
        if (copy.group + but_last >= me.groups) {  // of the last groups, or of none yet
            me.copies[kept++] = copy;
            continue;
        }
        note_access(copy.target, copy.size, true, false, copy.place);
        memcpy(copy.target, copy.source, copy.size - copy.zeros);
        memset(copy.target + copy.size - copy.zeros, 0, copy.zeros);
    }
    me.copy_count = kept;
    (void)place;
}

}  // namespace cuda_cpu

using namespace cuda_cpu;

// Stacks for all modules of the process: asked of the first one, given to all.
extern "C" __attribute__((visibility("default"))) char* cuda_cpu_stacks() {
    size_t each = STACK + GUARD;
    void* made = mmap(nullptr, MOST_THREADS * each, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                      -1, 0);
    if (made == MAP_FAILED) return nullptr;
    for (int i = 0; i < MOST_THREADS; i++) mprotect(static_cast<char*>(made) + i * each, GUARD, PROT_NONE);
    return static_cast<char*>(made);
}

extern "C" __attribute__((visibility("default"))) void cuda_cpu_launch(Launch* launch) {
    if (!s) s = static_cast<State*>(calloc(1, sizeof(State)));
    s->launch = launch;
    const unsigned *g = launch->grid, *b = launch->block;
    grid_size = {g[0], g[1], g[2]};
    block_size = {b[0], b[1], b[2]};
    s->total = int(b[0] * b[1] * b[2]);
    for (int t = 0; t < s->total; t++)
        s->threads[t].index = {t % b[0], t / b[0] % b[1], t / (b[0] * b[1])};

    if (!signal_stack) signal_stack = static_cast<char*>(malloc(SIGNAL_STACK));
    stack_t mine = {}, old = {};
    mine.ss_sp = signal_stack;
    mine.ss_size = SIGNAL_STACK;
    sigaltstack(&mine, &old);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &action, &old_actions[i]);
    s->runner = pthread_self();
    s->running = true;

    uint64_t seed = 20240229;
    s->free_count = MOST_THREADS;
    for (int i = 0; i < MOST_THREADS; i++) s->free_stacks[i] = MOST_THREADS - 1 - i;
    launch_begins();
    for (unsigned z = 0; z < g[2] && !launch->fault->happened; z++)
        for (unsigned y = 0; y < g[1] && !launch->fault->happened; y++)
            for (unsigned x = 0; x < g[0] && !launch->fault->happened; x++) {
                now.block = {x, y, z};
                run_block(seed);
            }

    s->running = false;
    for (int i = 0; i < 4; i++) sigaction(SIGNALS[i], &old_actions[i], nullptr);
    if (!(old.ss_flags & SS_DISABLE)) sigaltstack(&old, nullptr);
    else { mine.ss_flags = SS_DISABLE; sigaltstack(&mine, nullptr); }
}
