"""The table: words of other trainers, what they set here, and what has no counterpart.

The meanings are those of transformers 5.23, PEFT 0.21, TRL 1.16, LLaMA-Factory 0.9.5, ms-swift 4.6 and Unsloth
2026.10.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal

from lorgnette.synonyms.values import (
    EIGHT_BITS,
    TARGET_MODULES,
    WRITE_NF4,
    NoCounterpartError,
    Translation,
    Values,
    combine_batch,
    combine_evaluation,
    combine_modules,
    combine_parts,
    combine_pixels,
    combine_precision,
    combine_saving,
    format_value,
    read_alpha,
    read_bits,
    read_epochs,
    read_four_bits,
    read_grad_norm,
    read_holdout,
    read_max_steps,
    read_modules,
    read_sources,
    read_steps,
    read_truncation,
    read_warmup_ratio,
    read_whole,
)

Tool = Literal["transformers", "PEFT", "TRL", "LLaMA-Factory", "ms-swift", "Unsloth"]
TOOLS: dict[str, Tool] = {
    "T": "transformers", "P": "PEFT", "R": "TRL", "L": "LLaMA-Factory", "S": "ms-swift", "U": "Unsloth",
}  # fmt: skip
"""TRL, LLaMA-Factory and ms-swift take transformers' words too, Unsloth PEFT's."""


@dataclass(frozen=True, slots=True)
class Synonym:
    """A word, with its other spellings.

    setting: what it sets; "" if nothing. translate: the values of all words of the group → what they set.
    group: words that are translated together; most are alone. meaning: what differs, or why there is none. needs: the
    setting without which they mean nothing.
    """

    words: tuple[str, ...]
    tools: tuple[Tool, ...]
    kind: Literal["accepted", "needless", "refused"]
    setting: str
    translate: Callable[[Values], Translation]
    group: str
    meaning: str
    needs: str = ""


def _accept(
    tools: str, words: str, setting: str, convert: Callable[[Any], Any] | None = None, meaning: str = ""
) -> list[Synonym]:
    """A word for one setting. convert: its value → ours."""

    def translate(values: Values) -> Translation:
        [value] = values.values()
        return Translation(((setting, convert(value) if convert else value),), meaning)

    return [_build(tools, words, "accepted", setting, translate, meaning)]


def _accept_flag(tools: str, words: str, setting: str, value: Any, otherwise: str) -> list[Synonym]:
    """A switch: true sets the setting, false nothing."""

    def translate(values: Values) -> Translation:
        [is_on] = values.values()
        return Translation(((setting, value),)) if is_on else Translation((), otherwise)

    return [_build(tools, words, "accepted", setting, translate, f"true is {format_value(value)}")]


def _combine(
    tools: str, words: str, setting: str, translate: Callable[[Values], Translation], meaning: str
) -> list[Synonym]:
    """Words that set something together, separated by commas, each with its other spellings."""
    group = words.partition(",")[0].split()[0]
    return [_build(tools, spellings, "accepted", setting, translate, meaning, group) for spellings in words.split(",")]


def _need_nothing(
    tools: str, words: str, reason: str, only: Callable[[Any], bool] = lambda value: True, needs: str = ""
) -> list[Synonym]:
    """Words that mean what is done anyway. only: the values of which this is true; others are refused."""

    def translate(values: Values) -> Translation:
        [value] = values.values()
        if not only(value):
            raise NoCounterpartError(reason, "leave it out")
        return Translation((), reason)

    return [replace(_build(tools, word, "needless", "", translate, reason), needs=needs) for word in words.split()]


def _refuse(
    tools: str, words: str, reason: str, hint: str = "remove it", setting: str = "", off: Collection[Any] = ()
) -> list[Synonym]:
    """Words without a counterpart. setting: what may be set instead. off: values that ask nothing, besides false."""

    def translate(values: Values) -> Translation:
        [value] = values.values()
        if value is False or value in off or (value == 0 and value is not True):
            return Translation(())
        raise NoCounterpartError(reason, hint)

    return [_build(tools, word, "refused", setting, translate, f"{reason}; {hint}") for word in words.split()]


def _build(
    tools: str, words: str, kind: Any, setting: str, translate: Callable[[Values], Translation], meaning: str,
    group: str = "",
) -> Synonym:  # fmt: skip
    names = tuple(words.split())
    letters = tuple(TOOLS[letter] for letter in tools)
    return Synonym(names, letters, kind, setting, translate, group or names[0], meaning)


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: (value.lower() if isinstance(value, str) else value) in values


_RECOMPUTE = "layers are recomputed only where the memory is short"
_KERNELS = "the engine chooses its kernels"
_GPUS = "gpus=4 of the command is all that several GPUs need"
_NF4 = "quantization=nf4 is NF4"
_PLAIN_LORA = "plain LoRA, of one rank and one learning rate, is what is trained"
# fmt: off
TABLE: tuple[Synonym, ...] = tuple(chain(
    # Model and data.
    _accept("TPLSU", "model_name_or_path model_name model_id model_id_or_path base_model "
            "pretrained_model_name_or_path", "model"),
    _accept("LS", "adapter_name_or_path adapters", "adapter", format_value),
    _accept("LS", "dataset train_dataset dataset_path train_file", "data.path", read_sources,
            "files; names from another trainer's list of data sets are unknown here"),
    _accept("LS", "eval_dataset val_dataset validation_file", "data.test", read_sources),
    _accept("LS", "val_size split_dataset_ratio", "data.holdout", read_holdout,
            "rows; 0.1 is auto: a tenth of the images, at least 4 and at most 64"),
    _accept("L", "max_samples max_train_samples", "data.max_rows", read_whole),
    _accept("L", "media_dir image_folder image_dir", "data.images_from"),
    _accept("S", "truncation_strategy", "data.on_bad_row", read_truncation,
            "delete is skip, which leaves out every broken row and names it"),
    _accept("T", "output_dir", "run", None, "a new folder: a run overwrites no other"),
    _accept("LS", "swanlab_project wandb_project", "project"),
    _combine("LSU", "max_pixels image_max_pixels, min_pixels image_min_pixels", "image_tokens", combine_pixels,
             "pixels / 784, which is 28×28 per token (since Qwen3-VL a token has 32×32: write image_tokens); and "
             "image_size=null: an image keeps its shape"),
    # LoRA.
    _accept("PSL", "lora_rank r lora_r", "lora.rank"),
    _accept("P", "lora_alpha", "lora.alpha", read_alpha),
    _accept("P", "lora_dropout", "lora.dropout"),
    _accept("P", "use_rslora", "lora.use_rslora"),
    _accept("PL", "target_modules lora_target lora_target_modules", "lora.target_modules", read_modules,
            "layers of the language model; PEFT's all-linear takes the vision tower too: "
            "lora.parts=language,merger,vision"),
    _combine("LS", "freeze_vit freeze_vision_tower, freeze_aligner freeze_multi_modal_projector, "
             "freeze_llm freeze_language_model", "lora.parts", combine_parts, "what is not frozen gets LoRA"),
    _combine("U", "finetune_vision_layers, finetune_language_layers", "lora.parts", combine_parts,
             "vision is the blocks of the tower"),
    _combine("U", "finetune_attention_modules, finetune_mlp_modules", "lora.target_modules", combine_modules,
             "layers of the language model"),
    # Steps and rates.
    _accept("T", "num_train_epochs num_epochs", "train.epochs", read_epochs),
    _accept("T", "max_steps", "train.max_steps", read_max_steps, "at most; train.epochs may end a run before"),
    _combine("T", "per_device_train_batch_size per_gpu_train_batch_size, gradient_accumulation_steps, "
             "nproc_per_node num_processes num_gpus", "train.batch_size", combine_batch,
             "per device × accumulated × GPUs on which it ran; gpus=4 of the command trains on four"),
    _accept("T", "learning_rate lr", "train.learning_rate"),
    _accept("T", "lr_scheduler_type lr_scheduler", "train.lr_scheduler_type"),
    _accept("T", "warmup_steps num_warmup_steps", "train.warmup_steps"),
    _accept("T", "warmup_ratio", "train.warmup_steps", read_warmup_ratio,
            "below 1 it is a share of all steps, rounded up as in transformers"),
    _accept("T", "weight_decay", "train.weight_decay"),
    _accept("T", "max_grad_norm", "train.max_grad_norm", read_grad_norm, "0, no clipping, is inf"),
    _accept("T", "metric_for_best_model", "train.metric_for_best_model"),
    _accept("TLS", "early_stopping_patience early_stopping_steps early_stop_interval",
            "train.early_stopping_patience", read_whole, "evaluations without a new best"),
    _accept("T", "logging_steps", "train.logging_steps", read_steps),
    _combine("T", "save_strategy, save_steps", "train.save_steps", combine_saving, "epoch is null"),
    _combine("T", "eval_strategy evaluation_strategy, eval_steps", "train.eval_steps", combine_evaluation,
             "epoch is null"),
    # Precision, devices, answers.
    _combine("TL", "bf16, pure_bf16, fp16", "dtype", combine_precision,
             "bf16=false is float32, fp16=true float16; the LoRA matrices are always float32"),
    _accept("TSU", "torch_dtype", "dtype"),
    _accept("LSU", "quantization_bit quant_bits bits", "quantization", read_bits, f"4 bits are nf4; {EIGHT_BITS}"),
    _accept("LSU", "load_in_4bit qlora", "quantization", read_four_bits, "true is nf4, false null"),
    _accept_flag("T", "use_cpu no_cuda", "device", "cpu", "device=auto takes a GPU if there is one"),
    _accept("T", "generation_max_length", "predict.max_new_tokens", read_whole),
    _accept_flag("L", "use_swanlab", "report_to", ("swanlab",), "report_to names the trackers"),
    _accept("U", "random_state", "seed"),
    # What means what is done anyway.
    _need_nothing("T", "do_train", "`lorgnette train` trains"),
    _need_nothing("T", "do_eval do_predict", "every run evaluates and answers the held-out examples"),
    _need_nothing("L", "stage", "training is supervised", _is("sft")),
    _need_nothing("LS", "finetuning_type tuner_type train_type sft_type", "LoRA is what is trained", _is("lora")),
    _need_nothing("S", "tuner_backend", "the adapter has PEFT's format", _is("peft")),
    _need_nothing("PS", "task_type", "training is causal language modeling", _is("causal_lm")),
    _need_nothing("LS", "template", "the chat template is the model's own", _is("qwen2_vl", "default")),
    _need_nothing("S", "model_type", "config.json says the model's type", _is("qwen2_vl")),
    _need_nothing("T", "remove_unused_columns", "`lorgnette check` names columns that are not read"),
    _need_nothing("TL", "overwrite_output_dir overwrite_cache", "a run has a new folder and overwrites nothing"),
    _need_nothing("T", "gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing "
                  "activation_checkpointing_kwargs", _RECOMPUTE),
    _need_nothing("LSU", "use_gradient_checkpointing disable_gradient_checkpointing vit_gradient_checkpointing "
                  "use_reentrant_gc use_unsloth_gc", _RECOMPUTE),
    _need_nothing("LST", "flash_attn attn_impl attn_implementation", _KERNELS),
    _need_nothing("TL", "use_liger_kernel enable_liger_kernel liger_kernel_config use_unsloth torch_compile", _KERNELS),
    _need_nothing("T", "optim", "AdamW is the only optimizer",
                  _is("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw")),
    _need_nothing("T", "adam_beta1", "it is 0.9", _is(0.9)),
    _need_nothing("T", "adam_beta2", "it is 0.999; ms-swift's default is 0.95", _is(0.999)),
    _need_nothing("T", "adam_epsilon", "it is 1e-8", _is(1e-8)),
    _need_nothing("T", "logging_first_step", "step 1 is always logged"),
    _need_nothing("T", "logging_nan_inf_filter", "a loss that is not finite stops the run"),
    _need_nothing("T", "logging_strategy", "the log has a line every train.logging_steps steps", _is("steps")),
    _need_nothing("T", "load_best_model_at_end", "adapter/ is of the last step, best/ of the best"),
    _need_nothing("T", "greater_is_better", "the direction of every metric is known"),
    _need_nothing("T", "save_total_limit save_only_model enable_jit_checkpoint",
                  "the newest checkpoints and the best adapter are kept"),
    _need_nothing("TS", "save_safetensors safe_serialization", "all files are safetensors", bool),
    _need_nothing("T", "per_device_eval_batch_size auto_find_batch_size",
                  "train.max_tokens_per_microbatch sizes micro-batches, and they shrink where the memory is short"),
    _need_nothing("TLS", "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
                  "dataloader_prefetch_factor preprocessing_num_workers preprocessing_batch_size dataset_num_proc",
                  "images are read on threads"),
    _need_nothing("S", "lazy_tokenize load_from_cache_file", "images are read when they are needed"),
    _need_nothing("S", "dataset_shuffle train_dataloader_shuffle", "every epoch has a new order", bool),
    _need_nothing("TS", "ddp_timeout ddp_backend ddp_find_unused_parameters local_rank", _GPUS),
    _need_nothing("TL", "log_level disable_tqdm logging_dir plot_loss include_num_input_tokens_seen",
                  "log.jsonl and report.html have the losses, tokens and memory"),
    _need_nothing("TL", "trust_remote_code", "no code of a model is run"),
    _need_nothing("L", "use_fast_tokenizer low_cpu_mem_usage", "there is no other way"),
    _need_nothing("S", "use_hf check_model", "a model is looked for on Hugging Face and on ModelScope"),
    _need_nothing("RS", "padding_free padding_side pad_to_multiple_of", "examples are packed without padding"),
    _need_nothing("RU", "completion_only_loss assistant_only_loss train_on_responses_only",
                  "the answers alone have a loss", bool),
    _need_nothing("U", "instruction_part response_part", "the chat template says where an answer begins"),
    _need_nothing("L", "ignore_pad_token_for_loss", "there is no padding", bool),
    _need_nothing("LS", "quantization_method quant_method", f"{_NF4} in bitsandbytes' format",
                  _is("bnb", "bitsandbytes"), needs="quantization"),
    _need_nothing("LS", "quantization_type bnb_4bit_quant_type", _NF4, _is("nf4"), needs="quantization"),
    _need_nothing("LS", "double_quantization bnb_4bit_use_double_quant", f"{_NF4} with double quantization",
                  _is(True, "true"), needs="quantization"),
    _need_nothing("LS", "bnb_4bit_compute_dtype", f"{_NF4}, and its products are computed in dtype",
                  needs="quantization"),
    _need_nothing("L", "video_max_pixels video_min_pixels video_fps video_maxlen", "there are no videos"),
    _need_nothing("PS", "bias lora_bias", "biases are not trained", _is("none", False)),
    _need_nothing("PS", "init_lora_weights init_weights", "A is drawn as in PEFT, B is zero", _is(True, "true")),
    _need_nothing("R", "dataset_text_field dataset_kwargs", "the form of the data is recognized"),
    _need_nothing("R", "loss_type", "the loss is cross-entropy", _is("nll", "cross_entropy", "causal_lm")),
    _need_nothing("LS", "swanlab_mode swanlab_api_key swanlab_token swanlab_workspace swanlab_logdir",
                  "SwanLab's own variables say it: SWANLAB_MODE, SWANLAB_API_KEY"),
    # Parameters of what is off, in files that a trainer wrote with all its values.
    _need_nothing("S", "lora_ga_batch_size lora_ga_iters lora_ga_max_length lora_ga_direction lora_ga_scale "
                  "lora_ga_stable_gamma fourier_n_frequency fourier_scaling boft_block_size boft_block_num "
                  "boft_n_butterfly_factor boft_dropout vera_rank vera_projection_prng_key vera_dropout vera_d_initial "
                  "adapter_act adapter_length adalora_target_r adalora_init_r adalora_tinit adalora_tfinal "
                  "adalora_deltat adalora_beta1 adalora_beta2 adalora_orth_reg_weight llamapro_num_new_blocks "
                  "llamapro_num_groups reft_rank reft_intervention_type", "it belongs to an adapter that is not LoRA"),
    _need_nothing("LS", "galore_target galore_target_modules galore_rank galore_update_interval galore_update_proj_gap "
                  "galore_scale galore_proj_type galore_optim_per_parameter galore_with_embedding galore_quantization "
                  "galore_proj_quant galore_proj_bits galore_proj_group_size galore_cos_threshold galore_gamma_proj "
                  "galore_queue_size galore_layerwise apollo_target apollo_rank apollo_update_interval apollo_scale "
                  "apollo_proj apollo_proj_type apollo_scale_type badam_mode badam_switch_mode badam_switch_interval "
                  "badam_update_ratio badam_mask_mode lisa_step_interval",
                  "it belongs to an optimizer that is not AdamW"),
    _need_nothing("S", "packing_num_proc packing_strategy download_mode shuffle_buffer_size stopping_strategy "
                  "load_args load_data_args add_version create_checkpoint_symlink max_shard_size template_backend "
                  "swanlab_email_language ds3_gather_for_generation acc_strategy use_chat_template "
                  "add_non_thinking_prefix enable_npu_model_patch decision_drop_instructions "
                  "decision_subsample_options decision_state_as_text", "it changes nothing here"),
    _need_nothing("T", "average_tokens_across_devices log_on_each_node log_level_replica eval_do_concat_batches "
                  "dataloader_in_order length_column_name skip_memory_metrics hub_strategy accelerator_config "
                  "include_for_metrics hub_token", "it changes nothing here"),
    _need_nothing("P", "peft_type peft_version inference_mode megatron_core qalora_group_size revision",
                  "it changes nothing here"),
    # What has no counterpart.
    _refuse("LU", "cutoff_len max_seq_length max_seq_len model_max_length",
            "it cuts longer examples, and no example is ever cut here",
            "remove it, or write max_length=N: a longer example is then a broken row", "max_length"),
    _refuse("T", "deepspeed fsdp fsdp_config parallelism_config", _GPUS,
            "remove it; train.fully_shard=auto cuts a model that does not fit one over all of them", off=("",)),
    _refuse("LSU", "load_in_8bit load_in_fp8 fp8", EIGHT_BITS, WRITE_NF4, "quantization"),
    _refuse("RLS", "packing neat_packing packing_length eval_packing",
            "it changes how many examples a step has; here it is train.batch_size, always packed without padding"),
    _refuse("T", "optim_args optim_target_modules optimizer use_galore use_apollo use_badam use_adam_mini use_muon",
            "AdamW is the only optimizer"),
    _refuse("T", "lr_scheduler_kwargs", "the schedules have no further values"),
    _refuse("TLS", "label_smoothing_factor neftune_noise_alpha use_dft_loss enable_dft_loss use_asft_loss "
            "use_eaft_loss", "the loss is plain cross-entropy"),
    _refuse("PLS", "use_dora modules_to_save additional_target rank_pattern alpha_pattern layers_to_transform "
            "loftq_config pissa_init loraplus_lr_ratio lorap_lr_ratio exclude_modules target_regex target_parameters "
            "layer_replication trainable_token_indices use_qalora vit_lr aligner_lr", _PLAIN_LORA),
    _refuse("PS", "fan_in_fan_out layers_pattern eva_config corda_config lora_ga_config velora_config "
            "monteclora_config arrow_config kasa_config use_bdlora alora_invocation_tokens ensure_weight_tying "
            "freeze_parameters freeze_parameters_regex freeze_parameters_ratio trainable_parameters "
            "trainable_parameters_regex lora_dtype reft_layers lisa_activated_layers", _PLAIN_LORA),
    _refuse("S", "loss_scale", "every token of an answer has the same weight", off=("default",)),
    _refuse("S", "sequence_parallel_size zero_hpz_partition_size deepspeed_autotp_size", _GPUS, off=(1,)),
    _refuse("LS", "rope_scaling resize_vocab add_tokens add_special_tokens new_special_tokens mixture_of_depths "
            "shift_attn", "the model is not changed"),
    _refuse("T", "bf16_full_eval fp16_full_eval", "evaluation has the precision of training"),
    _refuse("T", "eval_delay prediction_loss_only eval_on_start eval_use_gather_object batch_eval_metrics",
            "the eval loss and the answers are computed at every evaluation"),
    _refuse("T", "ignore_data_skip restore_callback_states_from_checkpoint full_determinism save_on_each_node "
            "use_cache hub_always_push", "there is no such switch"),
    _refuse("S", "ignore_args_error use_swift_lora val_dataset_shuffle strict disable_auto_column_mapping "
            "decision_shuffle_fields logprobs disable_ignore_empty_think router_aux_loss_coef enable_channel_loss "
            "resume_only_model eval_use_evalscope use_flash_ckpt", "there is no such switch"),
    _refuse("U", "full_finetuning", "LoRA is what is trained"),
    _refuse("TS", "data_seed", "one seed draws the order, the matrices and the dropout", "write seed=N", "seed", (42,)),
    _refuse("T", "group_by_length disable_shuffling train_sampling_strategy", "every epoch has a new order",
            off=("random",)),
    _refuse("T", "dataloader_drop_last", "the last step of an epoch has the examples that are left"),
    _refuse("LS", "streaming", "the rows are read before training, so that all are checked"),
    _refuse("LU", "train_on_prompt mask_history last_response_only", "every answer has a loss, and no question has",
            "mark turns in the data (docs/data.md)"),
    _refuse("LS", "system default_system", "the system turn comes from the data", "add a column system"),
    _refuse("S", "columns", "the columns are recognized by their names", "write data.image_column=NAME, "
            "data.caption_column=NAME"),
    _refuse("T", "push_to_hub hub_model_id", "nothing is uploaded", "upload the adapter's folder with hf upload"),
    _refuse("TL", "run_name swanlab_run_name", "an experiment has the name of its run folder", "write run=runs/NAME",
            "run"),
    _refuse("T", "resume_from_checkpoint", "a run continues by its folder", "write lorgnette train --resume RUN"),
    _refuse("LS", "temperature top_p top_k num_beams do_sample repetition_penalty",
            "the held-out prompts are answered greedily", "remove it; `lorgnette predict --temperature` samples",
            off=(1,)),
    _refuse("L", "dataset_dir", "data is named by its path", "write data=FILE", "data.path", ("data",)),
))
# fmt: on
SYNONYMS = {word: synonym for synonym in TABLE for word in synonym.words}

CLASHES = {
    "max_length": "a longer example is a broken row; TRL cuts it off, ms-swift leaves it out",
    "eos_token": "it is template or <|endoftext|>; TRL takes any token",
}
"""Settings that mean something else in other trainers. A recipe with words of other trainers is told."""
DIFFERENCES = CLASHES | {
    "seed": "the same number draws another order and other matrices in another trainer",
    "report_to": "transformers' default is none, ms-swift's tensorboard",
    "project": "of every tracker; transformers' is Trackio's alone",
    "model": "a folder, or a name on a hub, as in ms-swift",
}
"""Settings that other trainers have under the same name, and what differs."""
VALUES: dict[str, dict[str, Any]] = {  # torch.NAME is read as NAME
    "dtype": {name: name for name in ("bfloat16", "float16", "float32")}
    | {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32"},
    "device": {"gpu": "cuda", "cuda:0": "cuda", "gpu:0": "cuda"},
    "lora.target_modules": {"all": TARGET_MODULES, "all-linear": TARGET_MODULES},
    "quantization": {"nf4": "nf4", "qlora": "nf4", "none": None},
    "train.lr_scheduler_type": {"constant_with_warmup": "constant"},
    "train.metric_for_best_model": {"eval_loss": "loss"},
}
"""Setting → values of other trainers and ours."""
OTHER_VALUES = {"quantization": (EIGHT_BITS, WRITE_NF4)}
"""Setting → (reason, hint) for all other values."""
OWN_NAMES = {"rows": "data.max_rows", "data.rows": "data.max_rows", "data": "data.path"}
"""Other names of ours: those of options."""
