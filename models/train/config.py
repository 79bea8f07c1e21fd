"""The configurations of the demo models, written to config.json as they are."""

import json
from pathlib import Path

FLASH = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "model_type": "deepseek_v4",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 8,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 4096,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "scoring_func": "sqrtsoftplus",
    "topk_method": "noaux_tc",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 1024,
    "hidden_size": 128,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 128,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 128,
    "o_groups": 2,
    "o_lora_rank": 64,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "routed_scaling_factor": 1.5,
    "num_hash_layers": 1,
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "index_n_heads": 4,
    "index_head_dim": 128,
    "index_topk": 64,
    "compress_ratios": [0, 4, 128, 4],
    "expert_dtype": "fp4",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
}

# One CSA layer more, and the words of the tool prompt. Names and parameters of tools are copied from the tool prompt, which so
# small a model does not learn through compressed entries: the window and the indexer's selection both reach over 1024 tokens.
PRO = {
    **FLASH,
    "vocab_size": 1408,
    "num_hidden_layers": 5,
    "compress_ratios": [0, 4, 128, 4, 4],
    "index_topk": 256,
    "sliding_window": 1024,
}

GENERATION = {
    "_from_model_config": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "do_sample": True,
    "temperature": 1.0,
    "top_p": 1.0,
    "default_thinking": False,
}

TOKENIZER = {
    "add_bos_token": False,
    "add_eos_token": False,
    "bos_token": "<｜begin▁of▁sentence｜>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<｜end▁of▁sentence｜>",
    "model_max_length": 4096,
    "pad_token": "<｜end▁of▁sentence｜>",
    "tokenizer_class": "PreTrainedTokenizerFast",
    "unk_token": None,
}


def write_configs(folder: Path, config, generation):
    """config.json, generation_config.json and tokenizer_config.json."""
    for name, value in (("config", config), ("generation_config", generation), ("tokenizer_config", TOKENIZER)):
        (folder / f"{name}.json").write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
