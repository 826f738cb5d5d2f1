// Helper threads that come when they can: nobody ever waits for one to begin, or to leave.
//
// The caller of `run` works alone if it must. A helper that the system wakes late finds the work done
// and goes back to sleep; one that is still on its way out does not hold up the next run. (With an
// OpenMP region both would: its end is a barrier, at which a runtime spins for milliseconds while
// the thread that it waits for has no core to run on.)
#pragma once
#include "fuseline_abi.h"

#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace fl {

// What a helper does: take part in the piece as thread number `thread`, until it is done.
void take_part(fl_piece *piece, int32_t thread);

inline void futex_wait(const uint32_t *word, uint32_t seen) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

inline void futex_wake_all(const uint32_t *word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// How long to spin for something before sleeping: longer while that pays, shorter when it did not.
struct Patience {
  int32_t spins = kMost;
  static constexpr int32_t kMost = 4000, kLeast = 100;
  void rewarded() { spins = spins * 2 < kMost ? spins * 2 : kMost; }
  void in_vain() { spins = spins / 2 > kLeast ? spins / 2 : kLeast; }
};

struct Team {
  static constexpr uint32_t kOpen = 1u << 31;

  alignas(64) uint32_t ticket;  // counts runs; idle helpers sleep on it
  alignas(64) uint32_t gate;    // kOpen while a piece runs; and how many helpers are inside
  alignas(64) uint32_t parked;  // helpers that may be asleep
  fl_piece *piece;
  uint32_t taken;
  int32_t helpers;
  pthread_t threads[FL_MAX_THREADS];  // of the helpers
  cpu_set_t born;                     // cores of the threads that started them
  int left_alone = -1;                // the core that they keep off; -1 if one is new
  fl_limits limits;

  // Runs the piece on the caller and up to `threads - 1` helpers; false if another piece has them.
  bool run(fl_piece *p, int32_t threads) {
    if (__atomic_exchange_n(&taken, 1, __ATOMIC_ACQUIRE)) return false;
    while (helpers < threads - 1 && start_helper()) {
    }
    const int omp = limits.omp_max ? limits.omp_max() : 0;
    if (limits.omp_set) limits.omp_set(1);
    const int mkl = limits.mkl_local ? limits.mkl_local(1) : 0;
    __atomic_store_n(&piece, p, __ATOMIC_RELEASE);
    __atomic_fetch_or(&gate, kOpen, __ATOMIC_SEQ_CST);
    __atomic_fetch_add(&ticket, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&parked, __ATOMIC_SEQ_CST)) {
      keep_apart();
      futex_wake_all(&ticket);
    }
    take_part(p, 0);
    __atomic_fetch_and(&gate, ~kOpen, __ATOMIC_SEQ_CST);
    __atomic_store_n(&piece, nullptr, __ATOMIC_RELEASE);
    if (limits.mkl_local) limits.mkl_local(mkl);
    if (limits.omp_set) limits.omp_set(omp);
    __atomic_store_n(&taken, 0, __ATOMIC_RELEASE);
    return true;
  }

  // Keeps helpers off the caller's core. To wake few cores a system may put a thread that it wakes
  // beside the one that wakes it, to run when that one's slice ends: long after its share was done.
  // What a caller is bound to does not count: helpers are there for all threads of the process.
  void keep_apart() {
    const int core = sched_getcpu();
    if (core < 0 || core == left_alone) return;
    left_alone = core;
    cpu_set_t others = born;
    CPU_CLR(core, &others);
    if (CPU_COUNT(&others) == 0) return;
    for (int32_t i = 0; i < helpers; ++i) {
      if (pthread_setaffinity_np(threads[i], sizeof others, &others)) {
        CPU_ZERO(&born);  // it is not allowed: never again
        return;
      }
    }
  }

  // Waits until no helper is inside a piece: what it reads there may then be changed or freed.
  void settle() {
    for (int tries = 0; __atomic_load_n(&gate, __ATOMIC_ACQUIRE) & ~kOpen; ++tries)
      tries < 100 ? (void)sched_yield() : (void)usleep(50);
  }

  void help(int32_t number) {
    if (limits.omp_set) limits.omp_set(1);  // a library that a kernel calls starts no team here
    if (limits.mkl_local) limits.mkl_local(1);
    Patience patience;
    for (;;) {
      uint32_t seen = __atomic_load_n(&ticket, __ATOMIC_SEQ_CST);
      if (enter()) {
        fl_piece *p = __atomic_load_n(&piece, __ATOMIC_ACQUIRE);
        if (p) take_part(p, number);
        __atomic_fetch_sub(&gate, 1, __ATOMIC_RELEASE);
      }
      await_ticket(seen, patience);
    }
  }

  bool enter() {
    uint32_t seen = __atomic_load_n(&gate, __ATOMIC_RELAXED);
    while (seen & kOpen)
      if (__atomic_compare_exchange_n(&gate, &seen, seen + 1, true, __ATOMIC_SEQ_CST,
                                      __ATOMIC_RELAXED))
        return true;
    return false;
  }

  void await_ticket(uint32_t seen, Patience &patience) {
    for (int32_t i = 0; i < patience.spins; ++i) {
      if (__atomic_load_n(&ticket, __ATOMIC_RELAXED) != seen) return patience.rewarded();
      pause_briefly();
    }
    patience.in_vain();
    __atomic_fetch_add(&parked, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&ticket, __ATOMIC_SEQ_CST) == seen) futex_wait(&ticket, seen);
    __atomic_fetch_sub(&parked, 1, __ATOMIC_SEQ_CST);
  }

  bool start_helper();
};

inline Team team;

struct Start {
  int32_t number;
};

inline bool Team::start_helper() {
  static Start starts[FL_MAX_THREADS];
  if (helpers == 0) {
    // A forked child has none of the threads: it begins anew.
    static bool watched = pthread_atfork(nullptr, nullptr, [] {
                            fl_limits kept = team.limits;
                            team = Team{};
                            team.limits = kept;
                          }) == 0;
    if (!watched) return false;
  }
  Start *start = &starts[helpers];
  start->number = helpers + 1;
  sigset_t all, before;
  sigfillset(&all);  // signals are for the threads that the program has made
  pthread_sigmask(SIG_SETMASK, &all, &before);
  pthread_t thread;
  int failed = pthread_create(
      &thread, nullptr,
      [](void *given) -> void * {
        team.help(static_cast<Start *>(given)->number);
        return nullptr;
      },
      start);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (failed) return false;
  pthread_detach(thread);
  threads[helpers++] = thread;
  cpu_set_t own;
  if (sched_getaffinity(0, sizeof own, &own) == 0) CPU_OR(&born, &born, &own);
  left_alone = -1;
  return true;
}

}  // namespace fl
