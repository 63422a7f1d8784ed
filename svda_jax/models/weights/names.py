"""What other libraries call the parameters of a `ViT`. No array is touched here."""

import dataclasses
import re


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """The names of one library.

    Attributes:
      label: what the library is called.
      modules: from its modules, or arrays, to ours, {} the number of a block. The first
        that leads to a module of ours is what is written, all are read.
      separator: between the parts of a name.
      leaves: what it calls our kernels, scales and biases.
      prefix: regular expression of what may stand before all names.
      gelu: `ViTConfig.gelu` where a file does not say it.
    """

    label: str
    modules: dict[str, str]
    separator: str
    leaves: dict[str, str]
    prefix: str
    gelu: str


_TORCH = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_FLAX = {name: name for name in _TORCH}

TIMM = Family(
    "timm",
    {
        "patch_embed.proj": "patch_embed/projection",
        "cls_token": "cls_token",
        "pos_embed": "position_embedding",
        "blocks.{}.norm1": "blocks/{}/attention_norm",
        "blocks.{}.attn.qkv": "blocks/{}/attention/qkv",
        "blocks.{}.attn.q_norm": "blocks/{}/attention/query_norm",
        "blocks.{}.attn.k_norm": "blocks/{}/attention/key_norm",
        "blocks.{}.attn.proj": "blocks/{}/attention/out",
        "blocks.{}.ls1.gamma": "blocks/{}/attention/gamma",
        "blocks.{}.norm2": "blocks/{}/mlp_norm",
        "blocks.{}.mlp.fc1": "blocks/{}/mlp/hidden",
        "blocks.{}.mlp.fc2": "blocks/{}/mlp/out",
        "blocks.{}.ls2.gamma": "blocks/{}/mlp/gamma",
        "norm": "norm",
        "fc_norm": "fc_norm",
        "head": "head",
    },
    separator=".",
    leaves=_TORCH,
    prefix="",
    gelu="erf",
)

# transformers 5 has other names in memory than in its files, which keep those of 4.
HUGGING_FACE = Family(
    "Hugging Face",
    {
        "embeddings.patch_embeddings.projection": "patch_embed/projection",
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "position_embedding",
        "encoder.layer.{}.layernorm_before": "blocks/{}/attention_norm",
        "encoder.layer.{}.attention.attention.query": "blocks/{}/attention/query",
        "encoder.layer.{}.attention.attention.key": "blocks/{}/attention/key",
        "encoder.layer.{}.attention.attention.value": "blocks/{}/attention/value",
        "encoder.layer.{}.attention.output.dense": "blocks/{}/attention/out",
        "encoder.layer.{}.layernorm_after": "blocks/{}/mlp_norm",
        "encoder.layer.{}.intermediate.dense": "blocks/{}/mlp/hidden",
        "encoder.layer.{}.output.dense": "blocks/{}/mlp/out",
        "layernorm": "norm",
        "classifier": "head",
        "layers.{}.layernorm_before": "blocks/{}/attention_norm",
        "layers.{}.attention.q_proj": "blocks/{}/attention/query",
        "layers.{}.attention.k_proj": "blocks/{}/attention/key",
        "layers.{}.attention.v_proj": "blocks/{}/attention/value",
        "layers.{}.attention.o_proj": "blocks/{}/attention/out",
        "layers.{}.layernorm_after": "blocks/{}/mlp_norm",
        "layers.{}.mlp.fc1": "blocks/{}/mlp/hidden",
        "layers.{}.mlp.fc2": "blocks/{}/mlp/out",
    },
    separator=".",
    leaves=_TORCH,
    prefix=r"(vit|deit)\.",
    gelu="erf",
)

# vision_transformer's names, those of AugReg; then where big_vision's are others. Ours
# alone is sigma, of SVDA.
FLAX = Family(
    "AugReg and big_vision",
    {
        "embedding": "patch_embed/projection",
        "cls": "cls_token",
        "Transformer/posembed_input/pos_embedding": "position_embedding",
        **{
            f"Transformer/encoderblock_{{}}/{theirs}": f"blocks/{{}}/{ours}"
            for theirs, ours in {
                "LayerNorm_0": "attention_norm",
                "MultiHeadDotProductAttention_1/query": "attention/query",
                "MultiHeadDotProductAttention_1/key": "attention/key",
                "MultiHeadDotProductAttention_1/value": "attention/value",
                "MultiHeadDotProductAttention_1/out": "attention/out",
                "MultiHeadDotProductAttention_1/sigma": "attention/sigma",
                "LayerNorm_2": "mlp_norm",
                "MlpBlock_3/Dense_0": "mlp/hidden",
                "MlpBlock_3/Dense_1": "mlp/out",
                "MultiHeadDotProductAttention_0/query": "attention/query",
                "MultiHeadDotProductAttention_0/key": "attention/key",
                "MultiHeadDotProductAttention_0/value": "attention/value",
                "MultiHeadDotProductAttention_0/out": "attention/out",
                "LayerNorm_1": "mlp_norm",
                "MlpBlock_0/Dense_0": "mlp/hidden",
                "MlpBlock_0/Dense_1": "mlp/out",
            }.items()
        },
        "Transformer/encoder_norm": "norm",
        "head": "head",
        "pos_embedding": "position_embedding",
    },
    separator="/",
    leaves=_FLAX,
    prefix="(params|opt/target)/",
    gelu="tanh",
)

# Ours, of any `ViT`. A file says beside them what its model is.
OWN = dataclasses.replace(
    FLAX,
    label="svda-jax",
    modules={ours.replace("/", "."): ours for ours in FLAX.modules.values()},
    separator=".",
    prefix="",
)

FAMILIES = (TIMM, HUGGING_FACE, FLAX, OWN)

# What a file may hold that a `ViT` has no place for, and why.
FOREIGN = {
    r"dist_token|head_dist|distillation": "the second token of a distilled DeiT",
    r"MAPHead|attn_pool": "a head that pools by attention (MAP)",
    r"pre_logits": "a layer before the head (pre_logits)",
    r"reg_token|register_tokens": "register tokens",
    r"norm_pre": "a norm before the blocks",
}

# Of Hugging Face: read by none of its classifiers.
UNREAD = r"pooler\.dense\.(weight|bias)|embeddings\.mask_token"

_BLOCK = r"(.*?(?:blocks\.|layers?\.|encoderblock_))(\d+)(\..*|/.*)"


def translate(name, family, ndim):
    """Our name of a parameter, its parts joined by "/"; None where we have none.

    Args:
      name: theirs.
      family: a `Family`.
      ndim: axes of the array: a torch "weight" of one axis is a norm's scale.
    """
    name = re.sub(f"^(?:{family.prefix})", "", name) if family.prefix else name
    block = re.fullmatch(_BLOCK, name)
    number = int(block[2]) if block else None
    general = f"{block[1]}{{}}{block[3]}" if block else name
    if general in family.modules:
        return family.modules[general].format(number)
    module, _, theirs = general.rpartition(family.separator)
    leaf = {
        family.leaves[ours]: ours
        for ours in ("kernel" if ndim > 1 else "scale", "bias")
    }.get(theirs)
    if module not in family.modules or leaf is None:
        return None
    return f"{family.modules[module].format(number)}/{leaf}"


def translate_back(name, family):
    """Their name of a parameter of ours.

    Raises:
      KeyError: the library has none.
    """
    theirs = {}
    for module, ours in family.modules.items():
        theirs.setdefault(ours, module)
    number = (re.findall(r"(?<=^blocks/)\d+", name) or [""])[0]
    general = re.sub(r"(?<=^blocks/)\d+", "{}", name)
    if general in theirs:
        return theirs[general].format(number)
    module, _, leaf = general.rpartition("/")
    leaf = family.leaves[leaf]
    return f"{theirs[module]}{family.separator}{leaf}".format(number)
