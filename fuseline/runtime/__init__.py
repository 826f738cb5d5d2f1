"""Running compiled programs: the cache of built code, the toolchain, native pieces, the plan."""
