"""MolmoE as a composition of transformers' parts: CLIP's vision tower, pooling and projector, OLMoE's decoder.

Checkpoints keep the released names; transformers' own weight conversion maps them at loading and back at saving.
Not here: images (`preprocessing.py`) and prompts (`processing_molmoe.py`). This file travels with each variant.
Legend: B batch, N crops, P patches of a crop (576), F pooled features of a crop (144), S positions, d decoder width,
v vision width.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModel, GenerationMixin, OlmoeModel, PreTrainedModel
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, Concatenate, MergeModulelist, WeightConverter, WeightRenaming
from transformers.modeling_outputs import MoeCausalLMOutputWithPast
from transformers.models.clip.modeling_clip import CLIPEncoderLayer
from transformers.models.olmoe.modeling_olmoe import OlmoeRotaryEmbedding

from .compatibility import CACHE, insist_on_arguments, refuse_unknown, warn_if_untested
from .configuration_molmoe import MolmoEConfig

# transformers' layers swallow what they don't name
insist_on_arguments(OlmoeModel.forward, ("inputs_embeds", "attention_mask", "position_ids", "use_cache", CACHE))
insist_on_arguments(CLIPEncoderLayer.forward, ("hidden_states", "attention_mask"))
insist_on_arguments(GenerationMixin.prepare_inputs_for_generation, ("inputs_embeds", "is_first_iteration", CACHE))

# What callers may ask for, and the output it comes in; the decoder collects them.
_RECORDS = {
    "output_hidden_states": "hidden_states",
    "output_attentions": "attentions",
    "output_router_logits": "router_logits",
}
# What transformers hands every model, and this one has no use for: positions follow from mask and cache, and the
# tokenizer is for `generate`'s stop_strings.
_UNUSED = ("cache_position", "tokenizer")

# Released name -> name here, below `model.transformer.`; scoped to the decoder's class, because at saving the
# converter would also fuse the vision tower's q, k and v.
_DECODER_NAMES = (
    (r"^wte\.", r"^embed_tokens\."),
    (r"^ln_f\.", r"^norm\."),
    (r"^blocks\.", r"^layers\."),
    (r"\.attn\.attn_norm\.", r"\.input_layernorm\."),
    (r"\.attn\.attn_out\.", r"\.self_attn\.o_proj\."),
    (r"\.attn\.q_norm\.", r"\.self_attn\.q_norm\."),
    (r"\.attn\.k_norm\.", r"\.self_attn\.k_norm\."),
    (r"\.mlp\.ff_norm\.", r"\.post_attention_layernorm\."),
)
# below `model.vision_backbone.image_vit.`
_VISION_NAMES = (
    (r"^class_embedding", r"^embeddings\.class_embedding"),
    (r"^positional_embedding", r"^embeddings\.position_embedding\.weight"),
    (r"^patch_embedding\.", r"^embeddings\.patch_embedding\."),
    (r"^pre_ln\.", r"^pre_layrnorm\."),
    (r"^transformer\.resblocks\.", r"^encoder\.layers\."),
    (r"\.attention\.wq\.", r"\.self_attn\.q_proj\."),
    (r"\.attention\.wk\.", r"\.self_attn\.k_proj\."),
    (r"\.attention\.wv\.", r"\.self_attn\.v_proj\."),
    (r"\.attention\.wo\.", r"\.self_attn\.out_proj\."),
    (r"\.feed_forward\.w1\.", r"\.mlp\.fc1\."),
    (r"\.feed_forward\.w2\.", r"\.mlp\.fc2\."),
    (r"\.attention_norm\.", r"\.layer_norm1\."),
    (r"\.ffn_norm\.", r"\.layer_norm2\."),
)
# The other spelling, without the levels `attn` and `mlp`. Saving gives back the spelling that was loaded.
_FLAT_SPELLING = {
    rf"blocks\.(\d+)\.{part}\.": rf"blocks.\1.{level}.{part}."
    for level, parts in (
        ("attn", ("attn_norm", "att_proj", "q_norm", "k_norm", "attn_out")),
        ("mlp", ("ff_norm", "gate", "experts")),
    )
    for part in parts
}


class MolmoEEmbedding(nn.Module):
    """Two tables looked up as one; they stay two parameters, as in the checkpoint."""

    def __init__(self, rows: int, extra_rows: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(rows, width))
        self.new_embedding = nn.Parameter(torch.empty(extra_rows, width))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Embed ids of any shape; the values are looked up in the row-wise concatenation of the tables."""
        rows = self.embedding.shape[0]
        usual = F.embedding(input_ids.clamp(max=rows - 1), self.embedding)
        if not len(self.new_embedding):
            return usual
        extra = F.embedding((input_ids - rows).clamp(min=0), self.new_embedding)
        return torch.where((input_ids < rows).unsqueeze(-1), usual, extra)


class MolmoERotaryEmbedding(OlmoeRotaryEmbedding):
    """OLMoE's, except that `.to(bfloat16)` doesn't round the frequencies (that costs 1.6e-2 in the logits)."""

    inv_freq: Tensor
    original_inv_freq: Tensor

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        exact = (self.inv_freq, self.original_inv_freq)
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != exact[0].dtype:
            self.inv_freq, self.original_inv_freq = (tensor.to(self.inv_freq.device) for tensor in exact)
        return self


class MolmoEDecoder(OlmoeModel):
    """OLMoE's decoder with MolmoE's embedding, and with a k for each router."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__(config.decoder_config())
        self.embed_tokens = MolmoEEmbedding(config.embedding_rows, config.additional_vocab_size or 0, config.d_model)
        self.rotary_emb = MolmoERotaryEmbedding(self.config)
        for layer, k in zip(self.layers, config.top_k_per_block, strict=True):
            layer.mlp.gate.top_k = k
        self.post_init()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True  # transformers looks for its decorator in this file, but the experts are OLMoE's

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MolmoEEmbedding):
            init.normal_(module.embedding, std=self.config.initializer_range)
            init.normal_(module.new_embedding, std=self.config.initializer_range)


class MolmoEVisionTower(CLIPVisionModel):
    """CLIP's tower on patches instead of pixels, giving the outputs of chosen blocks instead of the last one."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__(config.vision_config())
        patch_values = 3 * self.config.patch_size**2
        # a convolution with stride = kernel is this product; patches arrive cut out, channel fastest
        self.embeddings.patch_embedding = nn.Linear(patch_values, self.config.hidden_size, bias=False)
        self.post_layernorm = nn.Identity()  # the checkpoint has none
        self.feature_blocks = config.feature_blocks
        self.post_init()

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [M, P, 588] to features [M, P, v * number of feature blocks], class token removed."""
        embeddings = self.embeddings
        tokens = torch.cat(
            (embeddings.class_embedding.expand(len(patches), 1, -1), embeddings.patch_embedding(patches)), dim=1
        )
        hidden = self.pre_layrnorm(tokens + embeddings.position_embedding.weight)  # [M, 1 + P, v]
        outputs = {}
        for index, block in enumerate(self.encoder.layers[: max(self.feature_blocks) + 1]):
            hidden = block(hidden, attention_mask=None)
            if index in self.feature_blocks:
                outputs[index] = hidden[:, 1:]
        return torch.cat([outputs[index] for index in self.feature_blocks], dim=-1)


class MolmoEPooling(nn.Module):
    """Attention over a window of patches whose query is their mean."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        self.heads, width = config.vision("image_num_heads"), config.vision("image_emb_dim")
        inner = self.heads * config.vision("image_head_dim")
        self.wq = nn.Linear(width * len(config.vit_layers), inner)
        self.wk = nn.Linear(width * len(config.vit_layers), inner)
        self.wv = nn.Linear(width * len(config.vit_layers), inner)
        self.wo = nn.Linear(inner, width)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows [M, patches of a window, 2v] to [M, v]."""
        query = self._split(self.wq(windows.mean(dim=1, keepdim=True)))
        pooled = F.scaled_dot_product_attention(query, self._split(self.wk(windows)), self._split(self.wv(windows)))
        return self.wo(pooled.flatten(1).to(windows.dtype))  # one query: [M, heads, 1, c] flattens to [M, heads * c]

    def _split(self, x: Tensor) -> Tensor:
        return x.float().unflatten(-1, (self.heads, -1)).transpose(1, 2)  # float32 as in the reference


class MolmoEProjector(nn.Module):
    """A gated MLP from vision width to decoder width."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        width, inner = config.vision("image_emb_dim"), config.mlp_width // 2
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, config.d_model, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Project [..., v] to [..., d]."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class MolmoEVisionBackbone(nn.Module):
    """From crops to features in the decoder's width."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        side = config.vision("image_default_input_size")
        self.grid = tuple(length // config.vision("image_patch_size") for length in side)
        self.window = (config.image_pooling_h, config.image_pooling_w)
        self.image_vit = MolmoEVisionTower(config)
        self.pad_embed = nn.Parameter(torch.empty(2, config.vision("image_emb_dim") * len(config.vit_layers)))
        self.image_pooling_2d = MolmoEPooling(config)
        self.image_projector = MolmoEProjector(config)

    def vit_features(self, images: Tensor) -> Tensor:
        """Crops [B, N, P, 588] to patch features [B, N, P, 2v]; those of crops that only fill up a batch are 0."""
        flag = ~is_batch_padding(images)  # before the cast: in 16 bits real pixels round onto the marker
        patches = images.flatten(0, 1).to(self.pad_embed.dtype)
        features = self.image_vit(patches).unflatten(0, images.shape[:2])
        return features * flag[..., None, None]

    def forward(self, images: Tensor, image_masks: Tensor) -> Tensor:
        """Crops [B, N, P, 588] and masks [B, N, P] (share of unpadded pixels) to features [B, N, F, d]."""
        features = self.vit_features(images)
        # the masks come shifted by one crop (its last row is -1, "partial"): the model was trained so
        all_padding, partial = image_masks == 0, (image_masks < 1) & (image_masks != 0)
        features = features + self.pad_embed[0] * all_padding[..., None] + self.pad_embed[1] * partial[..., None]
        (rows, columns), (h, w) = self.grid, self.window
        windows = features.flatten(0, 1).unflatten(1, (rows // h, h, columns // w, w))  # [BN, r, h, c, w, 2v]
        windows = windows.transpose(2, 3).flatten(3, 4).flatten(0, 2)  # [BN * F, h * w, 2v]
        pooled = self.image_projector(self.image_pooling_2d(windows))
        return pooled.unflatten(0, (*images.shape[:2], -1))


class MolmoEModel(nn.Module):
    """The two halves under the released names."""

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__()
        self.transformer = MolmoEDecoder(config)
        self.vision_backbone = MolmoEVisionBackbone(config)


class MolmoEForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """MolmoE: text and images in, logits over the head's rows out."""

    config_class = MolmoEConfig
    config: MolmoEConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ("OlmoeDecoderLayer", "CLIPEncoderLayer")
    _skip_keys_device_placement = ("cache", "past_key_values")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: MolmoEConfig) -> None:
        super().__init__(config)
        warn_if_untested(type(self).__name__)
        self.model = MolmoEModel(config)
        self.lm_head = nn.Linear(config.d_model, config.embedding_rows, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, key_mapping: Mapping[str, str] | None = None, **kwargs: Any) -> Any:
        """transformers' own, reading both spellings of the tensor names."""
        return super().from_pretrained(*args, key_mapping={**(key_mapping or {}), **_FLAT_SPELLING}, **kwargs)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MolmoEVisionBackbone):
            init.normal_(module.pad_embed, std=self.config.initializer_range)

    def get_input_embeddings(self) -> nn.Module:
        """Both embedding tables."""
        return self.model.transformer.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The untied head; it has fewer rows than the embedding."""
        return self.lm_head

    def get_decoder(self) -> nn.Module:
        """The language half."""
        return self.model.transformer

    def get_image_features(self, images: Tensor, image_masks: Tensor) -> Tensor:
        """Features [B, N, F, d] of crops [B, N, P, 588] with their masks [B, N, P]."""
        return self.model.vision_backbone(images, image_masks)

    def embed(
        self,
        input_ids: Tensor,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
    ) -> Tensor:
        """Token embeddings [B, S, d], image features added where `image_input_idx` [B, N, F] points."""
        embeds = self.get_input_embeddings()(input_ids.clamp(min=0))  # -1 marks padding, which the mask hides
        if images is None:
            return embeds
        if image_masks is None or image_input_idx is None:
            raise ValueError("images need image_masks and image_input_idx: pass what the processor returned.")
        features = self.get_image_features(images, image_masks).to(embeds)
        sample, crop, feature = (image_input_idx >= 0).nonzero(as_tuple=True)
        where = (sample, image_input_idx[sample, crop, feature].long())  # each sample has its own positions
        return embeds.index_put(where, features[sample, crop, feature], accumulate=True)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        cache: Any = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        **others: Any,
    ) -> MoeCausalLMOutputWithPast | tuple[Any, ...]:
        """Logits for `input_ids` [B, S] or `inputs_embeds` [B, S, d].

        images [B, N, P, 588] (float32, whatever the model's dtype), image_masks [B, N, P], image_input_idx [B, N, F]:
        as the processor gives them, with the prompt only. attention_mask [B, past + S]: padding may be left or right;
        without it, and without a cache, ids below 0 are padding. `cache` and `past_key_values` are two names of one
        thing. `logits_to_keep`: the last n positions, 0 for all. `others`: output_hidden_states, output_attentions,
        output_router_logits; any other argument is a TypeError.
        """
        refuse_unknown(others, (*_RECORDS, *_UNUSED), f"{type(self).__name__}.forward")
        cache = _one_cache(cache, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds.")
        past = cache.get_seq_length() if cache is not None else 0
        if images is not None and (past or input_ids is None):
            raise ValueError("images go with the prompt's input_ids, not with a filled cache or with inputs_embeds.")
        if attention_mask is None and input_ids is not None and not past:
            attention_mask = (input_ids >= 0).long()
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, images, image_masks, image_input_idx)
        if position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = positions(attention_mask)[:, -inputs_embeds.shape[1] :]
        outputs = self.model.transformer(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=self.config.use_cache if use_cache is None else use_cache,
            **{CACHE: cache},
            **{name: True for name in _RECORDS if self._asked_for(name, others.get(name))},
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            sizes = {"vocab_size": logits.shape[-1], "num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(logits=logits, labels=labels, **sizes)
        found = MoeCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            **{name: getattr(outputs, name) for name in _RECORDS.values()},
        )
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return found if as_dict else found.to_tuple()

    def _asked_for(self, record: str, argument: bool | None) -> bool:
        return bool(getattr(self.config, record, False) if argument is None else argument)

    def generate(self, inputs: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, for prompts (ids or embeddings) padded on either side.

        It appends new tokens at the end of a row, so padding is moved to the left first: in the sequences that
        come back the prompt is left-padded, with the pad id. Behind a filled cache only what is new is moved.
        """
        cache = _one_cache(kwargs.pop("cache", None), kwargs.pop("past_key_values", None))
        if cache is not None:
            kwargs[CACHE] = cache
        past = int(cache.get_seq_length()) if cache is not None else 0
        ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        embeds, mask = kwargs.get("inputs_embeds"), kwargs.get("attention_mask")
        if mask is None and ids is not None:
            mask = kwargs["attention_mask"] = (ids >= 0).long()
        prompt = ids if embeds is None else embeds
        if mask is not None and prompt is not None and mask.shape == prompt.shape[:2]:
            order = mask[:, past:].argsort(dim=1, stable=True) + past  # padding first, the rest in its order
            order = torch.cat((torch.arange(past, device=order.device).expand(len(order), -1), order), dim=1)
            kwargs["attention_mask"] = mask.gather(1, order)
            if ids is not None and ids.shape == mask.shape:
                ids = torch.where(mask > 0, ids, self.config.pad_token_id or 0).gather(1, order)
            if embeds is not None:
                kwargs["inputs_embeds"] = embeds.gather(1, order[..., None].expand_as(embeds))
            if kwargs.get("position_ids") is not None:
                kwargs["position_ids"] = kwargs["position_ids"].expand_as(order).gather(1, order)
            index = kwargs.get("image_input_idx")
            if index is not None:
                moved = order.argsort(dim=1).gather(1, index.flatten(1).clamp(min=0).long()).view_as(index)
                kwargs["image_input_idx"] = torch.where(index >= 0, moved.to(index.dtype), index)
        return super().generate(ids, *args, **kwargs)

    def generate_from_batch(self, batch: Mapping[str, Any], generation_config: Any = None, **kwargs: Any) -> Any:
        """The published Molmo's name for `generate`, with what the processor returned as one argument."""
        return self.generate(**batch, generation_config=generation_config, **kwargs)

    def prepare_inputs_for_generation(
        self, *args: Any, inputs_embeds: Tensor | None = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """transformers' own; images go with the prompt only, unless nothing is cached."""
        prepared = super().prepare_inputs_for_generation(
            *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in ("images", "image_masks", "image_input_idx"):
                prepared.pop(name, None)
        return prepared


def is_batch_padding(images: Tensor) -> Tensor:
    """Which crops [B, N] only fill up a batch: those with a value of exactly -1.

    No real pixel is -1 in float32. In 16 bits some round onto it, so there all values of the crop must be -1.
    """
    marked = (images == -1).flatten(-2)
    return marked.any(-1) if images.dtype in (torch.float32, torch.float64) else marked.all(-1)


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids [B, S] that don't count padding."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)


def _one_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache, by whichever name it was given."""
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("cache and past_key_values are two names of one thing: give one of them.")
    return past_key_values if cache is None else cache


def _renamings(names: tuple[tuple[str, str], ...]) -> list[WeightRenaming]:
    return [WeightRenaming(source_patterns=source, target_patterns=target) for source, target in names]


register_checkpoint_conversion_mapping(
    MolmoEDecoder.__name__,
    [
        *_renamings(_DECODER_NAMES),
        WeightConverter(
            source_patterns="attn.att_proj.weight",
            target_patterns=["self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"],
            operations=[Chunk(dim=0)],
        ),
        WeightConverter(
            source_patterns=["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
            target_patterns="mlp.experts.gate_up_proj",
            operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter(
            source_patterns="mlp.experts.*.down_proj.weight",
            target_patterns="mlp.experts.down_proj",
            operations=[MergeModulelist(dim=0)],
        ),
    ],
    overwrite=True,
)
register_checkpoint_conversion_mapping(MolmoEVisionTower.__name__, _renamings(_VISION_NAMES), overwrite=True)
