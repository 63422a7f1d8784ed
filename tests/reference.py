"""What is computed, written out in NumPy float64 loops; it imports nothing of svda_jax.

Axes: B images, N tokens, H heads, D width, K per-head width.
"""

import numpy as np


def unit(vector):
    """The vector scaled to length one; a zero vector stays zero."""
    length = np.sqrt(np.sum(np.square(vector)))
    return vector / length if length > 0 else vector


def softmax(row):
    exponentials = np.exp(row - row.max())
    return exponentials / exponentials.sum()


def attention_weights(query, key, sigma=None):
    """`[B, N, H, K]` twice, `[H, K]` or None -> `[B, H, N, N]`."""
    query, key = np.float64(query), np.float64(key)
    images, tokens, heads, width = query.shape
    weights = np.zeros((images, heads, tokens, tokens))
    for b in range(images):
        for h in range(heads):
            for i in range(tokens):
                scores = np.zeros(tokens)
                for j in range(tokens):
                    q, k = query[b, i, h], key[b, j, h]
                    if sigma is not None:
                        q, k = unit(q) * np.float64(sigma[h]), unit(k)
                    scores[j] = np.sum(q * k) / np.sqrt(width)
                weights[b, h, i] = softmax(scores)
    return weights


def attention(query, key, value, sigma=None):
    """`[B, N, H, K]` three times, `[H, K]` or None -> `[B, N, H, K]`."""
    weights = attention_weights(query, key, sigma)
    out = np.zeros(np.shape(value))
    for b, i, h in np.ndindex(out.shape[:3]):
        for j in range(out.shape[1]):
            out[b, i, h] += weights[b, h, i, j] * np.float64(value[b, j, h])
    return out


def linear(x, kernel, bias):
    """`[B, N, D]`, `[D, H, K]`, `[H, K]` -> `[B, N, H, K]`."""
    out = np.zeros((*x.shape[:2], *bias.shape))
    for b, i, h, k in np.ndindex(out.shape):
        out[b, i, h, k] = np.sum(x[b, i] * kernel[:, h, k]) + bias[h, k]
    return out


def layer_norm(x, scale, bias):
    """`[B, N, D]`, `[D]` twice -> `[B, N, D]`."""
    out = np.zeros(x.shape)
    for b, i in np.ndindex(x.shape[:2]):
        centred = x[b, i] - x[b, i].mean()
        deviation = np.sqrt(np.mean(centred**2) + 1e-6)
        out[b, i] = centred / deviation * scale + bias
    return out


def normalize(x):
    """`[B, N, H, K]` -> the same, each vector of length one."""
    return np.apply_along_axis(unit, -1, x)


def attend(query, key, value, sigma):
    """`[B, N, H, K]` three times, `[H, K]` -> `[B, N, H, K]`, no divisor in scores."""
    return attention(query * sigma * np.sqrt(query.shape[-1]), key, value)


def x_transformers_weights(query, key, query_scale, key_scale, scale):
    """Attention weights of x-transformers with attn_qk_norm and its dim_scale.

    `[B, N, H, K]` twice, the learned scales `[H, K]` twice -> `[B, H, N, N]`.
    """
    query, key = np.float64(query), np.float64(key)
    query = query / np.linalg.norm(query, axis=-1, keepdims=True) * query_scale
    key = key / np.linalg.norm(key, axis=-1, keepdims=True) * key_scale
    scores = np.einsum("bihk,bjhk->bhij", query, key) * scale
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def orthonormality_penalty(kernel):
    """`[D, H, K]` -> `[H]`."""
    _, heads, width = kernel.shape
    penalty = np.zeros(heads)
    for h in range(heads):
        for k in range(width):
            for m in range(width):
                product = np.sum(
                    unit(np.float64(kernel[:, h, k]))
                    * unit(np.float64(kernel[:, h, m]))
                )
                penalty[h] += (product - (k == m)) ** 2 / width
    return penalty


def singular_values(query_kernel, key_kernel):
    """`[D, H, K]` twice -> `[H, K]`, from the D x D product itself."""
    _, heads, width = query_kernel.shape
    values = []
    for h in range(heads):
        product = np.float64(query_kernel[:, h]) @ np.float64(key_kernel[:, h]).T
        values.append(np.linalg.svd(product, compute_uv=False)[:width])
    return np.array(values)


def cross_entropy(logits, labels, label_smoothing=0.0):
    """`[B, C]`, `[B]` -> `[B]`, nats."""
    losses = np.zeros(len(labels))
    for b, label in enumerate(labels):
        probabilities = softmax(np.float64(logits[b]))
        classes = len(probabilities)
        for c, probability in enumerate(probabilities):
            target = (1 - label_smoothing) * (c == label) + label_smoothing / classes
            losses[b] -= target * np.log(probability)
    return losses


def adamw(param, grads, *, learning_rates, decay, b1=0.9, b2=0.999, eps=1e-8):
    """A parameter after one AdamW step for each gradient and learning rate."""
    param, first, second = np.float64(param), 0.0, 0.0
    for t, (grad, rate) in enumerate(zip(grads, learning_rates, strict=True), start=1):
        first = b1 * first + (1 - b1) * grad
        second = b2 * second + (1 - b2) * grad**2
        update = (first / (1 - b1**t)) / (np.sqrt(second / (1 - b2**t)) + eps)
        param = param - rate * (update + decay * param)
    return param


def spectral_entropy(spectrum):
    """`[K]` -> nats."""
    total, entropy = sum(abs(float(value)) for value in spectrum), 0.0
    for value in spectrum:
        p = abs(float(value)) / total if total > 0 else 0.0
        if p > 0:
            entropy -= p * np.log(p)
    return entropy


def effective_rank(spectrum):
    """`[K]` -> number of directions."""
    return np.exp(spectral_entropy(spectrum))


def spectral_sparsity(spectrum):
    """`[K]` -> Hoyer's measure."""
    if len(spectrum) == 1:
        return 0.0
    values = np.abs(np.float64(spectrum))
    if not values.any():
        return 1.0
    values = values / values.max()
    root = np.sqrt(len(values))
    return (root - values.sum() / np.sqrt(np.sum(values**2))) / (root - 1)


def retained_rank(spectrum, rho):
    """`[K]` -> fewest directions whose energy reaches rho of all."""
    values = np.abs(np.float64(spectrum))
    if not values.any():
        return 1
    energies = sorted((values / values.max()) ** 2, reverse=True)
    kept = 0.0
    for rank, energy in enumerate(energies, start=1):
        kept += energy
        if kept >= rho * sum(energies):
            return rank
    return len(energies)


def angular_alignment(query, key):
    """`[B, N, H, K]` twice -> `[B, H]`."""
    images, tokens, heads, _ = query.shape
    alignment = np.zeros((images, heads))
    for b, h, i, j in np.ndindex(images, heads, tokens, tokens):
        q, k = unit(np.float64(query[b, i, h])), unit(np.float64(key[b, j, h]))
        alignment[b, h] += abs(np.sum(q * k)) / tokens**2
    return alignment


def selectivity_index(weights):
    """`[B, H, N, N]` -> `[B, H]`."""
    images, heads, tokens, _ = weights.shape
    index = np.zeros((images, heads))
    for b, h, i in np.ndindex(images, heads, tokens):
        row = sorted(np.float64(weights[b, h, i]))
        largest, others = row[-1], row[:-1]
        rest = np.mean(others) if others else 0.0
        index[b, h] += (largest - rest) / (largest + rest) / tokens
    return index


def perturbation_robustness(weights, perturbed):
    """`[B, H, N, N]` twice -> `[B, H]`."""
    images, heads, tokens, _ = weights.shape
    robustness = np.ones((images, heads))
    for b, h, i, j in np.ndindex(images, heads, tokens, tokens):
        moved = abs(np.float64(weights[b, h, i, j]) - perturbed[b, h, i, j])
        robustness[b, h] -= moved / 2 / tokens
    return robustness


def perturb(x, noise, scale):
    """`[B, N, H, K]` with noise `[N, H, K]` times scale and each vector's RMS."""
    x = np.float64(x)
    out = np.zeros_like(x)
    for b, i, h in np.ndindex(x.shape[:3]):
        rms = np.sqrt(np.mean(x[b, i, h] ** 2))
        out[b, i, h] = x[b, i, h] + scale * rms * noise[i, h]
    return out


def score_spectrum(query, key, sigma=None):
    """`[B, N, H, K]` twice, `[H, K]` or None -> `[H, K]`, of all scores there are.

    The singular values of the matrix of every query's centred score with every key,
    over the square root of their number.
    """
    query, key = np.float64(query), np.float64(key)
    if sigma is not None:
        query, key = normalize(query), normalize(key)
    batch, tokens, heads, width = query.shape
    values = np.zeros((heads, width))
    for h in range(heads):
        factors = np.ones(width) if sigma is None else np.float64(sigma[h])
        scores = np.zeros((batch * tokens, batch * tokens))
        for b, c in np.ndindex(batch, batch):
            block = query[b, :, h] * factors @ key[c, :, h].T / np.sqrt(width)
            block = block - block.mean(axis=1, keepdims=True)
            rows = slice(b * tokens, (b + 1) * tokens)
            scores[rows, c * tokens : (c + 1) * tokens] = block
        found = np.linalg.svd(scores / (batch * tokens), compute_uv=False)[:width]
        values[h, : len(found)] = found
    return values
