"""Whether runs differ in accuracy, with intervals: sentences for the report."""

import numpy as np
import scipy.stats


def interval(right):
    """The 95 % interval of a run's accuracy over images, in %.

    Args:
      right: `[n]` bool, whether each image is classified rightly.

    Source: Wilson 1927.
    """
    found = scipy.stats.binomtest(int(right.sum()), len(right))
    low, high = found.proportion_ci(method="wilson")
    return 100 * low, 100 * high


def compare_on_images(first, second):
    """How the accuracy of two runs differs on the same images.

    The interval is that of the mean of the paired differences, p that of McNemar's
    exact test: how likely the images that one run alone gets right are shared out so
    unevenly by chance.

    Args:
      first: its name, and whether it is right, `[n]` bool.
      second: likewise, image by image.

    Returns:
      A sentence.

    Source: McNemar 1947.
    """
    (name, right), (other, also) = first, second
    differences = 100.0 * (right.astype(int) - also)
    mean, half = differences.mean(), 1.96 * scipy.stats.sem(differences)
    alone, not_alone = int((right & ~also).sum()), int((also & ~right).sum())
    text = f"{name} over {other}: {mean:+.2f} points on the same images"
    if not alone + not_alone:
        return f"{text}; they are right and wrong on the same ones."
    p = scipy.stats.binomtest(alone, alone + not_alone).pvalue
    interval = f"{mean - half:+.2f} to {mean + half:+.2f}, 95 % interval over images"
    return (
        f"{text} ({interval}). "
        f"{alone:,} images {name} alone gets right, {not_alone:,} {other} alone "
        f"(McNemar's p {_p(p)}): {_judge(p)}"
    )


def compare_by_seed(runs):
    """How SVDA differs from softmax attention over seeds that both were trained with.

    Args:
      runs: attention, seed, and a dict of numbers by name with their unit in words, of
        each; NaN where one was not measured.

    Returns:
      A sentence a number: mean of the paired differences and its 95 % interval
      (Student's t). None where fewer than two seeds are shared, or an attention has two
      runs of one seed.
    """
    values = {(attention, seed): numbers for attention, seed, numbers in runs}
    if len(values) < len(runs):
        return []
    seeds = {seed for _, seed, _ in runs}
    pairs = [
        (values["svda", seed], values["softmax", seed])
        for seed in sorted(seeds)
        if {("svda", seed), ("softmax", seed)} <= values.keys()
    ]
    if len(pairs) < 2:
        return []
    sentences = []
    for name in pairs[0][0]:
        one = np.array([svda[name] - softmax[name] for svda, softmax in pairs])
        if not np.isfinite(one).all():
            continue
        half = scipy.stats.t.ppf(0.975, len(one) - 1) * scipy.stats.sem(one)
        shown = "a difference" if abs(one.mean()) > half else "no difference shown"
        sentences.append(
            f"SVDA over softmax attention, {len(pairs)} seeds in pairs: "
            f"{one.mean():+.2f} ± {half:.2f} {name} (95 % interval over seeds): "
            f"{shown}."
        )
    return sentences


def _p(p):
    return f"= {p:.2g}" if p >= 0.001 else "< 0.001"


def _judge(p):
    if p > 0.05:
        return "no difference that these images could show."
    return "a difference on these images; another seed moves accuracy too."
