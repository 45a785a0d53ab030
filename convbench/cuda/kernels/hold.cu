// One thread that keeps the stream busy for a while, so that what is launched meanwhile queues up behind it.
//
// It moves no data. Time is read from the device's global timer, in nanoseconds whatever the clocks do; that timer moves
// on in steps of up to a microsecond, so a hold is as long as it should be to within two of these.
__global__ void hold(unsigned long long nanoseconds) {
#ifndef CUDA_CPU  // on the CPU there is no such timer, and nothing to wait for
    unsigned long long now, began;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(began));
    do {
        asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
    } while (now - began < nanoseconds);
#endif
}
