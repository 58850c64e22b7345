"""Transformers and what stands beside them in `transformers`, from small configurations with random weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from tersor.ir.foreign import Instance

from .entry import Entry, Input, Integers, Numbers

TOKENS, VOCABULARY, PICTURE = 64, 1000, 64
SAMPLES, BANDS, FRAMES = 8000, 80, 200  # half a second of sound; a spectrogram of two seconds
WIDTH, HEADS, LAYERS = 64, 4, 2

TEXT: tuple[Input, ...] = (Integers((1, TOKENS), VOCABULARY),)
MASKED = (*TEXT, Integers((1, TOKENS), 2, 1))
PIXELS = (Numbers((1, 3, PICTURE, PICTURE)),)
SOUND = (Numbers((1, SAMPLES)),)
SPECTROGRAM = (Numbers((1, BANDS, FRAMES)),)
TRANSPOSED = (Numbers((1, FRAMES, BANDS)),)

Options = dict[str, Instance]
USUAL: Options = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 2 * WIDTH,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 2 * TOKENS,
    "use_cache": False,
}
BARE: Options = {"vocab_size": VOCABULARY, "use_cache": False}
PATCHES: Options = USUAL | {"image_size": PICTURE, "patch_size": 16}
PAIRED: Options = {  # an encoder and a decoder
    **BARE,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH,
    "max_position_embeddings": 2 * TOKENS,
}
T5: Options = BARE | {"d_model": WIDTH, "d_kv": 16, "d_ff": 2 * WIDTH, "num_layers": LAYERS, "num_heads": HEADS}
WAVES: Options = USUAL | {
    "conv_dim": (32, 32, 32),
    "conv_stride": (5, 4, 4),
    "conv_kernel": (10, 8, 8),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "apply_spec_augment": False,
}
GROUPED: Options = USUAL | {"num_key_value_heads": 2, "head_dim": WIDTH // HEADS}
STAGES: Options = {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "image_size": PICTURE}
SHIFTED: Options = {
    "image_size": PICTURE,
    "embed_dim": 24,
    "depths": [1, 2, 1],
    "num_heads": [2, 4, 8],
    "window_size": 4,
}

# Name: class, options of its configuration, inputs.
LANGUAGE: dict[str, tuple[str, Options, tuple[Input, ...]]] = {
    "bert": ("BertModel", USUAL, MASKED),
    "bert_classifier": ("BertForSequenceClassification", USUAL, MASKED),
    "bert_masked_words": ("BertForMaskedLM", USUAL, MASKED),
    "distilbert": (
        "DistilBertModel",
        {"dim": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 2 * WIDTH, "vocab_size": VOCABULARY},
        MASKED,
    ),
    "roberta": ("RobertaModel", USUAL, MASKED),
    "xlm_roberta": ("XLMRobertaModel", USUAL, MASKED),
    "camembert": ("CamembertModel", USUAL, MASKED),
    "albert": ("AlbertModel", USUAL | {"embedding_size": 32}, MASKED),
    "electra": ("ElectraModel", USUAL | {"embedding_size": 32}, MASKED),
    "deberta_v2": ("DebertaV2Model", USUAL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, MASKED),
    "mobilebert": ("MobileBertModel", USUAL | {"embedding_size": 32, "intra_bottleneck_size": 32}, MASKED),
    "squeezebert": ("SqueezeBertModel", USUAL | {"embedding_size": WIDTH}, MASKED),
    "mpnet": ("MPNetModel", USUAL, MASKED),
    "modernbert": ("ModernBertModel", USUAL | {"pad_token_id": 0, "global_attn_every_n_layers": 2}, MASKED),
    "xlnet": ("XLNetModel", BARE | {"d_model": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "d_inner": 2 * WIDTH}, TEXT),
    "fnet": ("FNetModel", USUAL, TEXT),
    "convbert": ("ConvBertModel", USUAL | {"embedding_size": 32}, MASKED),
    "nystromformer": (  # a mask of all pairs does not fit its landmarks, and export makes one where none is given
        "NystromformerModel",
        USUAL | {"num_landmarks": 16, "segment_means_seq_len": TOKENS},
        (*TEXT, Numbers((1, 1, 1, TOKENS))),
    ),
    "longformer": ("LongformerModel", USUAL | {"attention_window": [16, 16]}, TEXT),
    "bigbird": ("BigBirdModel", USUAL | {"attention_type": "original_full"}, MASKED),
    "t5_encoder": ("T5EncoderModel", T5, MASKED),
    "mt5_encoder": ("MT5EncoderModel", T5, MASKED),
    "umt5_encoder": ("UMT5EncoderModel", T5, MASKED),
    "bart": ("BartModel", PAIRED, TEXT),
    "marian": (
        "MarianModel",
        PAIRED,
        (*TEXT, Integers((1, TOKENS), 2, 1), *TEXT),
    ),
    "gpt2_prefill": ("GPT2LMHeadModel", BARE | {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS}, TEXT),
    "gpt2_with_cache": (
        "GPT2Model",
        {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS},
        TEXT,
    ),
    "gpt_neo": (
        "GPTNeoModel",
        BARE
        | {"hidden_size": WIDTH, "num_layers": 2, "num_heads": HEADS, "attention_types": [[["global", "local"], 1]]},
        TEXT,
    ),
    "gpt_neox": ("GPTNeoXModel", USUAL, TEXT),
    "opt": ("OPTModel", USUAL | {"ffn_dim": 2 * WIDTH, "word_embed_proj_dim": WIDTH}, TEXT),
    "bloom": ("BloomModel", BARE | {"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS}, TEXT),
    "llama": ("LlamaForCausalLM", GROUPED, TEXT),
    "mistral": ("MistralModel", GROUPED, TEXT),
    "qwen2": ("Qwen2Model", GROUPED, TEXT),
    "qwen3": ("Qwen3Model", GROUPED, TEXT),
    "gemma": ("GemmaModel", GROUPED, TEXT),
    "phi": ("PhiModel", USUAL, TEXT),
    "mixtral": ("MixtralModel", GROUPED | {"num_local_experts": 4}, TEXT),
    "mixtral_batched": (
        "MixtralModel",
        GROUPED | {"num_local_experts": 4, "experts_implementation": "batched_mm"},
        TEXT,
    ),
    "mamba": ("MambaModel", BARE | {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 8}, TEXT),
    "rwkv": (
        "RwkvModel",
        BARE | {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "attention_hidden_size": WIDTH},
        TEXT,
    ),
}
VISION: dict[str, tuple[str, Options, tuple[Input, ...]]] = {
    "vit": ("ViTForImageClassification", PATCHES, PIXELS),
    "deit": ("DeiTForImageClassificationWithTeacher", PATCHES, PIXELS),
    "beit": ("BeitModel", PATCHES | {"use_relative_position_bias": True}, PIXELS),
    "dinov2": ("Dinov2Model", PATCHES, PIXELS),
    "swin": ("SwinForImageClassification", SHIFTED | {"patch_size": 2}, PIXELS),
    "swinv2": ("Swinv2ForImageClassification", SHIFTED | {"patch_size": 2}, PIXELS),
    "swin2sr": ("Swin2SRForImageSuperResolution", SHIFTED | {"num_channels": 3, "upscale": 2}, PIXELS),
    "segformer": (
        "SegformerForSemanticSegmentation",
        {
            "depths": [1, 1, 1, 1],
            "hidden_sizes": [16, 32, 48, 64],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 32,
        },
        PIXELS,
    ),
    "mobilevit": ("MobileViTForImageClassification", {"image_size": PICTURE}, PIXELS),
    "mobilevitv2": ("MobileViTV2ForImageClassification", {"image_size": PICTURE, "width_multiplier": 0.5}, PIXELS),
    "convnext": ("ConvNextForImageClassification", STAGES, PIXELS),
    "convnextv2": ("ConvNextV2ForImageClassification", STAGES, PIXELS),
    "poolformer": ("PoolFormerForImageClassification", STAGES, PIXELS),
    "levit": ("LevitForImageClassification", {"image_size": PICTURE}, PIXELS),
    "cvt": ("CvtForImageClassification", {"depth": [1, 2, 3]}, PIXELS),
    "pvt": ("PvtForImageClassification", {"image_size": PICTURE, "depths": [1, 1, 1, 1]}, PIXELS),
    "pvtv2": ("PvtV2ForImageClassification", {"image_size": PICTURE, "depths": [1, 1, 1, 1]}, PIXELS),
    "focalnet": (
        "FocalNetForImageClassification",
        {"image_size": PICTURE, "depths": [1, 1, 1, 1], "embed_dim": 24},
        PIXELS,
    ),
    "swiftformer": ("SwiftFormerForImageClassification", {"depths": [1, 1, 1, 1]}, PIXELS),
    "hiera": (
        "HieraForImageClassification",
        {"image_size": [224, 224], "depths": [1, 1, 1, 1], "embed_dim": 32},
        (Numbers((1, 3, 224, 224)),),
    ),
    "bit": ("BitForImageClassification", {"depths": [1, 1, 1, 1]}, PIXELS),
    "clip_vision": ("CLIPVisionModel", PATCHES, PIXELS),
    "clip_text": ("CLIPTextModel", USUAL | {"eos_token_id": 2}, TEXT),
    "siglip_vision": ("SiglipVisionModel", PATCHES, PIXELS),
    "yolos": (
        "YolosForObjectDetection",
        PATCHES | {"image_size": [PICTURE, PICTURE], "num_detection_tokens": 10},
        PIXELS,
    ),
    "dpt": (
        "DPTForDepthEstimation",
        PATCHES
        | {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 48, 64],
            "fusion_hidden_size": 32,
        },
        PIXELS,
    ),
    "glpn": ("GLPNForDepthEstimation", {"depths": [1, 1, 1, 1], "decoder_hidden_size": 32}, PIXELS),
    "superpoint": ("SuperPointForKeypointDetection", {}, PIXELS),
    "videomae": (
        "VideoMAEModel",
        PATCHES | {"num_frames": 4, "tubelet_size": 2},
        (Numbers((1, 4, 3, PICTURE, PICTURE)),),
    ),
    "timesformer": ("TimesformerModel", PATCHES | {"num_frames": 4}, (Numbers((1, 4, 3, PICTURE, PICTURE)),)),
}
SOUNDS: dict[str, tuple[str, Options, tuple[Input, ...]]] = {
    "whisper_encoder": (
        "WhisperModel",
        PAIRED | {"num_mel_bins": BANDS, "max_source_positions": FRAMES // 2},
        SPECTROGRAM,
    ),
    "wav2vec2": ("Wav2Vec2ForCTC", WAVES, SOUND),
    "hubert": ("HubertModel", WAVES, SOUND),
    "wavlm": ("WavLMModel", WAVES, SOUND),
    "sew": ("SEWModel", WAVES | {"squeeze_factor": 2}, SOUND),
    "unispeech": ("UniSpeechModel", WAVES, SOUND),
    "audio_spectrogram": (
        "ASTForAudioClassification",
        USUAL | {"max_length": FRAMES, "num_mel_bins": BANDS},
        TRANSPOSED,
    ),
    "encodec": ("EncodecModel", {"num_filters": 8, "hidden_size": 32}, (Numbers((1, 1, SAMPLES)),)),
}
TIMES: dict[str, tuple[str, Options, tuple[Input, ...]]] = {
    "patchtst": (
        "PatchTSTForPrediction",
        {
            "context_length": 64,
            "num_input_channels": 4,
            "d_model": WIDTH,
            "num_hidden_layers": LAYERS,
            "ffn_dim": 2 * WIDTH,
        },
        (Numbers((1, 64, 4)),),
    ),
    "patchtsmixer": (
        "PatchTSMixerForPrediction",
        {"context_length": 64, "num_input_channels": 4, "d_model": 16},
        (Numbers((1, 64, 4)),),
    ),
}
ENCODERS = {"whisper_encoder"}  # only this part of the model is called
PREPARED = {"rwkv"}  # called once before, since they rescale their weights in the first call
FAMILIES = {
    "Language": LANGUAGE,
    "Vision transformers": VISION,
    "Speech": SOUNDS,
    "Time series": TIMES,
}


def entries() -> Iterator[Entry]:
    """All of this file."""
    for family, table in FAMILIES.items():
        for name, (kind, options, inputs) in table.items():
            prepared = inputs if name in PREPARED else None
            yield Entry(name, family, partial(make, kind, options, name in ENCODERS, prepared), inputs)


def make(kind: str, options: Options, encoder: bool, prepared: tuple[Input, ...] | None) -> nn.Module:
    """A model of this class with random weights, which needs no file; called once with ``prepared``, if given."""
    import transformers

    model = getattr(transformers, kind)
    module = model(model.config_class(**options))
    if prepared is not None:
        module.eval()(*(one.draw(torch.Generator().manual_seed(0)) for one in prepared))
    return module.get_encoder() if encoder else module
