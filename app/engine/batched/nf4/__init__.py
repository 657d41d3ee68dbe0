"""Linear layers in NF4 for 1 to 128 rows, on tensor cores at nearly the rate at which memory can be read.

`layout` draws the bytes and makes them of bitsandbytes' own. `kernels.cu` multiplies, or `wide.cu` from 9 rows on where
the card has `wgmma`. `compiling` builds them for this GPU, `variants` and `wide` know which build is quickest for a
shape, `linear` is the layer, `repack` puts it into a model.
"""
