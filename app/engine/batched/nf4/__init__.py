"""Linear layers in NF4 for 1 to 64 rows, on tensor cores at nearly the rate at which memory can be read.

`layout` draws the bytes and makes them of bitsandbytes' own, `kernels.cu` multiplies, `compiling` builds that for this
GPU, `variants` knows which build is quickest for a shape, `linear` is the layer, `repack` puts it into a model.
"""
