// Runs the steps of a piece, on one thread or on several.
//
// Several threads: one parallel region for the whole piece, in the OpenMP runtime that torch has
// loaded (called by its own entry points, so that the compiler need not know OpenMP). Steps are cut
// into shares that threads claim from a bit mask, each its own share first and then what is left. A
// thread that the system has not scheduled therefore holds nobody up: the others do its share.
// Between steps that depend on each other, threads wait for the shares to be done, and not for each
// other: spinning for a bounded time, then asleep in the kernel.
//
// Consecutive steps of one share form a chain that one thread runs without meeting the others.
// Steps marked independent form a group with those before them, and are waited for together.
#include "fuseline_abi.h"

#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace {

fl_team team;  // all null until `fl_use_team`: then everything runs on the calling thread

constexpr int32_t kMaxThreads = 64;  // shares of a step are bits of one word
constexpr int32_t kMostSpins = 4000, kFewestSpins = 100;

// What one thread claims at a time: one step cut into shares, or a chain of steps of one share.
struct Unit {
  int32_t first, count;  // steps
  int32_t width;         // shares
  int32_t group;
};

// What changes as threads meet: a cache line to itself for each unit and each group.
struct alignas(64) UnitState {
  uint64_t claimed;
};

struct alignas(64) GroupState {
  int32_t pending;  // shares not yet done
};

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline uint64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

inline uint64_t all_of(int32_t width) { return width >= 64 ? ~uint64_t(0) : (uint64_t(1) << width) - 1; }

template <class T>
T *array(size_t count) {
  size_t bytes = (count * sizeof(T) + 63) / 64 * 64;
  void *memory = aligned_alloc(64, bytes ? bytes : 64);
  if (memory) memset(memory, 0, bytes ? bytes : 64);
  return static_cast<T *>(memory);
}

}  // namespace

struct fl_piece {
  int32_t n_steps, n_refs, n_dims, n_slots, threads, n_units, n_groups;
  int32_t busy, profiling;
  int32_t shared;  // whether there is anything for a second thread to do
  fl_host host;
  fl_step *steps;
  int32_t *widths;  // as asked for; the units have them cut to `threads`
  int64_t *dims;
  fl_ref *refs;
  void **bufs;          // refs, resolved
  int32_t *slot_first;  // refs of slot s: slot_refs[slot_first[s] .. slot_first[s + 1])
  int32_t *slot_refs;
  char **slots;
  Unit *units;
  int32_t *group_first;  // units of group g: [group_first[g], group_first[g + 1])
  int32_t *group_shares;
  UnitState *unit_states;
  GroupState *group_states;
  fl_time *times;
  uint64_t *longest;  // of each step, in the run at hand
  uint64_t runs;
  alignas(64) int32_t current;   // groups that are done: threads wait here
  alignas(64) int32_t sleepers;  // threads that may be asleep on `current`
};

namespace {

// Cuts the steps into units and groups for the present widths and number of threads.
void arrange(fl_piece *p) {
  int32_t units = 0, groups = 0, shares = 0;
  for (int32_t s = 0; s < p->n_steps; ++s) {
    int32_t width = p->widths[s] < p->threads ? p->widths[s] : p->threads;
    if (width < 1) width = 1;
    bool fresh = groups == 0;
    if (!fresh && !p->steps[s].independent) {
      Unit &last = p->units[units - 1];
      bool alone = p->group_first[groups - 1] == units - 1;
      if (width == 1 && last.width == 1 && alone) {
        ++last.count;
        continue;
      }
      fresh = true;
    }
    if (fresh) {
      p->group_first[groups] = units;
      p->group_shares[groups++] = 0;
    }
    p->units[units++] = Unit{s, 1, width, groups - 1};
    p->group_shares[groups - 1] += width;
    shares += width;
  }
  p->group_first[groups] = units;
  p->n_units = units;
  p->n_groups = groups;
  p->shared = p->threads > 1 && shares > groups;
}

void resolve(fl_piece *p, int32_t slot) {
  char *base = p->slots[slot];
  for (int32_t i = p->slot_first[slot]; i < p->slot_first[slot + 1]; ++i) {
    int32_t ref = p->slot_refs[i];
    p->bufs[ref] = base + p->refs[ref].offset;
  }
}

inline void call(fl_piece *p, int32_t s, int32_t tid, int32_t nth) {
  const fl_step &step = p->steps[s];
  fl_call c{p->bufs + step.buf, p->dims + step.dim, &p->host, tid, nth};
  if (!p->profiling) {
    step.fn(&c);
    return;
  }
  uint64_t begin = now();
  step.fn(&c);
  uint64_t taken = now() - begin;
  __atomic_fetch_add(&p->times[s].busy, taken, __ATOMIC_RELAXED);
  uint64_t seen = __atomic_load_n(&p->longest[s], __ATOMIC_RELAXED);
  while (seen < taken && !__atomic_compare_exchange_n(&p->longest[s], &seen, taken, true,
                                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

void run_serial(fl_piece *p) {
  for (int32_t s = 0; s < p->n_steps; ++s) call(p, s, 0, 1);
}

void run_share(fl_piece *p, const Unit &unit, int32_t share) {
  for (int32_t s = unit.first; s < unit.first + unit.count; ++s) call(p, s, share, unit.width);
}

// Claims and runs shares of a unit until none is left; gives how many were run here.
int32_t work_on(fl_piece *p, int32_t u, int32_t thread) {
  const Unit &unit = p->units[u];
  uint64_t *claimed = &p->unit_states[u].claimed;
  const uint64_t full = all_of(unit.width);
  int32_t done = 0, share = thread < unit.width ? thread : 0;
  uint64_t seen = __atomic_load_n(claimed, __ATOMIC_RELAXED);
  while (seen != full) {
    uint64_t bit = uint64_t(1) << share;
    if (!(seen & bit)) {
      seen = __atomic_fetch_or(claimed, bit, __ATOMIC_ACQ_REL);
      if (!(seen & bit)) {
        run_share(p, unit, share);
        ++done;
        seen = __atomic_load_n(claimed, __ATOMIC_RELAXED);
      }
    }
    if (seen != full) share = __builtin_ctzll(~seen);
  }
  return done;
}

void finish(fl_piece *p, int32_t group) {
  __atomic_store_n(&p->current, group + 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&p->sleepers, __ATOMIC_SEQ_CST))
    syscall(SYS_futex, &p->current, FUTEX_WAKE_PRIVATE, kMaxThreads, nullptr, nullptr, 0);
}

// Waits until `group` is done. How long it spins is learnt: spinning that was in vain gets shorter.
void await(fl_piece *p, int32_t group, int32_t &spins) {
  for (int32_t i = 0; i < spins; ++i) {
    if (__atomic_load_n(&p->current, __ATOMIC_ACQUIRE) > group) {
      spins = spins * 2 < kMostSpins ? spins * 2 : kMostSpins;
      return;
    }
    pause_briefly();
  }
  spins = spins / 2 > kFewestSpins ? spins / 2 : kFewestSpins;
  __atomic_fetch_add(&p->sleepers, 1, __ATOMIC_SEQ_CST);
  for (;;) {
    int32_t seen = __atomic_load_n(&p->current, __ATOMIC_SEQ_CST);
    if (seen > group) break;
    syscall(SYS_futex, &p->current, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
  }
  __atomic_fetch_sub(&p->sleepers, 1, __ATOMIC_SEQ_CST);
}

void run_worker(fl_piece *p, int32_t thread) {
  int32_t spins = kMostSpins;
  for (int32_t group = 0; group < p->n_groups;) {
    int32_t done = 0;
    for (int32_t u = p->group_first[group]; u < p->group_first[group + 1]; ++u)
      done += work_on(p, u, thread);
    if (done && __atomic_sub_fetch(&p->group_states[group].pending, done, __ATOMIC_ACQ_REL) == 0)
      finish(p, group);
    else
      await(p, group, spins);
    group = __atomic_load_n(&p->current, __ATOMIC_ACQUIRE);  // one that came late catches up
  }
}

void run_in_team(void *piece) { run_worker(static_cast<fl_piece *>(piece), team.thread_num()); }

void run_parallel(fl_piece *p) {
  for (int32_t u = 0; u < p->n_units; ++u) p->unit_states[u].claimed = 0;
  for (int32_t g = 0; g < p->n_groups; ++g) p->group_states[g].pending = p->group_shares[g];
  p->current = 0;
  p->sleepers = 0;
  team.parallel(run_in_team, p, p->threads, 0);
}

}  // namespace

extern "C" {

void fl_use_team(const fl_team *given) { team = *given; }

fl_piece *fl_piece_new(const fl_step *steps, int32_t n_steps, const fl_ref *refs, int32_t n_refs,
                       const int64_t *dims, int32_t n_dims, int32_t n_slots, const fl_host *host,
                       int32_t threads) {
  fl_piece *p = array<fl_piece>(1);
  if (!p) return nullptr;
  p->n_steps = n_steps, p->n_refs = n_refs, p->n_dims = n_dims, p->n_slots = n_slots;
  p->host = *host;
  p->steps = array<fl_step>(n_steps);
  p->widths = array<int32_t>(n_steps);
  p->dims = array<int64_t>(n_dims);
  p->refs = array<fl_ref>(n_refs);
  p->bufs = array<void *>(n_refs);
  p->slot_first = array<int32_t>(n_slots + 2);
  p->slot_refs = array<int32_t>(n_refs);
  p->slots = array<char *>(n_slots);
  p->units = array<Unit>(n_steps);
  p->group_first = array<int32_t>(n_steps + 1);
  p->group_shares = array<int32_t>(n_steps);
  p->unit_states = array<UnitState>(n_steps);
  p->group_states = array<GroupState>(n_steps);
  p->times = array<fl_time>(n_steps);
  p->longest = array<uint64_t>(n_steps);
  void *parts[] = {p->steps, p->widths, p->dims, p->refs, p->bufs, p->slot_first, p->slot_refs,
                   p->slots, p->units, p->group_first, p->group_shares, p->unit_states,
                   p->group_states, p->times, p->longest};
  for (void *part : parts) {
    if (!part) {
      fl_piece_free(p);
      return nullptr;
    }
  }
  if (n_steps) memcpy(p->steps, steps, n_steps * sizeof(fl_step));
  if (n_refs) memcpy(p->refs, refs, n_refs * sizeof(fl_ref));
  if (n_dims) memcpy(p->dims, dims, n_dims * sizeof(int64_t));
  for (int32_t s = 0; s < n_steps; ++s) p->widths[s] = steps[s].width;
  // Counting sort of the references by slot.
  for (int32_t i = 0; i < n_refs; ++i)
    if (refs[i].slot >= 0) ++p->slot_first[refs[i].slot + 2];
  for (int32_t s = 0; s < n_slots; ++s) p->slot_first[s + 2] += p->slot_first[s + 1];
  for (int32_t i = 0; i < n_refs; ++i)
    if (refs[i].slot >= 0) p->slot_refs[p->slot_first[refs[i].slot + 1]++] = i;
  fl_piece_rebind(p, nullptr, nullptr, nullptr, threads);
  return p;
}

void fl_piece_free(fl_piece *p) {
  if (!p) return;
  void *parts[] = {p->steps, p->widths, p->dims, p->refs, p->bufs, p->slot_first, p->slot_refs,
                   p->slots, p->units, p->group_first, p->group_shares, p->unit_states,
                   p->group_states, p->times, p->longest};
  for (void *part : parts) free(part);
  free(p);
}

void fl_piece_set(fl_piece *p, int32_t slot, void *memory) {
  if (p->slots[slot] == memory) return;
  p->slots[slot] = static_cast<char *>(memory);
  resolve(p, slot);
}

int32_t fl_piece_uses(const fl_piece *p, int32_t slot) {
  return p->slot_first[slot + 1] > p->slot_first[slot];
}

void fl_piece_rebind(fl_piece *p, const int64_t *dims, const int32_t *widths,
                     const int64_t *offsets, int32_t threads) {
  if (dims && p->n_dims) memcpy(p->dims, dims, p->n_dims * sizeof(int64_t));
  if (widths && p->n_steps) memcpy(p->widths, widths, p->n_steps * sizeof(int32_t));
  if (offsets)
    for (int32_t i = 0; i < p->n_refs; ++i) p->refs[i].offset = offsets[i];
  p->threads = threads < 1 ? 1 : threads > kMaxThreads ? kMaxThreads : threads;
  arrange(p);
  for (int32_t slot = 0; slot < p->n_slots; ++slot) resolve(p, slot);
}

int32_t fl_piece_begin(fl_piece *p) { return __atomic_exchange_n(&p->busy, 1, __ATOMIC_ACQUIRE); }

void fl_piece_end(fl_piece *p) { __atomic_store_n(&p->busy, 0, __ATOMIC_RELEASE); }

void fl_piece_go(fl_piece *p) {
  if (p->shared && team.parallel && !team.in_parallel())
    run_parallel(p);
  else
    run_serial(p);
  if (!p->profiling) return;
  ++p->runs;
  for (int32_t s = 0; s < p->n_steps; ++s) {
    p->times[s].wall += p->longest[s];
    p->longest[s] = 0;
  }
}

int32_t fl_piece_run(fl_piece *p) {
  if (fl_piece_begin(p)) return 1;
  fl_piece_go(p);
  fl_piece_end(p);
  return 0;
}

void fl_piece_profile(fl_piece *p, int32_t on) {
  memset(p->times, 0, p->n_steps * sizeof(fl_time));
  p->runs = 0;
  p->profiling = on;
}

uint64_t fl_piece_times(const fl_piece *p, fl_time *times) {
  memcpy(times, p->times, p->n_steps * sizeof(fl_time));
  return p->runs;
}
}
