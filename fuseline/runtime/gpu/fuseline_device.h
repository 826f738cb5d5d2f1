// What generated CUDA C++ takes from the device and not from the language: the conversions of 16-bit
// floats, to nearest even, stores of 16 bytes, and how kernels follow one another. NVRTC knows the
// rest by itself. (A test on a CPU has a file of this name with these, threads and shuffles for the
// host.)
#pragma once

#define FL_DEVICE __device__ __forceinline__

FL_DEVICE float fl_bf16_to_f32(unsigned short bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

FL_DEVICE float fl_f16_to_f32(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// Two at once, the first in the lower half.
FL_DEVICE unsigned fl_f32_to_bf16(float low, float high) {
  unsigned bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

FL_DEVICE unsigned fl_f32_to_f16(float low, float high) {
  unsigned bits;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
}

// 16 bytes at once. NVRTC takes an assignment apart, and does not always put it together again. (No
// kernel reads what it wrote, so nothing is said of memory.)
FL_DEVICE void fl_store16(void *to, unsigned a, unsigned b, unsigned c, unsigned d) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(__cvta_generic_to_global(to)), "r"(a), "r"(b), "r"(c), "r"(d));
}

// Waits for the kernel ahead, which may not have ended when this one was launched: the first thing in
// a kernel, but for reads of what is not written while programs run.
FL_DEVICE void fl_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Has the kernel behind launched as soon as there is room for it. No read is moved across it.
FL_DEVICE void fl_start_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
