// Runs the steps of a piece, on one thread or on several.
//
// Steps are cut into shares that threads claim from bit masks, each thread its own share first and
// then what is left. A thread that the system has not scheduled holds nobody up: the others do its
// share. Between steps that depend on each other, threads wait for the shares to be done, and not for
// each other: spinning for a bounded time, then asleep in the kernel.
//
// Consecutive steps of one share form a chain that one thread runs without meeting the others.
// Steps marked independent form a group with those before them, and are waited for together.
//
// A helper may still be on its way out of one run when the next begins. Whatever it could change
// carries the number of its run, so that it changes nothing and leaves.
#include "fuseline_team.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

namespace {

using fl::Patience;

constexpr int32_t kShares = 32;  // in a word of claims, beside the number of the run
constexpr int32_t kWords = FL_MAX_SHARES / kShares;

// What one thread claims at a time: one step cut into shares, or a chain of steps of one share.
struct Unit {
  int32_t first, count;  // steps
  int32_t width;         // shares
};

// What changes as threads meet: a cache line to itself for each unit and each group.
struct alignas(64) UnitState {
  uint64_t claimed[kWords];  // high half: the run; low half: shares that somebody has taken
};

struct alignas(64) GroupState {
  int32_t pending;  // shares not yet done
};

inline uint64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

// The shares of a unit of this width that word `w` stands for, as bits.
inline uint32_t shares_in(int32_t width, int32_t w) {
  int32_t count = width - w * kShares;
  return count >= kShares ? ~uint32_t(0) : count <= 0 ? 0 : (uint32_t(1) << count) - 1;
}

inline uint64_t tagged(uint32_t run, uint32_t low) { return uint64_t(run) << 32 | low; }

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
  int32_t *widths;
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
  int32_t *faults;    // of each step, since last asked
  uint64_t runs;
  alignas(64) uint64_t current;   // high half: the run; low half: its groups that are done
  alignas(64) uint32_t sleepers;  // threads that may be asleep on the low half of `current`
};

namespace {

int32_t clamped(int32_t threads) {
  return threads < 1 ? 1 : threads > FL_MAX_THREADS ? FL_MAX_THREADS : threads;
}

void add_group(fl_piece *p) { p->group_first[p->n_groups++] = p->n_units; }

void add_unit(fl_piece *p, int32_t step, int32_t width) { p->units[p->n_units++] = Unit{step, 1, width}; }

// Cuts the steps into units and groups for the present widths.
void arrange(fl_piece *p) {
  p->n_units = p->n_groups = 0;
  for (int32_t s = 0; s < p->n_steps; ++s) {
    const int32_t asked = p->widths[s];
    const int32_t width = asked < 1 ? 1 : asked > FL_MAX_SHARES ? FL_MAX_SHARES : asked;
    if (s == 0) {
      add_group(p);
      add_unit(p, s, width);
      continue;
    }
    Unit &last = p->units[p->n_units - 1];
    if (p->steps[s].independent) {
      if (last.count > 1) {  // it is independent of the last step of the chain, and not of the rest
        --last.count;
        add_group(p);
        add_unit(p, s - 1, 1);
      }
      add_unit(p, s, width);
      continue;
    }
    const bool alone = p->group_first[p->n_groups - 1] == p->n_units - 1;
    if (alone && width == 1 && last.width == 1) {
      ++last.count;
      continue;
    }
    add_group(p);
    add_unit(p, s, width);
  }
  p->group_first[p->n_groups] = p->n_units;
  int32_t shares = 0;
  for (int32_t g = 0; g < p->n_groups; ++g) {
    p->group_shares[g] = 0;
    for (int32_t u = p->group_first[g]; u < p->group_first[g + 1]; ++u)
      p->group_shares[g] += p->units[u].width;
    shares += p->group_shares[g];
  }
  p->shared = p->threads > 1 && shares > p->n_groups;
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
  fl_call c{p->bufs + step.buf, p->dims + step.dim, &p->host, tid, nth, p->faults + s};
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

// Claims and runs those shares of a unit that are in word `w`, the share `first` before others;
// gives how many were run here.
int32_t work_on(fl_piece *p, int32_t u, int32_t w, uint32_t run, int32_t first) {
  const Unit &unit = p->units[u];
  uint64_t *claimed = &p->unit_states[u].claimed[w];
  const uint64_t full = tagged(run, shares_in(unit.width, w));
  int32_t done = 0, share = first;
  uint64_t seen = __atomic_load_n(claimed, __ATOMIC_RELAXED);
  while (seen != full && seen >> 32 == run) {
    uint64_t bit = uint64_t(1) << share;
    if (!(seen & bit) && __atomic_compare_exchange_n(claimed, &seen, seen | bit, true,
                                                     __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
      run_share(p, unit, w * kShares + share);
      ++done;
      seen = __atomic_load_n(claimed, __ATOMIC_RELAXED);
    }
    uint32_t left = uint32_t(full) & ~uint32_t(seen);
    if (left && !(left >> share & 1)) share = __builtin_ctz(left);
  }
  return done;
}

int32_t work_on(fl_piece *p, int32_t u, uint32_t run, int32_t thread) {
  const int32_t width = p->units[u].width, own = thread < width ? thread : 0;
  const int32_t words = (width + kShares - 1) / kShares;
  int32_t done = work_on(p, u, own / kShares, run, own % kShares);
  for (int32_t w = 0; w < words; ++w)
    if (w != own / kShares) done += work_on(p, u, w, run, 0);
  return done;
}

// The half of `current` that counts groups, for the kernel to compare.
uint32_t *groups_word(fl_piece *p) {
  uint32_t *halves = reinterpret_cast<uint32_t *>(&p->current);
  return __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? halves : halves + 1;
}

void finish(fl_piece *p, uint32_t run, uint32_t group) {
  __atomic_store_n(&p->current, tagged(run, group + 1), __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&p->sleepers, __ATOMIC_SEQ_CST)) fl::futex_wake_all(groups_word(p));
}

// Waits until `group` of this run is done; gives what comes then.
uint64_t await(fl_piece *p, uint32_t run, uint32_t group, Patience &patience) {
  const uint64_t before = tagged(run, group);
  uint64_t seen;
  for (int32_t i = 0; i < patience.spins; ++i) {
    if ((seen = __atomic_load_n(&p->current, __ATOMIC_ACQUIRE)) != before) {
      patience.rewarded();
      return seen;
    }
    fl::pause_briefly();
  }
  patience.in_vain();
  __atomic_fetch_add(&p->sleepers, 1, __ATOMIC_SEQ_CST);
  while ((seen = __atomic_load_n(&p->current, __ATOMIC_SEQ_CST)) == before)
    fl::futex_wait(groups_word(p), group);
  __atomic_fetch_sub(&p->sleepers, 1, __ATOMIC_SEQ_CST);
  return seen;
}

// Makes ready for a run, while helpers may still be leaving the one before.
void begin_run(fl_piece *p) {
  const uint32_t run = uint32_t(__atomic_load_n(&p->current, __ATOMIC_RELAXED) >> 32) + 1;
  for (int32_t u = 0; u < p->n_units; ++u)
    for (int32_t w = 0; w < kWords && w * kShares < p->units[u].width; ++w)
      __atomic_store_n(&p->unit_states[u].claimed[w], tagged(run, 0), __ATOMIC_RELAXED);
  for (int32_t g = 0; g < p->n_groups; ++g)
    __atomic_store_n(&p->group_states[g].pending, p->group_shares[g], __ATOMIC_RELAXED);
  __atomic_store_n(&p->current, tagged(run, 0), __ATOMIC_SEQ_CST);
}

}  // namespace

void fl::take_part(fl_piece *p, int32_t thread) {
  if (thread >= p->threads) return;
  Patience patience;
  uint64_t seen = __atomic_load_n(&p->current, __ATOMIC_ACQUIRE);
  const uint32_t run = seen >> 32;
  while (seen >> 32 == run && uint32_t(seen) < uint32_t(p->n_groups)) {
    const uint32_t group = uint32_t(seen);
    int32_t done = 0;
    for (int32_t u = p->group_first[group]; u < p->group_first[group + 1]; ++u)
      done += work_on(p, u, run, thread);
    if (done && __atomic_sub_fetch(&p->group_states[group].pending, done, __ATOMIC_ACQ_REL) == 0)
      finish(p, run, group);
    seen = await(p, run, group, patience);
  }
}

namespace {

void run_parallel(fl_piece *p) {
  begin_run(p);
  if (!fl::team.run(p, p->threads)) fl::take_part(p, 0);
}

}  // namespace

extern "C" {

void fl_use_limits(const fl_limits *limits) { fl::team.limits = *limits; }

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
  p->faults = array<int32_t>(n_steps);
  void *parts[] = {p->steps, p->widths, p->dims, p->refs, p->bufs, p->slot_first, p->slot_refs,
                   p->slots, p->units, p->group_first, p->group_shares, p->unit_states,
                   p->group_states, p->times, p->longest, p->faults};
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
  p->threads = clamped(threads);
  arrange(p);
  for (int32_t slot = 0; slot < n_slots; ++slot) resolve(p, slot);
  return p;
}

void fl_piece_free(fl_piece *p) {
  if (!p) return;
  fl::team.settle();
  void *parts[] = {p->steps, p->widths, p->dims, p->refs, p->bufs, p->slot_first, p->slot_refs,
                   p->slots, p->units, p->group_first, p->group_shares, p->unit_states,
                   p->group_states, p->times, p->longest, p->faults};
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
  fl::team.settle();
  if (dims && p->n_dims) memcpy(p->dims, dims, p->n_dims * sizeof(int64_t));
  if (widths && p->n_steps) memcpy(p->widths, widths, p->n_steps * sizeof(int32_t));
  if (offsets)
    for (int32_t i = 0; i < p->n_refs; ++i) p->refs[i].offset = offsets[i];
  p->threads = clamped(threads);
  arrange(p);
  for (int32_t slot = 0; slot < p->n_slots; ++slot) resolve(p, slot);
}

int32_t fl_piece_begin(fl_piece *p) { return __atomic_exchange_n(&p->busy, 1, __ATOMIC_ACQUIRE); }

void fl_piece_end(fl_piece *p) { __atomic_store_n(&p->busy, 0, __ATOMIC_RELEASE); }

void fl_piece_go(fl_piece *p) {
  if (p->shared)
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

int32_t fl_piece_fault(fl_piece *p) {
  for (int32_t s = 0; s < p->n_steps; ++s) {
    if (!p->faults[s]) continue;
    memset(p->faults, 0, p->n_steps * sizeof(int32_t));
    return s + 1;
  }
  return 0;
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
