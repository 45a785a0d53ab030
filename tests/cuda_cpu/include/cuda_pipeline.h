// cp.async as cuda_pipeline.h offers it: what is copied arrives at the wait, and not before.
#pragma once

inline void __pipeline_memcpy_async(void* target, const void* source, size_t size, size_t zeros = 0,
                                    cuda_cpu::Place place = cuda_cpu::here()) {
    cuda_cpu::copy_later(target, source, size, zeros, place);
}
inline void __pipeline_commit() { cuda_cpu::commit_copies(); }
inline void __pipeline_wait_prior(size_t but_last, cuda_cpu::Place place = cuda_cpu::here()) {
    cuda_cpu::wait_for_copies(but_last, place);
}
