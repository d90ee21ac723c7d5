"""Descriptors made better by what they find.

All of these are of global descriptors of unit length, whose similarity is the
dot product.
"""

import jax
import jax.numpy as jnp

from delf_jax.models.attention import l2_normalise


def expand(
  query: jax.Array,
  found: jax.Array,
  mask: jax.Array | None = None,
  *,
  alpha: float = 0.0,
) -> jax.Array:
  """Averages a query with what it found.

  One neighbour and alpha 0 is what the DELF paper ran for DIR+QE and siaMAC+QE
  (section 5.1); more of them average query expansion (Chum et al., ICCV 2007),
  and with alpha 3 alpha query expansion (Radenovic et al., TPAMI 2018).

  Args:
    query: [d].
    found: [k, d] the photographs most similar to it.
    mask: [k] bool, which of them there are; None for all.
    alpha: they are weighted by their similarity to the power alpha, where it is
      positive, and not at all elsewhere; 0 weights all by one. The query counts
      one.

  Returns:
    [d] of unit length.
  """
  weights = jnp.ones(found.shape[0])
  if alpha:
    similar = jnp.einsum("kd,d->k", found, query)
    positive = similar > 0
    raised = jnp.where(positive, similar, 1.0) ** alpha
    weights = jnp.where(positive, raised, 0.0)
  if mask is not None:
    weights = jnp.where(mask, weights, 0.0)
    found = jnp.where(mask[:, None], found, 0.0)
  return l2_normalise(query + jnp.einsum("k,kd->d", weights, found))


def augment_database(
  descriptors: jax.Array,
  *,
  neighbours: int,
  alpha: float = 0.0,
  block: int = 1024,
) -> jax.Array:
  """Puts in every photograph's place its mean with its nearest neighbours.

  Database-side feature augmentation (Turcot and Lowe, 2009; Arandjelovic and
  Zisserman, CVPR 2012).

  Args:
    descriptors: [n, d].
    neighbours: of a photograph, without itself.
    alpha: see `expand`.
    block: photographs compared at a time: [block, n] similarities are held.

  Returns:
    [n, d] of unit length, in the same order.
  """
  descriptors = jnp.asarray(descriptors)
  count = len(descriptors)
  neighbours = min(neighbours, count - 1)
  if neighbours < 1:
    return descriptors

  @jax.jit
  def augment(start, part):
    similar = jnp.einsum("bd,nd->bn", part, descriptors)
    own = start + jnp.arange(part.shape[0])
    itself = jnp.arange(count)[None, :] == own[:, None]
    _, rows = jax.lax.top_k(jnp.where(itself, -jnp.inf, similar), neighbours)
    return jax.vmap(lambda q, r: expand(q, descriptors[r], alpha=alpha))(
      part, rows
    )

  return jnp.concatenate(
    [
      augment(start, descriptors[start : start + block])
      for start in range(0, count, block)
    ]
  )
