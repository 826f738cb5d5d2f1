"""Which configuration of each kernel runs at which sizes, on GPUs: by a model, or by measurement.

`Chooser` (`fuseline.choose.chooser`) takes emitted ops and gives them back with one configuration a
launch and range of sizes. `model` ranks configurations by numbers; `pick` builds as few of them as
that needs; `timing` measures, `trial` makes an op something that can be measured, and `table` keeps
what was found in the cache.
"""
