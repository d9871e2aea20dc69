"""Shardings and tensor names of pooling heads with cross-attention and a GEGLU.

Paths under `pooling/`: latents [R,D]; norm, norm_context, mlp_norm: {scale, bias} [D];
q, k, v: kernel [D,N,H]; out/kernel [N,H,D]; mlp/{up,gate,down}/{kernel,bias}.
"""

from jax.sharding import PartitionSpec as P

from jaxembed.pooling.head import Tensor

RULES = (
    (r'pooling/latents$', P()),
    (r'pooling/(norm|norm_context|mlp_norm)/(scale|bias)$', P()),
    (r'pooling/[qkv]/kernel$', P('fsdp', 'tensor', None)),
    (r'pooling/out/kernel$', P('tensor', None, 'fsdp')),
    (r'pooling/mlp/(up|gate)/kernel$', P('fsdp', 'tensor')),
    (r'pooling/mlp/(up|gate)/bias$', P('tensor')),
    (r'pooling/mlp/down/kernel$', P('tensor', 'fsdp')),
    (r'pooling/mlp/down/bias$', P()),
)
TENSORS = (
    Tensor('latents', 'latents'),
    *(Tensor(f'{name}.{theirs}', f'{name}/{ours}')
      for name in ('norm', 'norm_context', 'mlp_norm')
      for theirs, ours in (('weight', 'scale'), ('bias', 'bias'))),
    *(Tensor(f'{name}.weight', f'{name}/kernel', transpose=True, out_axes=2)
      for name in 'qkv'),
    Tensor('out.weight', 'out/kernel', transpose=True),
    *(tensor for name in ('up', 'gate', 'down') for tensor in (
        Tensor(f'{name}.weight', f'mlp/{name}/kernel', transpose=True),
        Tensor(f'{name}.bias', f'mlp/{name}/bias'))),
)
FIELDS = ('latents', 'heads', 'head_dim', 'ff_mult')
# Of the torch modules' config.json.
KEYS = tuple(('num_latents' if name == 'latents' else name, name) for name in FIELDS)
