"""The artifact: one ``.fuse`` file with everything that a compiled model needs to run.

    manifest.json                     what the file holds, and a digest of each other member
    programs/<name>/<target>.json     plan, and what a call takes and gives
    programs/<name>/<target>.ir       the func after all passes
    sources/<target>/...              the source of each kernel
    binaries/<target>/...             shared objects for CPUs, cubin and PTX for GPUs
    weights.safetensors               parameters, buffers and constants, mapped into memory

It is a zip without compression, each member aligned. `archive` reads and writes the file, `codec`
turns dataclasses into JSON and checks them on the way back, `weights` holds tensors, `manifest` and
`program` say what is in it. What writes one (`fuseline.export`) needs the compiler; what loads one
(`load`) needs torch and the runtime alone.
"""
