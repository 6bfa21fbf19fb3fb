"""Language models of transformers' real classes, tiny and random, saved in the layout of their repositories."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from syzygy.clip.tokenization import learned_bpe

TEXTS = ("a red star left of a Blue circle.", "zwei grüne Ringe", "звезда над кругом 星", "左边的红色圆形")
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 600,
}
FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3 with pictures", "mistral", "t5", "xlm-roberta")


def _config(family: str, vocabulary: int) -> Any:
    sizes = SIZES | {"vocab_size": vocabulary}
    gemma = sizes | {"head_dim": 8, "sliding_window": 8}
    narrow = {"d_kv": 8, "d_ff": 48, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0}
    eyes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    pictures = {"vision_config": eyes | {"image_size": 28, "patch_size": 14}}
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "llama": (transformers.LlamaConfig, sizes),
        "qwen2": (transformers.Qwen2Config, sizes),
        "qwen3": (transformers.Qwen3Config, sizes | {"head_dim": 8}),
        "gemma2": (transformers.Gemma2Config, gemma),
        "gemma3": (transformers.Gemma3TextConfig, gemma),
        "gemma3 with pictures": (transformers.Gemma3Config, pictures | {"text_config": gemma}),
        "mistral": (transformers.MistralConfig, sizes | {"sliding_window": 8}),
        "t5": (transformers.T5Config, narrow | {"vocab_size": vocabulary, "d_model": 32, "pad_token_id": 0}),
        "xlm-roberta": (transformers.XLMRobertaConfig, sizes | {"max_position_embeddings": 602, "pad_token_id": 0}),
    }
    kind, settings = kinds[family]
    return kind(**settings)


def tiny_tokenizer(*, pad: bool = True, before: str = "", after: str = "") -> Any:
    """Byte-level BPE; `before` and `after` are the special tokens ("<s>", "</s>") that it puts around a text by itself."""
    from tokenizers.processors import TemplateProcessing

    learner = learned_bpe([*TEXTS] * 4, 320, ["<pad>", "</s>", "<s>"])
    if before or after:
        pattern = " ".join(part for part in (before, "$A", after) if part)
        specials = [(mark, learner.token_to_id(mark)) for mark in (before, after) if mark]
        learner.post_processor = TemplateProcessing(single=pattern, special_tokens=specials)
    marks = {"eos_token": "</s>"} | ({"pad_token": "<pad>"} if pad else {})
    return transformers.PreTrainedTokenizerFast(tokenizer_object=learner, **marks)


def save_tiny_llm(family: str, folder: Path, tokenizer: Any | None = None, *, seed: int = 0) -> Path:
    """A model of this family, with its head where published ones have one; norms are not one, so that layers are told apart."""
    if tokenizer is None:
        start = {"t5": "", "qwen2": "", "qwen3": "", "xlm-roberta": "<s>"}.get(family, "<s>")
        tokenizer = tiny_tokenizer(before=start, after="</s>" if family in ("t5", "xlm-roberta") else "")
    kinds = {"t5": transformers.T5ForConditionalGeneration, "gemma3 with pictures": transformers.AutoModelForImageTextToText,
             "xlm-roberta": transformers.XLMRobertaForMaskedLM}  # fmt: skip
    kind: Any = kinds.get(family, transformers.AutoModelForCausalLM)
    config = _config(family, len(tokenizer))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_gguf(folder: Path, file: Path, *, tokenizer: bool = True, architecture: str = "qwen2") -> Path:
    """The tiny Qwen 2 of `folder` as a GGUF file in full precision, named and laid out as llama.cpp's converter does it."""
    import gguf

    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output"}
    parts |= {f"self_attn.{x}_proj": f"attn_{x}" for x in "qkv"} | {
        f"mlp.{x}_proj": f"ffn_{x}" for x in ("gate", "up", "down")
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    config, learner = model.config, transformers.AutoTokenizer.from_pretrained(folder)
    out = gguf.GGUFWriter(file, architecture)
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    if tokenizer:
        described = learner.backend_tokenizer
        tokens = [described.id_to_token(i) for i in range(described.get_vocab_size())]
        marks = set(learner.added_tokens_decoder)
        out.add_tokenizer_model("gpt2")
        out.add_tokenizer_pre("qwen2")
        out.add_token_list(tokens)
        out.add_token_types([3 if i in marks else 1 for i in range(len(tokens))])
        out.add_token_merges([" ".join(pair) for pair in json.loads(described.to_str())["model"]["merges"]])
        out.add_eos_token_id(learner.eos_token_id)
        out.add_pad_token_id(learner.pad_token_id)
        out.add_add_bos_token(False)
    for name, value in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if stem in names:
            place = names[stem]
        else:
            _, _, number, part = stem.split(".", 3)
            place = f"blk.{number}.{parts[part]}"
        out.add_tensor(f"{place}.{kind}", value.numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file
