from jaxembed.kernels.latent_pool import blockwise
geglu_sums = blockwise.geglu_sums
