// What the runner, its callers and every generated kernel agree on. No C++ library is needed.
//
// A piece is a table of steps. A step calls one kernel, shared by `width` workers; the runner gives
// each share to whichever thread is free, so `tid` names a share of the work and not a thread.
#pragma once
#include <stdint.h>

struct fl_host {
  // The Fortran sgemm of libtorch_cpu, or null.
  void (*sgemm)(const char *, const char *, const int *, const int *, const int *, const float *,
                const float *, const int *, const float *, const int *, const float *, float *,
                const int *);
};

struct fl_call {
  void *const *buf;     // operands, results, scratch; offsets already applied
  const int64_t *dim;   // run-time integers
  const fl_host *host;  // functions of the library that the kernel may call
  int32_t tid, nth;     // which share this is, and of how many
  int32_t *fault;       // set to other than 0 by a share that was given an index that is outside
};

typedef void (*fl_kernel)(const fl_call *call);

// One launch. Its buffers are `refs[buf ...]`, its integers `dims[dim ...]`.
struct fl_step {
  fl_kernel fn;
  int32_t buf;
  int32_t dim;
  int32_t width;        // shares; all in one where there is one thread
  int32_t independent;  // needs nothing that was computed since the last wait
};

// A place in memory: byte offset in the memory of a slot; slot -1 is a null pointer.
struct fl_ref {
  int64_t offset;
  int32_t slot;
  int32_t unused;
};

// What a step took, summed over the runs that were timed, in nanoseconds.
struct fl_time {
  uint64_t busy;  // of all its shares
  uint64_t wall;  // of the longest share of each run
};

#define FL_MAX_THREADS 128  // that take part in a piece
#define FL_MAX_SHARES 128   // that a step is cut into

// Functions that keep a library from starting threads of its own inside a share; each may be null.
struct fl_limits {
  int (*omp_max)();            // omp_get_max_threads
  void (*omp_set)(int count);  // omp_set_num_threads
  int (*mkl_local)(int count); // MKL_Set_Num_Threads_Local
};

struct fl_piece;

extern "C" {
void fl_use_limits(const fl_limits *limits);

fl_piece *fl_piece_new(const fl_step *steps, int32_t n_steps, const fl_ref *refs, int32_t n_refs,
                       const int64_t *dims, int32_t n_dims, int32_t n_slots, const fl_host *host,
                       int32_t threads);
void fl_piece_free(fl_piece *piece);

// The memory of a slot, until it is set again. A run need not set every slot.
void fl_piece_set(fl_piece *piece, int32_t slot, void *memory);
// 1 where some step uses the slot.
int32_t fl_piece_uses(const fl_piece *piece, int32_t slot);
// Replaces numbers of all steps; a null pointer keeps them. Lengths are those given to `new`.
void fl_piece_rebind(fl_piece *piece, const int64_t *dims, const int32_t *widths,
                     const int64_t *offsets, int32_t threads);
// Runs all steps. 0; or 1 if another thread is running or changing this piece: nothing was done.
int32_t fl_piece_run(fl_piece *piece);
int32_t fl_piece_begin(fl_piece *piece);  // the same in parts: take the piece (0 or 1),
void fl_piece_go(fl_piece *piece);        // run it, with the slots that were set meanwhile,
int32_t fl_piece_fault(fl_piece *piece);  // 1 + the first step at fault in this run; else 0
void fl_piece_end(fl_piece *piece);       // give it back
// Timing costs some 60 ns a share. `times` has one element per step.
void fl_piece_profile(fl_piece *piece, int32_t on);
uint64_t fl_piece_times(const fl_piece *piece, fl_time *times);
}
