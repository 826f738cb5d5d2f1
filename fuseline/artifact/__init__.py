"""The artifact: one ``.fuse`` file with everything that a compiled model needs to run.

    manifest.json                     what the file holds, and a digest of each other member
    programs/<name>/<target>.json     plan, and what a call takes and gives
    programs/<name>/<target>.ir       the func after all passes
    sources/<target>/...              the source of each kernel
    binaries/<target>/...             shared objects for CPUs, cubin and PTX for GPUs
    weights.safetensors               parameters, buffers and constants, mapped into memory
    signature.json                    of the manifest, where the file is signed

It is a zip without compression, each member aligned. `archive` reads and writes the file, `codec`
turns dataclasses into JSON and checks them on the way back, `weights` holds tensors, `manifest` and
`program` say what is in it. What writes one (`fuseline.export`) needs the compiler; what loads one
(`load`) needs torch and the runtime alone.

Files are not trusted: `directory`, `codec`, `weights`, `check` and `check_program` hold what they
read to itself, `bounds` what depends on the sizes of a call, and `signing` tells whose it is.
`inspecting` and `differences` look at files without running anything.
"""
